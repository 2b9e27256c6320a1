#!/usr/bin/env node
// js-libp2p in Node as a webrtc-direct listener or dialler; README.md describes its interface.

import './src/polyfill.mjs'
import { runCases } from './src/cases.mjs'
import {
  emit, fail, parseCommand, reporter, setDeadline, surviveUnhandledRejections
} from './src/cli.mjs'
import { describe } from './src/errors.mjs'
import { createNode } from './src/libp2p.mjs'
import { serve } from './src/responders.mjs'
import { within } from './src/within.mjs'

const USAGE = 'node.mjs listen [MULTIADDR] | ' +
  'dial MULTIADDR [CASE...] [--agent PREFIX] [--timeout-s S]'

function stdinEnd () {
  return new Promise(resolve => {
    process.stdin.on('end', resolve)
    process.stdin.on('error', resolve)
    process.stdin.resume()
  })
}

/**
 * Listens until stdin ends, which also happens when the driving test dies. Reports a failed
 * responder as a line.
 */
async function listen (address = '/ip4/127.0.0.1/udp/0/webrtc-direct') {
  let failed = false
  const node = await createNode([address])
  await serve(node, (protocol, error) => {
    failed = true
    emit({ responder: protocol, error: describe(error) })
  })
  emit({ listen: node.getMultiaddrs()[0].toString(), pid: process.pid })
  await stdinEnd()
  await within(3000, 'stop of js-libp2p', Promise.resolve(node.stop()))
    .catch(error => process.stderr.write(`${describe(error)}\n`))
  return failed ? 1 : 0
}

async function dial (address, names, { agent }, timeoutMs) {
  const { report, lastReport } = reporter()
  setDeadline(timeoutMs, lastReport)
  const passed = await runCases({ address, names, agent, report })
  return passed ? 0 : 1
}

async function main () {
  const { command, address, names, values, timeoutMs } = parseCommand(USAGE)
  if (command === 'listen') return listen(address)
  if (command === 'dial' && address != null) return dial(address, names, values, timeoutMs)
  return fail(USAGE)
}

surviveUnhandledRejections()
// node-datachannel has threads that would keep the process alive.
main().then(status => process.exit(status), error => {
  process.stderr.write(`${error?.stack ?? error}\n`)
  process.exit(1)
})
