// How offer and answer come about: docs/wire.md section 4.

import type { WebRtcAddress } from '../address.js'
import { answerOf, credentialOfV2 } from './sdp.js'

/** A version of webrtc-direct: version 2, unless it is `version1` of the entry `/v1`. */
export interface WebRtcVersion {
  /** Sets both descriptions. Calls `onOffer` with ours before anything can arrive. */
  negotiate (
    connection: RTCPeerConnection,
    address: WebRtcAddress,
    onOffer: (offer: string) => void
  ): Promise<void>
}

export const version2: WebRtcVersion = {
  async negotiate (connection, address, onOffer) {
    await connection.setLocalDescription()
    const offer = connection.localDescription!.sdp
    onOffer(offer)
    const sdp = answerOf(address, credentialOfV2(offer), true)
    await connection.setRemoteDescription({ type: 'answer', sdp })
  }
}
