#!/usr/bin/env node
// The WebSocket carrier from Node, with the package `ws`; README.md describes its interface.

import { WebSocket } from 'ws'
import { fail, parseCommand, reporter, setDeadline } from './src/cli.mjs'
import { runWebSocketCases } from './src/websocket-cases.mjs'

const USAGE = 'websocket.mjs dial URL IDLE_MS [--timeout-s S]'

async function main () {
  const { command, address, names: [idleMs], timeoutMs } = parseCommand(USAGE)
  if (command !== 'dial' || address == null || !(Number(idleMs) > 0)) return fail(USAGE)
  const { report, lastReport } = reporter()
  setDeadline(timeoutMs, lastReport)
  const passed = await runWebSocketCases({
    WebSocket,
    url: address,
    idleMs: Number(idleMs),
    holdsPongs: true,
    report
  })
  return passed ? 0 : 1
}

main().then(status => process.exit(status), error => {
  process.stderr.write(`${error?.stack ?? error}\n`)
  process.exit(1)
})
