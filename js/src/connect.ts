// Dials one address.

import { parseAddress, type Address } from './address.js'
import { ConnectError } from './errors.js'
import { limitsOf, type Limits } from './options.js'
import type { Security } from './security.js'
import type { Session } from './api.js'
import { AnabranchSession } from './session.js'
import { dialWebRtc, type RtcDialler } from './webrtc/dial.js'
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
 * a `wss://` URL. Resolves when the listener is authenticated. Rejects with a `ConnectError`, or with
 * the reason of the signal.
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
    throw new ConnectError('invalid-option', 'no security: certificateHash, or noise()')
  }
  signal.throwIfAborted()
  if (address.kind === 'webrtc') {
    return new AnabranchSession(await webRtc(address, { security, limits, version, signal }))
  }
  const plaintext = options.plaintextWebSockets === true
  return new AnabranchSession(await dialWebSocket(address, { security, limits, plaintext, signal }))
}
