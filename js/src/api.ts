// The types of sessions and substreams, in the shape of WebTransport.

/** Figures of the path, as far as the browser measures them. */
export interface PathStats {
  /** In milliseconds. */
  readonly roundTripTime?: number
}

/** A bidirectional stream of bytes, in the shape of `WebTransportBidirectionalStream`. */
export interface BidirectionalStream {
  /** A byte stream: it can be read into buffers of the caller (BYOB). `cancel` stops the peer. */
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>
  /**
   * Takes `Uint8Array` and other buffers, which must not be changed before the write is done.
   * `close` resolves when the peer has confirmed everything (FIN_ACK); `abort` resets the
   * substream, both directions of it.
   */
  readonly writable: WritableStream<BufferSource>
  /** The name of its protocol. */
  readonly protocol: string
  /** Resolves when both directions have ended in peace; rejects with a `SubstreamError`. */
  readonly finished: Promise<void>
  /** Substreams of greater priority send first. */
  priority: number
}

/** How a session ended in peace, in the shape of `WebTransportCloseInfo`. */
export interface CloseInfo {
  /** Up to 2^32 - 1. Default: 0. */
  closeCode?: number
  /** Default: ''. At most 256 characters, over a WebSocket 123 bytes; the rest is cut off. */
  reason?: string
}

export interface OpenOptions {
  /** The name by which the peer accepts it. Default: ''. */
  protocol?: string
  /** Gives up while the open waits for the peer, and resets the substream after that. */
  signal?: AbortSignal
  /** Substreams of greater priority send first; those of one take turns. Default: 0. */
  priority?: number
}

/** Counters since the session began, and figures of the path. */
export interface SessionStats extends PathStats {
  readonly bytesSent: number
  readonly bytesReceived: number
  readonly substreamsOpened: number
  readonly substreamsAccepted: number
  readonly substreams: number
  /** Substreams that were reset because the peer broke the rules. */
  readonly violations: number
  /** Bytes that are unread, or that the peer may send, beyond the minimum of each substream. */
  readonly committed: number
}

/** A connection with substreams, in the shape of `WebTransport`. It has no datagrams. */
export interface Session extends AsyncDisposable {
  /** The session is ready when `connect` returns it; for programs that expect a `WebTransport`. */
  readonly ready: Promise<void>
  /** Resolves when either side has closed the session; rejects with a `SessionError`. */
  readonly closed: Promise<Required<CloseInfo>>
  /** Resolves when the peer wants no new substreams. Those that are open go on. */
  readonly draining: Promise<void>
  /** The peer id that Noise has proven. */
  readonly peerId: string | undefined
  /** Which carrier it runs over. */
  readonly transport: 'webrtc' | 'websocket'
  /** Substreams that the peer opens. They wait for `acceptTimeout`. */
  readonly incomingBidirectionalStreams: ReadableStream<BidirectionalStream>
  /** Waits until the peer accepts another substream. */
  createBidirectionalStream (options?: OpenOptions): Promise<BidirectionalStream>
  getStats (): Promise<SessionStats>
  /**
   * Sends what was written, and closes. Substreams whose writer has not closed are reset after
   * that. Reads fail, but of substreams that have arrived to their end. It returns at once;
   * `closed` resolves when the peer has everything, or after `closeTimeout`.
   */
  close (info?: CloseInfo): void
}
