// What the cases share.

import { certificateHash, connect } from '../../dist/index.js'
import { multistream } from '../../dist/multistream.js'
import { noise } from '../../dist/noise.js'

export function assert (condition, message) {
  if (!condition) throw new Error(message)
}

export function assertEqual (got, expected, message) {
  const [a, b] = [got, expected].map(value => JSON.stringify(value) ?? String(value))
  assert(a === b, `${message}: ${a}, not ${b}`)
}

/** The error with which a promise rejects. */
export async function errorOf (promise, what) {
  try {
    await promise
  } catch (error) {
    return error
  }
  throw new Error(`${what}: no error`)
}

export function within (ms, what, promise) {
  let timer
  const late = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${ms} ms`)), ms)
  })
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

let webRtc

/** Dials of this worker go through its page. */
export function useWebRtc (dialler) {
  webRtc = dialler
}

/** `connect`, with the WebRTC of this worker or process. */
export const dialAddress = (address, options) => connect(address, { webRtc, ...options })

/**
 * Dials the listener of the test, as its parameters say. With `protocols`, which are those that the
 * listener may open, it negotiates by multistream-select.
 */
export async function dial ({ address, security, protocols }, options) {
  const session = await dialAddress(address, {
    security: security === 'noise' ? noise() : certificateHash,
    plaintextWebSockets: true,
    ...options
  })
  return protocols === undefined ? session : multistream(session, { protocols })
}

/** Runs `body` with a session to the listener, and closes that in peace. */
export async function withSession (parameters, options, body) {
  const session = await dial(parameters, options)
  const { peerId } = session
  const expected = parameters.security === 'noise' ? parameters.peerId : undefined
  assertEqual(peerId, expected, 'peer id')
  const figures = await body(session)
  const { substreams } = await session.getStats()
  assertEqual(substreams, 0, 'substreams that are left')
  session.close({ closeCode: 7, reason: 'done' })
  assertEqual(
    await within(5_000, 'close', session.closed),
    { closeCode: 7, reason: 'done' },
    'closed'
  )
  return figures
}

/**
 * Dials, and has the listener go without a word, by what the test does when `/die` is closed.
 * Resolves to the session, and to the milliseconds until it ended.
 */
export async function serverGoes (parameters) {
  const session = await dial(parameters)
  const held = await session.createBidirectionalStream({ protocol: '/hold' })
  const reader = held.readable.getReader()
  await reader.read()
  const last = await session.createBidirectionalStream({ protocol: '/die' })
  const start = performance.now()
  last.writable.close().catch(() => {})
  const error = await within(20_000, 'the end', errorOf(session.closed, 'closed'))
  const endMs = Math.round(performance.now() - start)
  assertEqual(error.name, 'SessionError', 'error')
  assert(['timed-out', 'lost'].includes(error.kind), error.kind)
  assert(endMs < 15_000, `after ${endMs} ms`)
  const failure = await within(1_000, 'read', errorOf(reader.read(), 'read'))
  assertEqual([failure.kind, failure.source, failure.cause], ['session', 'session', error], 'read')
  return { session, endMs }
}

/** Content whose byte at `offset` is `offset % 251`. */
export function pattern (length, offset = 0) {
  const bytes = new Uint8Array(length)
  for (let index = 0; index < length; index++) bytes[index] = (offset + index) % 251
  return bytes
}

export async function readAll (readable, onChunk = () => {}) {
  const chunks = []
  for await (const chunk of chunksOf(readable)) {
    chunks.push(chunk)
    onChunk(chunk)
  }
  const all = new Uint8Array(chunks.reduce((length, chunk) => length + chunk.length, 0))
  let at = 0
  for (const chunk of chunks) {
    all.set(chunk, at)
    at += chunk.length
  }
  return all
}

/** Not every browser can iterate over a stream. */
export async function * chunksOf (readable) {
  const reader = readable.getReader()
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    yield value
  }
}

export function sameBytes (a, b) {
  return a.length === b.length && a.every((byte, index) => byte === b[index])
}

export const open = (session, protocol, options) =>
  within(5_000, `open ${protocol}`, session.createBidirectionalStream({ protocol, ...options }))

/** Sends `content` and ends the direction, which the listener confirms. */
export async function send (substream, content) {
  const writer = substream.writable.getWriter()
  await writer.write(content)
  await within(10_000, 'FIN_ACK', writer.close())
}
