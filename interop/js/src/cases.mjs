// The dialler's side of every interop case. Runs in Node and, bundled, in a browser page.

import './polyfill.mjs'
import { multiaddr } from '@multiformats/multiaddr'
import { describe, isReset } from './errors.mjs'
import { createNode } from './libp2p.mjs'
import * as protocols from './protocols.mjs'
import { patternPieces } from './pattern.mjs'
import { serve } from './responders.mjs'
import { Substream } from './substream.mjs'
import { STEP_MS, sleep, step, within } from './within.mjs'

const PINGS = 5
const ECHO_BYTES = 100_000
const BULK_BYTES = 4 * 1024 * 1024
const THROUGHPUT_BYTES = 64 * 1024 * 1024
const BULK_STREAMS = 3
const SEQUENTIAL_STREAMS = 50

/** Opens a substream for `use`. A failure resets it, so a case leaves nothing to the next one. */
async function withSubstream ({ connection }, protocol, use) {
  const { maxOutboundStreams } = protocols.STREAM_LIMITS
  const stream = await step(`opening ${protocol}`, signal =>
    connection.newStream([protocol], { maxOutboundStreams, signal }))
  const substream = new Substream(stream)
  try {
    return await use(substream)
  } catch (error) {
    substream.abort(error)
    throw error
  }
}

async function writePatternAndClose (substream, total) {
  await substream.writePattern(total)
  await substream.closeWrite()
}

function concat (pieces) {
  return new Blob([...pieces]).arrayBuffer()
}

async function sha256 (bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes))
  return Array.from(digest, byte => byte.toString(16).padStart(2, '0')).join('')
}

function expectEqual (what, actual, expected) {
  if (actual !== expected) {
    throw new Error(`${what} is ${actual}, not ${expected}`)
  }
}

function expectServedProtocols (where, listed) {
  const missing = protocols.SERVED_PROTOCOLS.filter(protocol => !listed.includes(protocol))
  if (missing.length > 0) {
    throw new Error(`${where} lacks ${missing.join(', ')}`)
  }
}

/**
 * js-libp2p identifies every new peer by itself and allows one such substream at a time, so this
 * checks the result of that one.
 */
async function identify ({ node, connection, identified, agent }) {
  const result = await within(STEP_MS, 'result of identify', identified)
  expectServedProtocols('identify', result.protocols)
  if (!result.agentVersion?.startsWith(agent)) {
    throw new Error(`agentVersion is ${result.agentVersion}, not ${agent}...`)
  }
  const peer = await node.peerStore.get(connection.remotePeer)
  expectServedProtocols('peerStore', peer.protocols)
}

async function ping ({ node, connection }) {
  for (let i = 1; i <= PINGS; i++) {
    await step(`ping ${i}`, signal => node.services.ping.ping(connection.remotePeer, { signal }))
  }
}

async function echo100k (context) {
  await withSubstream(context, protocols.ECHO, async substream => {
    const [echoed] = await Promise.all([
      substream.readToEnd(),
      writePatternAndClose(substream, ECHO_BYTES)
    ])
    expectEqual('echoed length', echoed.length, ECHO_BYTES)
    const sent = await concat(patternPieces(ECHO_BYTES))
    expectEqual('sha256 of the echo', await sha256(echoed), await sha256(sent))
    await substream.closed()
  })
}

async function benchOnce (context, up, down) {
  await withSubstream(context, protocols.BENCH, async substream => {
    const header = new DataView(new ArrayBuffer(16))
    header.setBigUint64(0, BigInt(up))
    header.setBigUint64(8, BigInt(down))
    await substream.write(new Uint8Array(header.buffer))
    await writePatternAndClose(substream, up)
    await substream.readPatternToEnd(down)
    await substream.closed()
  })
}

function bulk1x4m (context) {
  return benchOnce(context, BULK_BYTES, BULK_BYTES)
}

/** Connections one after another, an echo on each. That of the other cases ends here. */
async function dials (context, count) {
  for (let i = 1; i <= count; i++) {
    const { connection } = context
    await step(`closing before dial ${i}`, signal => connection.close({ signal }))
    context.connection = await step(`dial ${i}`, signal => (
      context.node.dial(multiaddr(context.address), { signal })
    ))
    if (context.connection === connection) throw new Error('no new connection')
    await withSubstream(context, protocols.ECHO, async substream => {
      const [echoed] = await Promise.all([
        substream.readToEnd(),
        substream.write(new TextEncoder().encode(`dial ${i}`)).then(() => substream.closeWrite())
      ])
      expectEqual('echo', new TextDecoder().decode(echoed), `dial ${i}`)
      await substream.closed()
    })
  }
}

function up64m (context) {
  return benchOnce(context, THROUGHPUT_BYTES, 0)
}

function down64m (context) {
  return benchOnce(context, 0, THROUGHPUT_BYTES)
}

async function bulk3x4m (context) {
  const bench = () => benchOnce(context, BULK_BYTES, BULK_BYTES)
  await Promise.all(Array.from({ length: BULK_STREAMS }, bench))
}

async function sequential50 (context) {
  for (let i = 1; i <= SEQUENTIAL_STREAMS; i++) {
    await withSubstream(context, protocols.ECHO, async substream => {
      const [echoed] = await Promise.all([
        substream.readToEnd(),
        substream.write(new TextEncoder().encode(`substream ${i}`))
          .then(() => substream.closeWrite())
      ])
      expectEqual('echo', new TextDecoder().decode(echoed), `substream ${i}`)
      await substream.closed()
    })
  }
}

async function halfCloseLocal (context) {
  await withSubstream(context, protocols.HALF_CLOSE, async substream => {
    await writePatternAndClose(substream, 1000)
    await substream.readPatternToEnd(protocols.HALF_CLOSE_BYTES)
    await substream.closed()
  })
}

/** Opens a result protocol, which takes no input, and returns its answer of `length` bytes. */
function ask (context, protocol, length) {
  return withSubstream(context, protocol, async substream => {
    const [answer] = await Promise.all([substream.readToEnd(), substream.closeWrite()])
    expectEqual(`length of the answer on ${protocol}`, answer.length, length)
    await substream.closed()
    return answer
  })
}

async function halfCloseRemote (context) {
  await withSubstream(context, protocols.HALF_CLOSE_REMOTE, async substream => {
    await substream.readPatternToEnd(protocols.HALF_CLOSE_BYTES)
    await writePatternAndClose(substream, protocols.HALF_CLOSE_BYTES)
    await substream.closed()
  })
  const answer = await ask(context, protocols.HALF_CLOSE_RESULT, 8)
  const count = new DataView(answer.buffer).getBigUint64(0)
  expectEqual('count at the responder', count, BigInt(protocols.HALF_CLOSE_BYTES))
}

async function resetLocal (context) {
  await withSubstream(context, protocols.RESET_ME, async substream => {
    await substream.writePattern(protocols.RESET_ME_BYTES)
    await substream.readExactly(1)
    substream.abort(new Error('reset-local'))
  })
  const [sawReset] = await ask(context, protocols.RESET_RESULT, 1)
  expectEqual('sight of the reset at the responder', sawReset, 1)
}

async function resetRemote (context) {
  await withSubstream(context, protocols.RESET_YOU, async substream => {
    await substream.write(Uint8Array.of(0))
    const end = await substream.readToEnd().then(() => 'a clean end', error => error)
    if (!isReset(end)) {
      throw new Error(`expected a reset, saw ${describe(end)}`)
    }
  })
}

/** Every substream of the earlier cases must be closed by now; a leaked one would never close. */
async function noStreamsLeft (connection) {
  const giveUpAt = Date.now() + 5000
  while (connection.streams.length > 0) {
    if (Date.now() > giveUpAt) {
      const left = connection.streams.map(
        ({ direction, protocol, id, status }) => `${direction} ${protocol} ${id}: ${status}`
      )
      throw new Error(`substreams left open: ${left.join(', ')}`)
    }
    await sleep(20)
  }
}

async function close ({ connection }) {
  await noStreamsLeft(connection)
  let failure
  connection.addEventListener('close', event => { failure = event.error })
  await step('closing the connection', signal => connection.close({ signal }))
  if (failure != null) throw failure
  expectEqual('connection status', connection.status, 'closed')
}

/** All cases in the order in which they run: `close` ends the connection. */
export const CASES = {
  identify,
  ping,
  'echo-100k': echo100k,
  'bulk-1x4m': bulk1x4m,
  'bulk-3x4m': bulk3x4m,
  'sequential-50': sequential50,
  'half-close-local': halfCloseLocal,
  'half-close-remote': halfCloseRemote,
  'reset-local': resetLocal,
  'reset-remote': resetRemote,
  close
}

/** Cases that run only when they are named. */
const IF_NAMED = {
  'up-64m': up64m,
  'down-64m': down64m,
  'dials-20': context => dials(context, 20),
  'dials-200': context => dials(context, 200)
}

/** Reports the result of `run` as `name`; resolves to whether it passed. */
async function reported (name, report, run) {
  const start = performance.now()
  try {
    await run()
    await report({ case: name, ok: true, ms: Math.round(performance.now() - start) })
    return true
  } catch (error) {
    await report({ case: name, ok: false, error: describe(error) })
    return false
  }
}

function selectCases (names) {
  const all = { ...CASES, ...IF_NAMED }
  const unknown = names.filter(name => !(name in all))
  if (unknown.length > 0) {
    const known = Object.keys(all).join(', ')
    throw new Error(`no such case: ${unknown.join(', ')}; there are ${known}`)
  }
  if (names.length === 0) return Object.entries(CASES)
  return Object.entries(all).filter(([name]) => names.includes(name))
}

function nextIdentify (node) {
  return new Promise(resolve => {
    node.addEventListener('peer:identify', event => resolve(event.detail), { once: true })
  })
}

/**
 * Dials `address` and runs the named cases, or all, in the order of CASES. Passes each to `report`
 * when it ends, after one line for `connect`. Resolves to whether all passed.
 */
export async function runCases ({ address, names, agent, report }) {
  const selected = selectCases(names)
  const node = await createNode()
  try {
    let failed = false
    await serve(node, async (protocol, error) => {
      failed = true
      await report({ case: `responder of ${protocol}`, ok: false, error: describe(error) })
    })
    const context = { node, address, agent, identified: nextIdentify(node) }
    let passed = await reported('connect', report, async () => {
      context.connection = await step('dialling', signal => (
        node.dial(multiaddr(address), { signal })
      ))
    })
    if (!passed) return false
    for (const [name, run] of selected) {
      passed = await reported(name, report, () => run(context)) && passed
    }
    return passed && !failed
  } finally {
    await step('stopping js-libp2p', () => node.stop())
  }
}
