#!/usr/bin/env node
// Runs cases of test/page/ in headless Chromium or Firefox against a listener, with one line of
// JSON for each on stdout:
//
//   browser.mjs PARAMETERS CASE... [--firefox dcsctp|usrsctp] [--chromium ARGUMENT]...
//     [--throttle] [--kill] [--timeout-s S]
//
// --throttle: Chromium slows down the timers of hidden tabs, as that of a visitor does. --kill: the
// browser is killed after the last case, in place of the end of its page.
// PARAMETERS is JSON, which the cases get. The exit status is 0 only if every case passes.

import { once } from 'node:events'
import { createServer } from 'node:http'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { launchChromium, launchFirefox } from '../../interop/js/src/browsers.mjs'
import { emit, fail, parseCommand, reporter, setDeadline } from '../../interop/js/src/cli.mjs'

const USAGE = 'browser.mjs PARAMETERS CASE... [--firefox SCTP] [--chromium ARGUMENT]... ' +
  '[--timeout-s S]'

async function bundle (entry) {
  const result = await build({
    entryPoints: [fileURLToPath(new URL(entry, import.meta.url))],
    bundle: true,
    format: 'esm',
    platform: 'browser',
    write: false,
    logLevel: 'warning'
  })
  return result.outputFiles[0].contents
}

async function servePage (scripts) {
  const html = '<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">' +
    '<script type="module" src="/page.js"></script>'
  const server = createServer((request, response) => {
    const script = scripts[request.url]
    response.setHeader('content-type', script == null ? 'text/html' : 'text/javascript')
    response.end(script ?? html)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  return { url: `http://127.0.0.1:${server.address().port}/`, close: () => server.close() }
}

async function openPage (browser, url) {
  const page = await browser.newPage()
  await page.exposeFunction('hide', async () => {
    const other = await browser.newPage()
    await other.bringToFront()
  })
  page.on('console', message => process.stderr.write(`page: ${message.text()}\n`))
  page.on('pageerror', error => process.stderr.write(`page: ${error.stack ?? error}\n`))
  await page.goto(url)
  await page.waitForFunction(() => 'run' in window, { timeout: 10_000 })
  return page
}

async function main () {
  const { command, address, names, values, timeoutMs } = parseCommand(USAGE, {
    firefox: { type: 'string' },
    chromium: { type: 'string', multiple: true, default: [] },
    throttle: { type: 'boolean', default: false },
    kill: { type: 'boolean', default: false }
  })
  const cases = [address, ...names]
  if (command == null || address == null) return fail(USAGE)
  const parameters = JSON.parse(command)
  const { report, lastReport } = reporter()
  setDeadline(timeoutMs, lastReport)
  const server = await servePage({
    '/page.js': await bundle('page/main.mjs'),
    '/worker.js': await bundle('page/worker.mjs')
  })
  // An argument may name the server of the page.
  const args = values.chromium.map(
    argument => argument.replaceAll('{page}', new URL(server.url).host)
  )
  const { browser } = values.firefox == null
    ? await launchChromium({ args, throttle: values.throttle })
    : await launchFirefox({ sctp: values.firefox })
  let passed = true
  try {
    for (const name of cases) {
      // A page for each, so that nothing of a case is left for the next.
      const page = await openPage(browser, server.url)
      const result = await page.evaluate(
        (name, parameters) => window.run(name, parameters),
        name,
        parameters
      )
      report({ case: name, ...result })
      passed &&= result.ok
      if (values.kill && name === cases.at(-1)) browser.process().kill('SIGKILL')
      else await page.close()
    }
  } finally {
    if (!values.kill) await browser.close()
    server.close()
  }
  return passed ? 0 : 1
}

main().then(status => process.exit(status), error => {
  emit({ case: 'driver', ok: false, error: String(error?.stack ?? error) })
  process.exit(1)
})
