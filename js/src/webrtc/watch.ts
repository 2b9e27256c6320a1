// What the browser reports of a connection: why a dial fails, and that the peer is gone.

import type { WebRtcAddress } from '../address.js'
import { watchdog } from '../deferred.js'
import { ConnectError, notWithin, SessionError } from '../errors.js'

// Node 20 has no `navigator`.
export const isFirefox = (): boolean | undefined =>
  globalThis.navigator?.userAgent.includes('Firefox')

/** Of a page that is denied the local network: nothing is sent, and nothing reports that. */
const PERMISSION_CHECK = 700

/**
 * How long after the last answer of the peer a browser reports that there is none, at most: after
 * two checks that failed, of which Firefox makes one in 5 s. Statistics do not tell it.
 */
const disconnectedAfter = (): number => isFirefox() ? 12_000 : 8_000

/** Reports why a dial fails, until the result is called. */
export function watchDial (
  connection: RTCPeerConnection,
  address: WebRtcAddress,
  connectTimeout: number,
  fail: (error: ConnectError) => void
): () => void {
  connection.onconnectionstatechange = () => {
    if (connection.connectionState !== 'failed') return
    const hasPath = /connected|completed/.test(connection.iceConnectionState)
    fail(hasPath
      ? new ConnectError('authentication', `another certificate: ${address.text}`)
      : new ConnectError('unreachable', `no answer: ${address.text}`))
  }
  const checkPermission = async (): Promise<void> => {
    const isDenied = connection.iceConnectionState === 'new' && await isDeniedTo(address.host)
    // ICE that has begun was not hindered.
    if (!isDenied || connection.iceConnectionState !== 'new') return
    fail(new ConnectError('local-network-denied', `not allowed: ${address.text}`))
  }
  const timers = [
    setTimeout(() => { void checkPermission() }, PERMISSION_CHECK),
    setTimeout(() => {
      fail(notWithin(connectTimeout, `: ICE ${connection.iceConnectionState}`))
    }, connectTimeout)
  ]
  return () => { timers.forEach(clearTimeout) }
}

/** The permission that a page needs for an address: Local Network Access. */
function localNetworkOf (host: string): string | undefined {
  if (/^127\.|^::1$/.test(host)) return 'loopback-network'
  const isLocal =
    /^(10|192\.168|169\.254|172\.(1[6-9]|2\d|3[01]))\.|^(f[cd]|fe[89ab])..:/.test(host)
  return isLocal ? 'local-network' : undefined
}

/** Whether the browser has the permission for this address, and the page is denied it. */
async function isDeniedTo (host: string): Promise<boolean> {
  try {
    const name = localNetworkOf(host) as PermissionName
    return (await navigator.permissions.query({ name })).state === 'denied'
  } catch {
    // A browser without this permission, or an address that needs none.
    return false
  }
}

/** Reports the end of the connection, also when the peer is gone without a word. */
export function watchSession (
  connection: RTCPeerConnection,
  silenceTimeout: number,
  fail: (error: SessionError) => void
): void {
  let timer: ReturnType<typeof setTimeout> | undefined
  const silent = (): void => {
    fail(new SessionError('timed-out', `silent for ${silenceTimeout} ms`))
  }
  const watch = (): void => {
    const { iceConnectionState, connectionState } = connection
    clearTimeout(timer)
    if (iceConnectionState === 'disconnected') {
      timer = watchdog(silent, Math.max(0, silenceTimeout - disconnectedAfter()))
    } else if (iceConnectionState === 'failed') {
      silent()
    } else if (/failed|closed/.test(connectionState)) {
      fail(new SessionError('lost', 'the connection broke'))
    }
  }
  connection.oniceconnectionstatechange = connection.onconnectionstatechange = watch
  watch()
}
