// How the peer is authenticated.

/** A frame of the handshake: the fields of `docs/wire.md` section 1 that it has. */
export interface HandshakeFrame {
  /** 0 is FIN, 2 is RESET_STREAM; others have no meaning here. */
  readonly flag?: number
  readonly payload?: Uint8Array<ArrayBuffer>
}

/** The connection that a handshake runs over: frames outside of any substream. */
export interface HandshakeIo {
  send (payload: Uint8Array<ArrayBuffer>): void
  /** Called with each frame of the peer while it is set; the session gets what follows. */
  onFrame?: (frame: HandshakeFrame) => void
  /** Called when the connection ends, if it is set. */
  onEnd?: (error: Error) => void
}

/** What is known of the peer before it has proven anything. */
export interface HandshakeContext {
  /** The peer id in the address, if it has one. */
  readonly expectedPeer: string | undefined
  /** Over WebRTC: our offer, which has the hash of our certificate. */
  readonly offer?: string
  /** Over WebRTC: the hash of the listener's certificate. */
  readonly certhash?: Uint8Array<ArrayBuffer>
}

/** What the handshake has proven. */
export interface Peer {
  readonly peerId: string
  /** The peer takes the name of a protocol in the label of its substream. */
  readonly takesLabels: boolean
}

/** How the peer is authenticated: `certificateHash`, or `noise` of the entry `/noise`. */
export interface Security {
  /** The subprotocol over a WebSocket. */
  readonly subprotocol: string
  /**
   * Called before anything can arrive, so that it sets `onFrame` in time. What arrives comes from
   * a peer whose certificate is right. Throws `ConnectError`.
   */
  readonly handshake?: (io: HandshakeIo, context: HandshakeContext) => Promise<Peer>
}

/**
 * The certificate alone: over WebRTC the hash in the address, over a WebSocket that of TLS. This
 * side stays anonymous. The listener has to choose the same (`Security::CertificateHash`).
 */
export const certificateHash: Security = { subprotocol: 'anabranch.v1' }
