// How the peer is authenticated.

/** The bytes of the handshake. */
export interface HandshakeIo {
  send (bytes: Uint8Array<ArrayBuffer>): void
  /** The next bytes of the peer, which may be cut anywhere. Rejects when the connection ends. */
  receive (): Promise<Uint8Array<ArrayBuffer>>
}

/** What both sides have to agree on, so that nobody between them can relay the handshake. */
export interface HandshakeContext {
  readonly prologue: Uint8Array<ArrayBuffer>
  /** The peer id in the address, if it has one. */
  readonly expectedPeer: string | undefined
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
  /** Runs after the certificate of the peer was found to be right. Throws `ConnectError`. */
  readonly handshake?: (io: HandshakeIo, context: HandshakeContext) => Promise<Peer>
}

/**
 * The certificate alone: over WebRTC the hash in the address, over a WebSocket that of TLS. This
 * side stays anonymous. The listener has to choose the same (`Security::CertificateHash`).
 */
export const certificateHash: Security = { subprotocol: 'anabranch.v1' }
