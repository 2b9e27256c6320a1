// The entry `/v1`: version 1 of webrtc-direct, for listeners that support no other.

import { ConnectError } from './errors.js'
import { answerOf, candidateOf, mungedOffer } from './webrtc/sdp.js'
import type { WebRtcVersion } from './webrtc/version.js'

const PREFIX = 'libp2p+webrtc+v1/'

/**
 * Version 1 of webrtc-direct. It needs SDP that the page has changed, which browsers begin to
 * refuse: the dial then fails with `munging-refused`.
 */
export const version1: WebRtcVersion = {
  async negotiate (connection, address, onOffer) {
    const random = crypto.getRandomValues(new Uint8Array(24))
    const credential = PREFIX + Array.from(random, byte => (byte % 36).toString(36)).join('')
    const { sdp: original = '' } = await connection.createOffer()
    onOffer(original)
    try {
      const sdp = mungedOffer(original, credential)
      await connection.setLocalDescription({ type: 'offer', sdp })
      const answer = answerOf(address, credential, false)
      await connection.setRemoteDescription({ type: 'answer', sdp: answer })
      // On its own, since some browsers refuse only here: in an answer they would be silent.
      await connection.addIceCandidate({ candidate: candidateOf(address), sdpMid: '0' })
    } catch (cause) {
      const message = 'the browser refuses the SDP of version 1: use version 2'
      throw new ConnectError('munging-refused', message, { cause })
    }
  }
}
