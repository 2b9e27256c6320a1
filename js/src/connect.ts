// Dials one address.

import { parseAddress, type Address, type WebRtcAddress } from './address.js'
import { ConnectError, notWithin } from './errors.js'
import { limitsOf, type Limits } from './options.js'
import type { Security } from './security.js'
import type { Session } from './api.js'
import { AnabranchSession, type SessionStart } from './session.js'
import { dialWebRtc, type RtcDialler } from './webrtc/dial.js'
import type { RtcDial } from './webrtc/establish.js'
import { version2, type WebRtcVersion } from './webrtc/version.js'
import { dialWebSocket } from './websocket/dial.js'

export interface ConnectOptions extends Partial<Limits> {
  /**
   * How the listener is authenticated: `certificateHash`, or `noise()` of the entry `/noise`. Both
   * sides have to choose the same.
   */
  security: Security
  /** Gives up the dial. It does not end the session. */
  signal?: AbortSignal
  /** Makes the WebRTC connections of a worker: `webRtcFrom` of the entry `/worker`. */
  webRtc?: RtcDialler
  /** Default: version 2 of webrtc-direct. `version1` of the entry `/v1` is for old listeners. */
  version?: WebRtcVersion
  /**
   * Whether `ws://` may be dialled, where everybody on the path can read and change everything.
   * Default: no.
   */
  plaintextWebSockets?: boolean
}

/**
 * Connects to a listener: `/ip4/…/udp/…/webrtc-direct/certhash/…`, `/dns4/…/tcp/…/wss`, or
 * a `wss://` URL. Resolves when the listener is authenticated. Rejects with a `ConnectError`, or
 * with the reason of the signal.
 */
export async function connect (address: string, options: ConnectOptions): Promise<Session> {
  return connectTo(parseAddress(address), options, limitsOf(options))
}

/** @internal */
export async function connectTo (
  address: Address,
  options: ConnectOptions,
  limits: Limits
): Promise<Session> {
  const {
    security,
    webRtc = dialWebRtc,
    version = version2,
    signal = new AbortController().signal
  } = options
  if (security?.subprotocol === undefined) {
    throw new ConnectError('invalid-option', 'security is missing')
  }
  signal.throwIfAborted()
  const dial = { security, limits, version, signal }
  return new AnabranchSession(await (address.kind === 'webrtc'
    ? dialEach(address, dial, webRtc)
    : dialWebSocket(address, dial, options.plaintextWebSockets)))
}

/**
 * Noise binds the certificate, and a browser does not tell which of several the listener has: each
 * is dialled alone, until one is right. A peer whose certificate is right, but not its identity,
 * has the same with every other one.
 */
async function dialEach (
  address: WebRtcAddress,
  dial: RtcDial,
  webRtc: RtcDialler
): Promise<SessionStart> {
  const { security, limits } = dial
  if (!security.handshake) return webRtc(address, dial)
  let refusal: unknown
  const handshake: Security['handshake'] = (...args) =>
    security.handshake!(...args).catch((error: unknown) => { throw refusal = error })
  const until = performance.now() + limits.connectTimeout
  let failure: unknown
  for (const hash of address.certhashes) {
    const connectTimeout = Math.ceil(until - performance.now())
    if (connectTimeout <= 0) throw notWithin(limits.connectTimeout)
    try {
      return await webRtc({ ...address, certhashes: [hash] }, {
        ...dial, security: { ...security, handshake }, limits: { ...limits, connectTimeout }
      })
    } catch (error) {
      failure = error
      // The reason of an abort can be anything.
      const isCertificate = (error as ConnectError | null)?.kind === 'authentication'
      if (!isCertificate || error === refusal) break
    }
  }
  throw failure
}
