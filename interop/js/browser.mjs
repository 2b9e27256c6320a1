#!/usr/bin/env node
// Headless Chromium or Firefox as a webrtc-direct dialler; README.md describes its interface.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { FIREFOX_SCTPS, launchChromium, launchFirefox } from './src/browsers.mjs'
import { fail, parseCommand, reporter, setDeadline } from './src/cli.mjs'

const USAGE = 'browser.mjs dial MULTIADDR [CASE...] [--v2] [BROWSER] [--agent PREFIX] ' +
  '[--timeout-s S] | browser.mjs v2 MULTIADDR [BROWSER] [--timeout-s S] | ' +
  'browser.mjs websocket URL IDLE_MS [BROWSER]; ' +
  'BROWSER is --no-munge (Chromium) or --firefox dcsctp|usrsctp'

const PAGES = {
  dial: 'src/page-dial.mjs',
  v2: 'src/page-v2.mjs',
  websocket: 'src/page-websocket.mjs'
}

async function bundle (entry) {
  const result = await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: ['chrome120', 'firefox128'],
    write: false,
    logLevel: 'warning'
  })
  return result.outputFiles[0].contents
}

/** Serves a page that runs `script`. On loopback it is a secure context, which WebCrypto needs. */
async function servePage (script) {
  const html = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">' +
    '<script type="module" src="/page.js"></script>'
  const server = createServer((request, response) => {
    const isScript = request.url === '/page.js'
    response.setHeader('content-type', isScript ? 'text/javascript' : 'text/html')
    response.end(isScript ? script : html)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }
}

async function openPage (browser, url, report) {
  const page = await browser.newPage()
  page.on('console', message => process.stderr.write(`page: ${message.text()}\n`))
  page.on('pageerror', error => process.stderr.write(`page: ${error.stack ?? error}\n`))
  await page.exposeFunction('report', report)
  await page.goto(url)
  await page.waitForFunction(() => 'run' in window, { timeout: 10_000 })
  return page
}

async function runPage (command, parameters, { launch, sctps }, timeoutMs) {
  const { report, lastReport } = reporter()
  // Puppeteer kills the browser when this process exits, also at the deadline.
  setDeadline(timeoutMs, lastReport)
  const server = await servePage(await bundle(PAGES[command]))
  const { browser, usedSctps } = await launch()
  let passed
  try {
    const page = await openPage(browser, server.url, report)
    passed = await page.evaluate(parameters => window.run(parameters), parameters)
  } finally {
    await browser.close()
    server.close()
  }
  const used = usedSctps().join()
  if (used !== sctps) {
    const error = `the browser used the SCTP '${used}', not '${sctps}'`
    report({ case: 'sctp', ok: false, error })
    return false
  }
  return passed
}

/** The launcher of the browser of the options, and the SCTP that must have run in it. */
function browserOf (command, { firefox, 'no-munge': noMunge }) {
  if (firefox == null) return { launch: () => launchChromium({ noMunge }), sctps: '' }
  if (noMunge || !FIREFOX_SCTPS.includes(firefox)) return fail(USAGE)
  return {
    launch: () => launchFirefox({ sctp: firefox }),
    sctps: command === 'websocket' ? '' : firefox
  }
}

async function main () {
  const { command, address, names, values, timeoutMs } = parseCommand(USAGE, {
    v2: { type: 'boolean', default: false },
    'no-munge': { type: 'boolean', default: false },
    firefox: { type: 'string' }
  })
  if (!(command in PAGES) || address == null) return fail(USAGE)
  const parameters = { address, names, agent: values.agent, v2: values.v2 }
  const passed = await runPage(command, parameters, browserOf(command, values), timeoutMs)
  return passed ? 0 : 1
}

main().then(status => process.exit(status), error => {
  process.stderr.write(`${error?.stack ?? error}\n`)
  process.exit(1)
})
