// Dials a WebSocket.

import type { WebSocketAddress } from '../address.js'
import { deferred, unlessFailed } from '../deferred.js'
import { ConnectError, notWithin } from '../errors.js'
import type { Limits } from '../options.js'
import type { Security } from '../security.js'
import type { SessionStart } from '../session.js'
import { WsCarrier } from './carrier.js'

export interface WebSocketDial {
  readonly security: Security
  readonly limits: Limits
  readonly signal: AbortSignal
}

/** Dials, and authenticates the server. Throws `ConnectError`, or the reason of the signal. */
export async function dialWebSocket (
  address: WebSocketAddress,
  dial: WebSocketDial,
  plaintext: boolean | undefined
): Promise<SessionStart> {
  const { security, limits, signal } = dial
  if (address.url.startsWith('ws:') && plaintext !== true) {
    throw new ConnectError('invalid-option', `plaintextWebSockets is not set: ${address.url}`)
  }
  if (typeof WebSocket === 'undefined') {
    throw new ConnectError('unsupported', 'there is no WebSocket')
  }
  let socket: WebSocket
  try {
    socket = new WebSocket(address.url, security.subprotocol)
  } catch (cause) {
    throw new ConnectError('unsupported', `the browser refuses ${address.url}`, { cause })
  }
  const carrier = new WsCarrier(socket, limits.sendBuffer)
  const failed = deferred<never>()
  const timer = setTimeout(() => {
    failed.reject(notWithin(limits.connectTimeout))
  }, limits.connectTimeout)
  // Browsers say no more: a page must not scan the network.
  socket.onerror = () => {
    failed.reject(new ConnectError('unreachable', `no WebSocket at ${address.url}`))
  }
  try {
    const isOpen = new Promise(resolve => { socket.onopen = resolve })
    const proven = security.handshake?.(carrier.handshake, { expectedPeer: address.peerId })
    const [peer] = await unlessFailed(Promise.all([proven, isOpen]), failed, signal)
    socket.onerror = null
    return { carrier, limits, transport: 'websocket', peerId: peer?.peerId, peerHasCredit: true }
  } catch (error) {
    socket.close()
    throw error
  } finally {
    clearTimeout(timer)
  }
}
