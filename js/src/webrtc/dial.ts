// Dials a listener with webrtc-direct.

import type { WebRtcAddress } from '../address.js'
import type { PathStats } from '../api.js'
import { deferred } from '../deferred.js'
import { ConnectError, SessionError } from '../errors.js'
import type { Limits } from '../options.js'
import type { Security } from '../security.js'
import type { SessionStart } from '../session.js'
import { RtcCarrier, type ChannelSource } from './carrier.js'
import type { RtcChannel } from './channel.js'
import type { WebRtcVersion } from './version.js'

export interface WebRtcDial {
  readonly security: Security
  readonly limits: Limits
  readonly version: WebRtcVersion
  readonly signal: AbortSignal
}

/** Of a page that is denied the local network: nothing is sent, and nothing reports that. */
const PERMISSION_CHECK = 700

/**
 * How long after the last answer of the peer a browser reports that there is none, at most: after
 * two checks that failed, of which Firefox makes one in 5 s. Statistics do not tell it.
 */
const disconnectedAfter = (): number => navigator.userAgent.includes('Firefox') ? 12_000 : 7_000

/** A connection on this page. */
class PageSource implements ChannelSource {
  constructor (readonly connection: RTCPeerConnection) {}

  open (channel: RtcChannel, label: string): void {
    channel.attach(this.connection.createDataChannel(label))
  }

  async stats (): Promise<PathStats> {
    if (this.connection.connectionState === 'closed') return {}
    for (const report of (await this.connection.getStats()).values()) {
      if (report.type === 'candidate-pair' && report.currentRoundTripTime !== undefined) {
        return { roundTripTime: report.currentRoundTripTime * 1000 }
      }
    }
    return {}
  }

  close (): void {
    this.connection.close()
  }
}

/** Dials, and authenticates the listener. Throws `ConnectError`, or the reason of the signal. */
export async function dialWebRtc (address: WebRtcAddress, dial: WebRtcDial): Promise<SessionStart> {
  if (typeof RTCPeerConnection === 'undefined') {
    // Module workers have it too, although it always throws there.
    throw 'importScripts' in globalThis
      ? new ConnectError('unsupported-in-worker', 'workers have no WebRTC: connect on the page')
      : new ConnectError('unsupported', 'there is no WebRTC')
  }
  const connection = new RTCPeerConnection()
  const zero = connection.createDataChannel('', { negotiated: true, id: 0 })
  const carrier = new RtcCarrier(new PageSource(connection), zero, dial.limits.sendBuffer)
  connection.ondatachannel = ({ channel }) => { carrier.onDataChannel(channel) }
  const failed = deferred<never>()
  const abort = (): void => { failed.reject(dial.signal.reason) }
  dial.signal.addEventListener('abort', abort)
  const timers = watchDial(connection, address, dial.limits, failed.reject)
  try {
    dial.signal.throwIfAborted()
    const start = establish(connection, zero, carrier, address, dial)
    // Its failure is one of `failed` if that came first.
    start.catch(() => {})
    const started = await Promise.race([start, failed.promise])
    watchSession(connection, carrier, dial.limits.silenceTimeout)
    return started
  } catch (error) {
    connection.close()
    throw error
  } finally {
    dial.signal.removeEventListener('abort', abort)
    for (const timer of timers) clearTimeout(timer)
  }
}

async function establish (
  connection: RTCPeerConnection,
  zero: RTCDataChannel,
  carrier: RtcCarrier,
  address: WebRtcAddress,
  dial: WebRtcDial
): Promise<SessionStart> {
  const isOpen = new Promise<void>(resolve => { zero.addEventListener('open', () => { resolve() }) })
  const offer = await dial.version.negotiate(connection, address)
  // Before the path works: the first message of the peer finds it waiting.
  const context = { offer, certhash: address.certhashes[0], expectedPeer: address.peerId }
  const proven = dial.security.handshake?.(carrier.handshake, context)
  const [peer] = await Promise.all([proven, isOpen])
  return {
    carrier,
    limits: dial.limits,
    transport: 'webrtc',
    peerId: peer?.peerId,
    peerHasCredit: peer?.takesLabels ?? true
  }
}

/** Reports why a dial fails. Returns its timers. */
function watchDial (
  connection: RTCPeerConnection,
  address: WebRtcAddress,
  limits: Limits,
  fail: (error: ConnectError) => void
): Array<ReturnType<typeof setTimeout>> {
  connection.onconnectionstatechange = () => {
    if (connection.connectionState !== 'failed') return
    const { iceConnectionState } = connection
    const hasPath = iceConnectionState === 'connected' || iceConnectionState === 'completed'
    fail(hasPath
      ? new ConnectError('authentication', `the listener has another certificate: ${address.text}`)
      : new ConnectError('unreachable', `no answer from ${address.host}, UDP port ${address.port}`))
  }
  const checkPermission = async (): Promise<void> => {
    // ICE that has begun was not hindered.
    if (connection.iceConnectionState !== 'new' || !await isDenied(address.host)) return
    if (connection.iceConnectionState !== 'new') return
    fail(new ConnectError('local-network-denied', `the page may not connect to ${address.host}`))
  }
  return [
    setTimeout(() => { void checkPermission() }, Math.min(PERMISSION_CHECK, limits.connectTimeout)),
    setTimeout(() => {
      fail(new ConnectError('timed-out', `not connected within ${limits.connectTimeout} ms: ICE ${connection.iceConnectionState}`))
    }, limits.connectTimeout)
  ]
}

/** The permission that a page needs for an address: Local Network Access. */
function localNetworkOf (host: string): string | undefined {
  if (/^127\.|^::1$/.test(host)) return 'loopback-network'
  const isLocal = /^(10|192\.168|169\.254|172\.(1[6-9]|2\d|3[01]))\.|^(f[cd]|fe[89ab])..:/.test(host)
  return isLocal ? 'local-network' : undefined
}

/** Whether the browser has the permission for this address, and the page is denied it. */
async function isDenied (host: string): Promise<boolean> {
  const name = localNetworkOf(host)
  if (name === undefined || globalThis.navigator?.permissions === undefined) return false
  try {
    const { state } = await navigator.permissions.query({ name: name as PermissionName })
    return state === 'denied'
  } catch {
    // A browser without this permission.
    return false
  }
}

/** Reports the end of the connection, also when the peer is gone without a word. */
function watchSession (connection: RTCPeerConnection, carrier: RtcCarrier, silenceTimeout: number): void {
  let timer: ReturnType<typeof setTimeout> | undefined
  const silent = (): void => {
    carrier.fail(new SessionError('timed-out', `nothing from the peer for ${silenceTimeout} ms`))
  }
  const watch = (): void => {
    const { iceConnectionState, connectionState } = connection
    clearTimeout(timer)
    if (iceConnectionState === 'disconnected') {
      timer = setTimeout(silent, Math.max(0, silenceTimeout - disconnectedAfter()))
    } else if (iceConnectionState === 'failed') {
      silent()
    } else if (connectionState === 'failed' || connectionState === 'closed') {
      carrier.fail(new SessionError('lost', 'the connection broke'))
    }
  }
  connection.oniceconnectionstatechange = watch
  connection.onconnectionstatechange = watch
  watch()
}
