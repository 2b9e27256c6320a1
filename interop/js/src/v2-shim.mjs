import { serverCredential } from './v2-sdp.mjs'

// js-libp2p up to 6.0.33 supports v1 only: it writes its own ufrag and password into the offer and
// the same into the answer. This layer under the unmodified library sets the offer as the browser
// made it and rewrites the answer, which is the whole difference between v1 and v2.
export function speakV2 () {
  const Native = window.RTCPeerConnection

  window.RTCPeerConnection = class extends Native {
    #offer

    async createOffer (...args) {
      const offer = await super.createOffer(...args)
      this.#offer = { type: offer.type, sdp: offer.sdp }
      return offer
    }

    setLocalDescription () {
      return super.setLocalDescription(this.#offer)
    }

    setRemoteDescription ({ type, sdp }) {
      const credential = serverCredential(this.#offer.sdp)
      return super.setRemoteDescription({
        type,
        sdp: sdp
          .replace(/^a=ice-ufrag:\S+/m, `a=ice-ufrag:${credential}`)
          .replace(/^a=ice-pwd:\S+/m, `a=ice-pwd:${credential}`)
      })
    }
  }
}
