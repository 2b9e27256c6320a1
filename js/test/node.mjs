#!/usr/bin/env node
// Runs cases of test/page/ in this process against a listener, with one line of JSON for each on
// stdout:
//
//   node.mjs PARAMETERS CASE...
//
// PARAMETERS is JSON, which the cases get. The exit status is 0 only if every case passes.

import { parseArgs } from 'node:util'
import { webRtc } from '../dist/node.js'
import * as connecting from './page/connecting.mjs'
import * as flow from './page/flow.mjs'
import * as multistream from './page/multistream.mjs'
import * as payloads from './page/payloads.mjs'
import * as substreams from './page/substreams.mjs'
import { assert, open, send, useWebRtc, within, withSession } from './page/tools.mjs'
import { uint64 } from './page/transfers.mjs'

const MIB = 1024 * 1024

/** What this process holds for a reader that reads nothing, below the session too. */
const stalledInMemory = parameters => withSession(parameters, {}, async session => {
  const stalled = await open(session, '/download')
  await send(stalled, uint64(256 * MIB))
  const reader = stalled.readable.getReader()
  for (let read = 0; read < MIB;) read += (await reader.read()).value.length
  const buffers = () => {
    globalThis.gc()
    return process.memoryUsage()
  }
  const before = buffers()
  // Until nothing has arrived for a second.
  let [held, last] = [0, -1]
  for (let round = 0; held !== last; round++) {
    assert(round < 30, 'it goes on')
    await new Promise(resolve => { setTimeout(resolve, 1_000) });
    [held, last] = [(await session.getStats()).bytesReceived, held]
  }
  const after = buffers()
  const [grown, resident] = ['arrayBuffers', 'rss'].map(key => after[key] - before[key])
  assert(grown <= 4 * MIB, `buffers have grown by ${grown} bytes`)
  assert(resident <= 48 * MIB, `the process has grown by ${resident} bytes`)
  await reader.cancel()
  await within(10_000, 'finished', stalled.finished)
  return { 'received-kib': Math.round(held / 1024), 'resident-kib': Math.round(resident / 1024) }
})

const CASES = {
  ...connecting, ...flow, ...multistream, ...payloads, ...substreams, stalledInMemory
}

const functionOf = name => CASES[name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())]

const { positionals: [parameters, ...cases] } = parseArgs({ allowPositionals: true })
useWebRtc(webRtc)
for (const name of cases) {
  const start = performance.now()
  try {
    const figures = await functionOf(name)(JSON.parse(parameters))
    const ms = Math.round(performance.now() - start)
    console.log(JSON.stringify({ case: name, ok: true, ms, ...figures }))
  } catch (error) {
    console.log(JSON.stringify({ case: name, ok: false, error: String(error?.stack ?? error) }))
    process.exitCode = 1
  }
}
