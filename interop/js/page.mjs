#!/usr/bin/env node
// Drives the page of examples/browser in headless Chromium or Firefox, with one line of JSON for
// each case on stdout:
//
//   page.mjs URL CASE... [--firefox dcsctp|usrsctp] [--way any|webrtc|websocket]
//     [--screenshots DIRECTORY] [--timeout-s S]
//
// The exit status is 0 only if every case passes.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import axe from 'axe-core'
import { launchChromium, launchFirefox } from './src/browsers.mjs'
import { emit, fail, parseCommand, reporter, setDeadline } from './src/cli.mjs'

const USAGE = 'page.mjs URL CASE... [--firefox SCTP] [--way WAY] [--screenshots DIRECTORY]'
const WIDTHS = [360, 1280]
const SCHEMES = ['light', 'dark']
/** What a page with a paused substream may hold. */
const MAX_UNREAD = 20e6
/** `sessionCeiling` of the package. */
const MAX_COMMITTED = 32 * 2 ** 20
/** Bytes of a record: less than one is unread if nothing was opened. */
const RECORD = 1000

const CONNECTED =
  /^Connected over (\w+)(?: on the lossy path)? in (\d+) ms; an echo takes ([\d.]+) ms\.$/
const COMPARED = /^Substream 7 is paused\. The other 49 run at \d+ % of their rate before\.$/

function assert (condition, message) {
  if (!condition) throw new Error(message)
}

const sleep = ms => new Promise(resolve => { setTimeout(resolve, ms) })

/** Polls `probe` until it returns something true, which is returned. */
async function until (what, limit, probe) {
  const end = performance.now() + limit
  let last
  do {
    last = await probe()
    if (last) return last
    await sleep(100)
  } while (performance.now() < end)
  throw new Error(`${what}: not within ${limit} ms`)
}

const textOf = (page, selector) => page.$eval(selector, element => element.textContent)

async function status (page, section, pattern, limit) {
  let text
  try {
    return await until(`${pattern}`, limit, async () => {
      text = await textOf(page, `#${section}-status`)
      return pattern.exec(text)
    })
  } catch (error) {
    throw new Error(`${error.message}; the page says: ${text}`)
  }
}

/** The outcome of each carrier in the table of addresses. */
const outcomes = page => page.$$eval('#attempts tbody tr', rows => rows.map(row =>
  `${row.cells[0].firstChild.textContent}: ${row.cells[1].textContent}`))

async function connect (page, way) {
  await page.click(`input[value=${way}]`)
  await page.click('#connect')
  const [, carrier, ms, echo] =
    await status(page, 'connection', CONNECTED, 15_000)
  // A busy machine may need longer for WebRTC than the head start: `any` is satisfied by either.
  const expected = { any: carrier, webrtc: 'WebRTC', websocket: 'WebSocket' }[way]
  assert(carrier === expected, `connected over ${carrier}, not ${expected}`)
  return { carrier, 'connect-ms': Number(ms), 'echo-ms': Number(echo) }
}

async function openFifty (page, size, direction = 'down') {
  await page.select('#size', String(size))
  await page.select('#direction', direction)
  await page.click('#open')
}

/** State and bytes of every row. */
const rowsOf = page => page.$$eval('#rows li', items => items.map(item =>
  ({ state: item.className, bytes: item.querySelector('progress').value })))

/** A figure such as `1.05 MB`, in bytes. */
async function figure (page, id) {
  const text = await textOf(page, `#${id}`)
  const [, value, unit] = /^([\d.]+) ([kMGT]?)B/.exec(text) ?? []
  assert(value !== undefined, `${id} is ${text}`)
  return Number(value) * 1000 ** ['', 'k', 'M', 'G', 'T'].indexOf(unit)
}

/** What each row moves in `ms`, and all but one together for each second. */
async function movement (page, ms, without) {
  const start = performance.now()
  const first = await rowsOf(page)
  await sleep(ms)
  const last = await rowsOf(page)
  const moved = last.map(({ bytes }, index) => bytes - first[index].bytes)
  const others = moved.filter((_, index) => index !== without)
  const rate = 1000 * others.reduce((sum, bytes) => sum + bytes, 0) / (performance.now() - start)
  return { moved, others, rate }
}

const valueOf = (page, id) => page.$eval(`#${id}`, progress => progress.value)

const isMoved = (page, bytes) => until(`${bytes} bytes`, 60_000, async () =>
  await valueOf(page, 'transfer-done') > bytes)

/**
 * Cuts a transfer of `total` bytes that `start` begins, which goes on by itself, and reloads the
 * page in the midst of it; `start` then goes on again. Each `step` bytes are moved before that.
 * Returns what was not sent again.
 */
async function cutAndReload (page, way, { total, step }, start) {
  await page.click(`input[value=${way}]`)
  await start()
  await isMoved(page, step)
  // A busy machine may be taken for a silent one, and the button be disabled meanwhile.
  await until('the cut', 20_000, async () => {
    await page.click('#cut')
    return /^Cut\. /.test(await textOf(page, '#transfer-status'))
  })
  await status(page, 'transfer', /: connection \d+, goes on at [\d.]+ [kM]?B\.$/, 60_000)
  const afterCut = await valueOf(page, 'transfer-kept')
  await isMoved(page, afterCut + step)
  await page.reload()
  await page.click(`input[value=${way}]`)
  await start()
  const all = new RegExp(`: all ${total / 1e6} MB, in [\\d.]+ s; .* match their SHA-256\\. `)
  await status(page, 'transfer', all, 60_000)
  const afterReload = await valueOf(page, 'transfer-kept')
  // Less than a part of 1 MiB, and what the other side has not got yet, are lost with the page.
  assert(afterReload > afterCut, `after the reload, ${afterReload} bytes, before it ${afterCut}`)
  assert(await valueOf(page, 'transfer-done') === total, 'the progress is not complete')
  assert(await textOf(page, '#connections') === '1', 'the page had connected again')
  return { 'kept-after-cut': afterCut, 'kept-after-reload': afterReload }
}

/** State of the streams of records: how many arrive in a second. */
const recordsOf = page => page.$$eval('#records tbody tr', rows => rows.map(row =>
  Number(row.cells[1].textContent) || 0))

async function lossy (page) {
  await page.click('input[value=lossy]')
  const { 'echo-ms': echo } = await connect(page, 'webrtc')
  assert(echo >= 50, `an echo takes ${echo} ms`)
}

async function temporaryFile (name, content, use) {
  const directory = mkdtempSync(join(tmpdir(), 'anabranch-page-'))
  try {
    const path = join(directory, name)
    writeFileSync(path, content)
    return await use(path)
  } finally {
    rmSync(directory, { recursive: true })
  }
}

/** No two chunks of it are the same. */
function content (length) {
  const bytes = Buffer.alloc(length)
  for (let index = 0; index < length; index++) bytes[index] = (index * 31 + (index >> 8) * 7) & 0xff
  return bytes
}

async function violations (page) {
  await page.evaluate(axe.source)
  const found = await page.evaluate(async () => {
    const tags = ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']
    const { violations, passes } = await window.axe.run(document, { runOnly: tags })
    return {
      passes: passes.length,
      violations: violations.map(({ id, nodes }) =>
        `${id}: ${nodes.map(node => node.html).slice(0, 3).join(' ')}`)
    }
  })
  // A run that looked at nothing finds nothing either.
  assert(found.passes > 20, `only ${found.passes} rules apply`)
  return found.violations
}

async function show (page, width, scheme) {
  await page.setViewport({ width, height: 800 })
  await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
}

const CASES = {
  async connects (page, { way }) {
    const figures = await connect(page, way)
    const { carrier } = figures
    const lost = carrier === 'WebRTC'
      ? 'WebSocket: not needed: the other was first'
      : 'WebRTC: no answer after N ms, when the WebSocket was connected'
    const expected = [`${carrier}: connected after N ms`, ...way === 'any' ? [lost] : []]
    const found = (await outcomes(page)).map(text => text.replace(/\d+ ms/, 'N ms'))
    assert(String(found) === String(expected), `${found}`)
    await page.click('#disconnect')
    await status(page, 'connection', /^Disconnected: the page has disconnected\.$/, 10_000)
    return figures
  },

  async 'falls-back' (page) {
    await page.click('#blocked')
    await page.click('#connect')
    await status(page, 'connection', /^Connected over WebSocket in \d+ ms;/, 15_000)
    const found = await outcomes(page)
    assert(found.some(text =>
      /^WebRTC: no answer after \d+ ms, when the WebSocket was connected$/.test(text)), `${found}`)
  },

  async 'all-fail' (page) {
    await page.click('#blocked')
    await page.click('input[value=webrtc]')
    await page.click('#connect')
    await status(page, 'connection', /^Not connected: all-failed: /, 20_000)
    const found = await outcomes(page)
    assert(found.length > 0 && found.every(text => /^WebRTC: [\w-]+: /.test(text)), `${found}`)
    assert(await page.$eval('#connect', button => !button.disabled), 'one can not try again')
  },

  /** Fifty substreams of a megabyte, either way, are counted at both ends. */
  async 'fifty-to-the-end' (page, { way }) {
    await connect(page, way)
    for (const direction of ['down', 'up']) {
      await openFifty(page, 1_000_000, direction)
      await status(page, 'substreams', /^All substreams have ended: 50 done\.$/, 60_000)
      const rows = await rowsOf(page)
      const isWhole = rows.length === 50 && rows.every(({ bytes }) => bytes === 1_000_000)
      assert(isWhole, JSON.stringify(rows))
      // The status is for the next direction too.
      await page.$eval('#substreams-status', element => { element.textContent = '' })
    }
  },

  /** One of fifty is paused: it stands still, the others go on, and the page holds no more. */
  async 'pause-one' (page, { way }) {
    await connect(page, way)
    await openFifty(page, 1_000_000_000)
    await until('every substream moves', 30_000, async () => {
      const rows = await rowsOf(page)
      return rows.length === 50 && rows.every(({ bytes }) => bytes > 100_000)
    })
    const paused = 6
    const before = await movement(page, 4_000, paused)
    const button = `#rows li:nth-child(${paused + 1}) button`
    await page.focus(button)
    await page.keyboard.press('Enter')
    assert(await textOf(page, button) === 'Resume', 'the button does not resume')
    // A read that was under way may still end.
    await until('it stands still', 10_000, async () =>
      (await movement(page, 1_000, paused)).moved[paused] === 0)
    const after = []
    for (let round = 0; round < 3; round++) {
      const { moved, others, rate } = await movement(page, 4_000, paused)
      assert(moved[paused] === 0, `the paused one moved by ${moved[paused]} bytes`)
      assert(others.every(bytes => bytes > 0), `another stands still: ${others}`)
      after.push(rate)
      const [unread, committed] = [await figure(page, 'unread'), await figure(page, 'committed')]
      assert(unread <= MAX_UNREAD, `${unread} bytes are unread`)
      // Rounded to three digits.
      assert(committed <= 1.005 * MAX_COMMITTED, `${committed} bytes are committed`)
    }
    // Other programs run on this machine; one that holds up the rest leaves nothing of this.
    const share = Math.max(...after) / before.rate
    assert(share > 0.5, `the others have ${Math.round(100 * share)} % of their rate`)
    await status(page, 'substreams', COMPARED, 10_000)
    const { bytes } = (await rowsOf(page))[paused]
    await page.click(button)
    await until('it goes on', 10_000, async () => (await rowsOf(page))[paused].bytes > bytes)
    await page.click('#stop')
    await status(page, 'substreams', /^All substreams have ended: 50 stopped\.$/, 20_000)
    return { 'others-percent': Math.round(100 * share), 'rate-before': Math.round(before.rate) }
  },

  /** Stop comes between an open and its substream: nothing of either section goes on. */
  async 'stop-while-opening' (page, { way }) {
    await connect(page, way)
    // Of the echo.
    const granted = await until('a sample', 5_000, () => figure(page, 'committed').catch(() => 0))
    const sections = [
      ['open', 'stop', 'substreams', /^All substreams have ended: 50 stopped\.$/],
      ['records-start', 'records-stop', 'records', /^Stopped\.$/]
    ]
    for (const direction of ['down', 'up']) {
      await page.select('#direction', direction)
      for (const [start, stop, section, stopped] of sections) {
        await page.evaluate((start, stop) => {
          const button = document.getElementById(stop)
          const observer = new MutationObserver(() => {
            observer.disconnect()
            button.click()
          })
          observer.observe(button, { attributeFilter: ['disabled'] })
          document.getElementById(start).click()
        }, start, stop)
        await status(page, section, stopped, 10_000)
        await page.$eval(`#${section}-status`, element => { element.textContent = '' })
      }
    }
    // Longer than a sample, and than the program needs to fill a window.
    await sleep(2_000)
    assert(await figure(page, 'unread') < RECORD, `${await textOf(page, '#unread')} are unread`)
    const text = await textOf(page, '#committed')
    assert(await figure(page, 'committed') <= granted, `${text} are granted, before it ${granted}`)
  },

  /** Files of several sizes, by the input and by drop; with `any` nothing has connected before. */
  async file (page, { way }) {
    if (way !== 'any') await connect(page, way)
    for (const [name, length] of [['empty.bin', 0], ['one.bin', 1], ['large.bin', 5_000_001]]) {
      await temporaryFile(name, content(length), async path => {
        await (await page.$('#file')).uploadFile(path)
        await status(page, 'file', new RegExp(`^${name} came back equal: `), 60_000)
      })
      const full = await page.$$eval('#file-sent, #file-back', all =>
        all.every(one => one.value === one.max))
      assert(full, `${name}: progress is not complete`)
    }
    await page.evaluate(() => {
      const transfer = new DataTransfer()
      transfer.items.add(new File([new Uint8Array(300_000).fill(7)], 'dropped.bin'))
      document.querySelector('#drop').dispatchEvent(
        new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }))
    })
    await status(page, 'file', /^dropped\.bin came back equal: 300 kB/, 20_000)
  },

  /** A download is cut, goes on, and goes on again after the page was reloaded. */
  async 'cut-download' (page, { way }) {
    const total = 16_000_000
    return cutAndReload(page, way, { total, step: 4_000_000 }, async () => {
      await page.waitForSelector('#download:enabled', { timeout: 10_000 })
      await page.select('#transfer-size', String(total))
      await page.click('#download')
    })
  },

  /** The same with a file that is chosen again after the reload. */
  async 'cut-upload' (page, { way }) {
    // What the program has not read yet, up to a window that has grown, is lost with a connection.
    const [total, step] = [24_000_000, 8_000_000]
    return temporaryFile('upload.bin', content(total), path =>
      cutAndReload(page, way, { total, step }, async () => {
        await (await page.$('#upload-file')).uploadFile(path)
      }))
  },

  /** Of clicks that follow each other at once, the first counts. */
  async 'two-clicks' (page, { way }) {
    await page.click(`input[value=${way}]`)
    await page.waitForSelector('#download:enabled', { timeout: 10_000 })
    await page.select('#transfer-size', '16000000')
    await page.evaluate(() => {
      const element = document.querySelector('#transfer-status')
      window.said = []
      new MutationObserver(() => { window.said.push(element.textContent) })
        .observe(element, { childList: true })
    })
    const click = (...ids) => page.evaluate(ids => {
      for (const id of ids) document.getElementById(id).click()
    }, ids)
    await click('download', 'download')
    await isMoved(page, 4_000_000)
    await page.click('#transfer-stop')
    await status(page, 'transfer', /: stopped\. What has arrived is kept\.$/, 10_000)
    await click('discard', 'download')
    await status(page, 'transfer', /^Nothing is kept\.$/, 10_000)
    await sleep(1_000)
    const said = await page.evaluate(() => window.said)
    // The first download connects, and nothing else begins.
    const wrong = said.filter(words => /One transfer|connecting/.test(words)).slice(1)
    assert(wrong.length === 0 && said.at(-1) === 'Nothing is kept.', `it says ${said.join(' | ')}`)
    assert(await valueOf(page, 'transfer-kept') === 0, 'something is kept')
  },

  /** Everything arrives intact on a path of 50 ms that loses 2 % of the packets. */
  async lossy (page) {
    await lossy(page)
    await temporaryFile('lossy.bin', content(1_000_000), async path => {
      await (await page.$('#file')).uploadFile(path)
      await status(page, 'file', /^lossy\.bin came back equal: /, 90_000)
    })
    await page.click('#disconnect')
    await status(page, 'connection', /^Disconnected/, 15_000)
    await page.click('input[value=websocket]')
    await page.click('#connect')
    await status(page, 'connection', /the lossy path is one of UDP: connect by WebRTC/, 5_000)
  },

  /** A paused stream holds up the others where they share a channel, and only there. */
  async records (page) {
    await lossy(page)
    const figures = {}
    for (const arrangement of ['apart', 'together']) {
      await page.click(`input[value=${arrangement}]`)
      await page.click('#records-start')
      await until('all run', 20_000, async () => {
        const rates = await recordsOf(page)
        return rates.length === 8 && rates.every(rate => rate >= 15)
      })
      await page.click('#records tbody tr:nth-child(3) button')
      await status(page, 'records', /^Stream 3 is paused\.$/, 1_000)
      const others = async () => (await recordsOf(page)).filter((_, index) => index !== 2)
      if (arrangement === 'apart') {
        await until('the third stands still', 10_000, async () => (await recordsOf(page))[2] === 0)
        const rates = await others()
        assert(rates.every(rate => rate >= 15), `the others: ${rates}`)
      } else {
        // After 64 records of the third, nobody reads the channel.
        await until('all stand still', 20_000, async () =>
          (await others()).every(rate => rate === 0))
      }
      await page.click('#records tbody tr:nth-child(3) button')
      await until('all run again', 20_000, async () =>
        (await recordsOf(page)).every(rate => rate >= 15))
      await page.click('#records-stop')
      await status(page, 'records', /^Stopped\.$/, 5_000)
    }
    const rows = await page.$$eval('#tallies tbody tr', rows => rows.map(row =>
      [...row.cells].map(cell => cell.textContent)))
    assert(rows.length === 4, `${rows.length} rows are compared`)
    for (const [name, ...cells] of rows) figures[name] = cells.join(', ')
    return figures
  },

  /** A byte that is changed on the way is found. */
  async 'changed-file' (page) {
    await page.evaluate(() => {
      const file = new File([new Uint8Array(400_000)], 'changed.bin')
      // What is compared is read after what is sent.
      const stream = file.stream.bind(file)
      let reads = 0
      file.stream = () => {
        reads += 1
        if (reads === 1) return stream()
        const changed = new Uint8Array(400_000)
        changed[200_000] = 1
        return new Blob([changed]).stream()
      }
      const transfer = new DataTransfer()
      transfer.items.add(file)
      Object.defineProperty(transfer, 'files', { value: [file] })
      document.querySelector('#drop').dispatchEvent(
        new DragEvent('drop', { dataTransfer: transfer, bubbles: true, cancelable: true }))
    })
    const found = /^changed\.bin did not come back: byte 200000 has changed\.$/
    await status(page, 'file', found, 20_000)
  },

  /** No violation of axe-core, and no sideways scrolling, in both schemes and at both widths. */
  async accessible (page, { way }) {
    const check = async state => {
      for (const width of WIDTHS) {
        for (const scheme of SCHEMES) {
          await show(page, width, scheme)
          const found = await violations(page)
          assert(found.length === 0, `${state}, ${width} px, ${scheme}: ${found.join('; ')}`)
          const wide = await page.evaluate(width => [...document.querySelectorAll('body *')]
            .filter(element => element.getBoundingClientRect().right > width)
            .map(element => element.outerHTML.slice(0, 120)), width)
          const first = wide.slice(0, 5)
          assert(first.length === 0, `${state}, at ${width} px: beyond the edge: ${first}`)
        }
      }
    }
    await check('idle')
    await connect(page, way)
    await openFifty(page, 64_000_000)
    await until('rows', 10_000, async () => (await rowsOf(page)).length === 50)
    await page.click('#rows li:nth-child(3) button')
    await check('fifty substreams')
  },

  /** The keyboard alone connects, and reaches every control in the order of the page. */
  async keyboard (page) {
    const focused = () => page.evaluate(() => {
      const { id, className, value } = document.activeElement
      return id || className || value
    })
    await page.waitForSelector('#download:enabled', { timeout: 10_000 })
    const order = []
    for (let presses = 0; presses < 40; presses++) {
      await page.keyboard.press('Tab')
      const name = await focused()
      if (name === undefined || order.includes(name)) break
      order.push(name)
      if (name === 'file') break
    }
    const expected = [
      'skip', 'any', 'blocked', 'direct', 'connect', 'freeze', 'direction', 'size', 'open', 'apart',
      'records-start', 'transfer-size', 'upload-file', 'download', 'file'
    ]
    assert(String(order) === String(expected), `${order}`)
    await page.focus('#connect')
    await page.keyboard.press('Enter')
    await status(page, 'connection', /^Connected over /, 15_000)
    await page.focus('#freeze')
    await page.keyboard.press('Space')
    const pressed = await page.$eval('#freeze', button => button.ariaPressed)
    assert(pressed === 'true', 'it is not pressed')
  },

  /** The plot is drawn less often for people who want less motion, and not while it is frozen. */
  async 'reduced-motion' (page) {
    const draws = async ms => {
      await page.evaluate(() => {
        window.draws = 0
        window.observer?.disconnect()
        window.observer = new MutationObserver(() => { window.draws += 1 })
        window.observer.observe(document.querySelector('#plot'), { attributeFilter: ['width'] })
      })
      await sleep(ms)
      return page.evaluate(() => window.draws)
    }
    const usual = await draws(6_000)
    await page.emulateMediaFeatures([{ name: 'prefers-reduced-motion', value: 'reduce' }])
    const calm = await draws(6_000)
    assert(calm >= 1 && calm <= 4 && calm < usual, `${calm} draws, otherwise ${usual}`)
    await page.click('#freeze')
    // One may be under way.
    await draws(600)
    assert(await draws(3_000) === 0, 'a frozen plot is drawn')
  },

  /** Pictures of the page at work, for docs/. */
  async screenshots (page, { way, screenshots }) {
    assert(screenshots !== undefined, 'where? --screenshots')
    await show(page, 1280, 'light')
    await lossy(page)
    for (const arrangement of ['together', 'apart']) {
      await page.click(`input[value=${arrangement}]`)
      await page.click('#records-start')
      await sleep(10_000)
      await page.click('#records-stop')
      await status(page, 'records', /^Stopped\.$/, 5_000)
    }
    await page.click('#disconnect')
    await status(page, 'connection', /^Disconnected/, 15_000)
    await page.click('input[value=direct]')
    await page.select('#transfer-size', '32000000')
    await page.click('#download')
    await isMoved(page, 12_000_000)
    await page.click('#cut')
    await status(page, 'transfer', /: all 32 MB/, 60_000)
    await connect(page, way)
    await temporaryFile('river.bin', content(24_000_000), async path => {
      await (await page.$('#file')).uploadFile(path)
      await status(page, 'file', /came back equal/, 60_000)
    })
    await openFifty(page, 16_000_000)
    await until('a third', 60_000, async () =>
      (await rowsOf(page)).every(({ bytes }) => bytes > 5_000_000))
    await page.click('#rows li:nth-child(7) button')
    await status(page, 'substreams', COMPARED, 15_000)
    for (const width of WIDTHS) {
      for (const scheme of SCHEMES) {
        await show(page, width, scheme)
        await page.evaluate(() => { document.activeElement.blur() })
        await sleep(1_500)
        const path = join(screenshots, `page-${width}-${scheme}.png`)
        await page.screenshot({ path, fullPage: true })
      }
    }
  }
}

async function run (browser, url, name, options) {
  const page = await browser.newPage()
  const errors = []
  page.on('console', message => process.stderr.write(`page: ${message.text()}\n`))
  page.on('pageerror', error => errors.push(String(error.stack ?? error)))
  const start = performance.now()
  try {
    await page.goto(url)
    const figures = await CASES[name](page, options)
    assert(errors.length === 0, `errors in the page: ${errors.join('; ')}`)
    return { case: name, ok: true, ms: Math.round(performance.now() - start), ...figures }
  } catch (error) {
    return { case: name, ok: false, error: [error.stack ?? error, ...errors].join('; ') }
  } finally {
    await page.close()
  }
}

async function main () {
  const { command: url, address, names, values, timeoutMs } = parseCommand(USAGE, {
    firefox: { type: 'string' },
    way: { type: 'string', default: 'any' },
    screenshots: { type: 'string' }
  })
  const cases = [address, ...names]
  if (url == null || !cases.every(name => name in CASES)) return fail(USAGE)
  const { report, lastReport } = reporter()
  setDeadline(timeoutMs, lastReport)
  const { browser } = values.firefox == null
    ? await launchChromium({})
    : await launchFirefox({ sctp: values.firefox })
  let passed = true
  try {
    for (const name of cases) {
      // A page for each, so that nothing of a case is left for the next.
      const result = await run(browser, url, name, values)
      report(result)
      passed &&= result.ok
    }
  } finally {
    await browser.close()
  }
  return passed ? 0 : 1
}

main().then(status => process.exit(status), error => {
  emit({ case: 'driver', ok: false, error: String(error?.stack ?? error) })
  process.exit(1)
})
