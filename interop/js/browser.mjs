#!/usr/bin/env node
// Headless Chromium as a webrtc-direct dialler; README.md tells how to drive it.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { chromium } from 'playwright-core'
import { fail, parseCommand, reporter, setDeadline } from './src/cli.mjs'

const USAGE = 'browser.mjs dial MULTIADDR [CASE...] [--v2] [--no-munge] [--agent PREFIX] [--timeout-s S] | ' +
  'browser.mjs v2 MULTIADDR [--no-munge] [--timeout-s S] | browser.mjs websocket URL IDLE_MS'

const PAGES = { dial: 'src/page-dial.mjs', v2: 'src/page-v2.mjs', websocket: 'src/page-websocket.mjs' }

const CHROMIUM_ARGS = [
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  // Gather a candidate on the loopback interface too: a machine with no other could not dial at all.
  '--allow-loopback-in-peer-connection'
]

// The trial with which Chromium refuses SDP whose ufrag or password a page has changed.
const NO_MUNGE_ARG = '--force-fieldtrials=WebRTC-NoSdpMangleUfrag/Enabled/'

async function bundle (entry) {
  const result = await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'chrome120',
    write: false,
    logLevel: 'warning'
  })
  return result.outputFiles[0].contents
}

/** Serves a page that runs `script`. On loopback it is a secure context, which WebCrypto asks for. */
async function servePage (script) {
  const html = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>'
  const server = createServer((request, response) => {
    const isScript = request.url === '/page.js'
    response.setHeader('content-type', isScript ? 'text/javascript' : 'text/html')
    response.end(isScript ? script : html)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }
}

function launch (noMunge) {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    headless: true,
    args: noMunge ? [...CHROMIUM_ARGS, NO_MUNGE_ARG] : CHROMIUM_ARGS
  })
}

async function openPage (browser, url, report) {
  const page = await browser.newPage()
  page.on('console', message => process.stderr.write(`page: ${message.text()}\n`))
  page.on('pageerror', error => process.stderr.write(`page: ${error.stack ?? error}\n`))
  await page.exposeFunction('report', report)
  await page.goto(url)
  await page.waitForFunction(() => 'run' in window, undefined, { timeout: 10_000 })
  return page
}

async function runPage (command, parameters, noMunge, timeoutMs) {
  const { report, lastReport } = reporter()
  // Playwright kills the browser when this process exits, at the deadline too.
  setDeadline(timeoutMs, lastReport)
  let browser
  const server = await servePage(await bundle(PAGES[command]))
  try {
    browser = await launch(noMunge)
    const page = await openPage(browser, server.url, report)
    return await page.evaluate(parameters => window.run(parameters), parameters)
  } finally {
    await browser?.close()
    server.close()
  }
}

async function main () {
  const { command, address, names, values, timeoutMs } = parseCommand(USAGE, {
    v2: { type: 'boolean', default: false },
    'no-munge': { type: 'boolean', default: false }
  })
  if (!(command in PAGES) || address == null) return fail(USAGE)
  const parameters = { address, names, agent: values.agent, v2: values.v2 }
  const passed = await runPage(command, parameters, values['no-munge'], timeoutMs)
  return passed ? 0 : 1
}

main().then(status => process.exit(status), error => {
  process.stderr.write(`${error?.stack ?? error}\n`)
  process.exit(1)
})
