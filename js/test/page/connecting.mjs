// Dials that succeed in other ways, and those that fail.

import { certificateHash, connectAny } from '../../dist/index.js'
import { noise } from '../../dist/noise.js'
import { version1 } from '../../dist/v1.js'
import {
  assert, assertEqual, dial, dialAddress, errorOf, serverGoes, within, withSession
} from './tools.mjs'

const OTHER_PEER = '12D3KooWGLm8QHqoGCZb4TcRfyj1g2kFpsrbfsyxvsJYQ6nTLW45'
/** Discard: nobody listens there. */
const DEAD_PORT = '9'

async function expectError (kind, dialling, limit) {
  const start = performance.now()
  const error = await within(20_000, kind, errorOf(dialling, kind))
  const ms = Math.round(performance.now() - start)
  assertEqual([error.name, error.kind], ['ConnectError', kind], error.message)
  assert(ms < limit, `${kind} after ${ms} ms, not within ${limit}`)
  return { 'error-ms': ms }
}

/** Another hash of the same form. */
const otherCerthash = address => address.replace(/(certhash\/uEi.{10})(.)/, (_, start, char) =>
  start + (char === 'A' ? 'B' : 'A'))

export const wrongCerthash = parameters =>
  expectError(
    'authentication',
    dial({ ...parameters, address: otherCerthash(parameters.address) }),
    1_000
  )

export async function wrongPeer ({ address }) {
  const other = address.replace(/\/p2p\/.*/, `/p2p/${OTHER_PEER}`)
  const options = { plaintextWebSockets: true, security: noise() }
  const figures = await expectError('authentication', dialAddress(other, options), 2_000)
  const expecting = { ...options, security: noise({ peerId: OTHER_PEER }) }
  await expectError('invalid-option', dialAddress(address, expecting), 2_000)
  return figures
}

/** Nothing is sent for an address that can not be dialled: there is not even a connection. */
export async function badAddresses ({ address }) {
  const certhash = /certhash\/[^/]+/.exec(address)[0]
  window.RTCPeerConnection = window.WebSocket = () => { throw new Error('a connection was made') }
  const options = { security: certificateHash }
  for (const [kind, bad] of [
    ['missing-certhash', '/ip4/127.0.0.1/udp/4001/webrtc-direct'],
    ['missing-certhash', `/ip4/127.0.0.1/udp/4001/webrtc-direct/p2p/${OTHER_PEER}`],
    ['invalid-address', ''],
    ['invalid-address', undefined],
    ['invalid-address', 'https://example.org/'],
    ['invalid-address', '/ip4/127.0.0.1/udp/4001/quic-v1'],
    ['invalid-address', `/ip4/127.0.0.1/tcp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', `/ip4/127.0.0.1/udp/0/webrtc-direct/${certhash}`],
    ['invalid-address', `/ip4/127.0.0.1/udp/65536/webrtc-direct/${certhash}`],
    ['invalid-address', `/ip4/127.0.0.256/udp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', `/ip4/2130706433/udp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', `/ip6/::g/udp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', `/dns4/example.org/udp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', '/ip4/127.0.0.1/udp/4001/webrtc-direct/certhash/uEiA'],
    ['invalid-address', `/ip4/127.0.0.1/udp/4001/webrtc-direct/${certhash}/p2p-circuit`],
    ['invalid-address', `/ip4/127.0.0.1\r\na=b/udp/4001/webrtc-direct/${certhash}`],
    ['invalid-address', '/ip4/127.0.0.1/udp/4001/ws'],
    ['invalid-option', 'ws://example.org/']
  ]) {
    await expectError(kind, dialAddress(bad, options), 100)
  }
  await expectError('invalid-option', dialAddress(address, {}), 100)
  await expectError('invalid-option', dialAddress(address, { ...options, sendBuffer: 1 }), 100)
  await expectError('invalid-option', connectAny([], options), 100)
}

/** Nobody answers. */
export async function nobodyListens ({ address }) {
  const dead = address.replace(/udp\/\d+/, `udp/${DEAD_PORT}`)
  const options = { security: certificateHash, connectTimeout: 2_000 }
  return expectError('timed-out', dialAddress(dead, options), 3_000)
}

export async function abortedDial ({ address }) {
  const dead = address.replace(/udp\/\d+/, `udp/${DEAD_PORT}`)
  const controller = new AbortController()
  const dialling = errorOf(
    dialAddress(dead, { security: certificateHash, signal: controller.signal }),
    'dial'
  )
  const reason = new Error('no longer wanted')
  setTimeout(() => controller.abort(reason), 50)
  assert(await within(1_000, 'abort', dialling) === reason, 'another error than the reason')
}

export const echoOverVersion1 = parameters =>
  withSession(parameters, { version: version1 }, async () => {})

export const mungingIsRefused = ({ address }) =>
  expectError(
    'munging-refused',
    dialAddress(address, { security: certificateHash, version: version1 }),
    1_000
  )

export const localNetworkIsDenied = parameters =>
  expectError('local-network-denied', dial(parameters), 1_000)

/** WebRTC wins, and the WebSocket is not dialled. */
export async function anyPrefersWebrtc ({ addresses }) {
  // However long a handshake takes on a machine that is busy.
  const webSocketHeadStart = 10_000
  const options = { security: noise(), plaintextWebSockets: true, webSocketHeadStart }
  const { session, address, lost } = await connectAny(addresses, options)
  assert(address.includes('webrtc-direct'), address)
  assertEqual(session.transport, 'webrtc', 'transport')
  assertEqual(
    lost.map(({ error }) => error),
    lost.map(() => undefined),
    'errors of those that lost'
  )
  session.close({ closeCode: 7, reason: 'done' })
  await session.closed
}

/** With UDP blocked a WebSocket is reached soon after the head start. */
export async function anyFallsBack ({ addresses }) {
  const blocked = addresses.map(address => address.replace(/udp\/\d+/, `udp/${DEAD_PORT}`))
  const options = { security: noise(), plaintextWebSockets: true }
  const start = performance.now()
  const { session, address } = await connectAny(blocked, options)
  const ms = Math.round(performance.now() - start)
  assert(address.includes('/ws'), address)
  assert(ms >= 300 && ms < 3_000, `after ${ms} ms`)
  session.close({ closeCode: 7, reason: 'done' })
  await session.closed
  return { 'fallback-ms': ms }
}

export async function allFail ({ addresses }) {
  const wrong = addresses.filter(address => address.includes('webrtc-direct')).map(otherCerthash)
  const error = await errorOf(connectAny(wrong, { security: noise() }), 'connectAny')
  assertEqual([error.kind, error.attempts.length], ['all-failed', wrong.length], 'error')
  for (const [index, attempt] of error.attempts.entries()) {
    assertEqual([attempt.address, attempt.error.kind], [wrong[index], 'authentication'], 'attempt')
  }
}

/** The listener is gone without a word. */
export async function listenerDies (parameters) {
  const { session, endMs } = await serverGoes(parameters)
  const late = await errorOf(session.createBidirectionalStream(), 'open')
  assertEqual(late.name, 'SessionError', 'open')
  return { 'end-ms': endMs }
}

/** The listener closes, with a code and a reason. */
export async function listenerCloses (parameters) {
  const session = await dial(parameters)
  const substream = await session.createBidirectionalStream({ protocol: '/close' })
  substream.writable.close().catch(() => {})
  const info = await within(5_000, 'the end', session.closed)
  assertEqual(info, { closeCode: 70_000, reason: 'maintenance' }, 'closed')
  assertEqual((await errorOf(session.createBidirectionalStream(), 'open')).kind, 'closed', 'open')
}

/** The listener drains: what is open goes on, and the session ends after it. */
export async function listenerDrains (parameters) {
  const session = await dial(parameters)
  const substream = await session.createBidirectionalStream({ protocol: '/drain' })
  await within(5_000, 'draining', session.draining)
  assertEqual((await errorOf(session.createBidirectionalStream(), 'open')).kind, 'draining', 'open')
  const writer = substream.writable.getWriter()
  await writer.write(Uint8Array.of(1, 2, 3))
  await writer.close()
  await within(5_000, 'the end', session.closed)
  await substream.finished
}

/** The page is left in the middle of a transfer: the test closes it. */
export async function pageLeaves (parameters) {
  const session = await dial(parameters)
  const substream = await session.createBidirectionalStream({ protocol: '/see-end' })
  const reader = substream.readable.getReader()
  for (let read = 0; read < 1_000_000;) read += (await reader.read()).value.length
}
