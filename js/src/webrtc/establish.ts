// The part of a dial that runs where the data channels are: until the listener is authenticated.

import type { WebRtcAddress } from '../address.js'
import { deferred, unlessFailed } from '../deferred.js'
import type { Limits } from '../options.js'
import type { Peer, Security } from '../security.js'
import type { SessionStart } from '../session.js'
import type { RtcCarrier } from './carrier.js'
import type { WebRtcVersion } from './version.js'

export interface RtcDial {
  readonly security: Security
  readonly limits: Limits
  readonly version: WebRtcVersion
  readonly signal: AbortSignal
}

export interface RtcAttempt {
  readonly start: Promise<SessionStart>
  /** Our offer is known, and nothing has arrived yet. */
  onOffer (offer: string): void
  fail (error: unknown): void
}

export function establish (
  carrier: RtcCarrier,
  zero: RTCDataChannel,
  address: WebRtcAddress,
  { security, limits, signal }: RtcDial
): RtcAttempt {
  const proven = deferred<Peer | undefined>()
  const failed = deferred<never>()
  const isOpen = new Promise(resolve => { zero.addEventListener('open', resolve) })
  const established = async (): Promise<SessionStart> => {
    const [peer] = await unlessFailed(Promise.all([proven.promise, isOpen]), failed, signal)
    return {
      carrier,
      limits,
      transport: 'webrtc',
      peerId: peer?.peerId,
      peerHasCredit: peer?.takesLabels ?? true
    }
  }
  return {
    start: established(),
    onOffer (offer) {
      const context = { offer, certhash: address.certhashes[0], expectedPeer: address.peerId }
      // The first message of the peer finds it waiting.
      proven.resolve(security.handshake?.(carrier.handshake, context))
    },
    fail: failed.reject
  }
}
