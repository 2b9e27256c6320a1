// Data that has arrived and was not read yet, and the credit granted for it: docs/wire.md section
// 3.

/** Payload bytes that may be sent before the peer has shown whether it supports credit. */
export const INITIAL_CREDIT = 12 * 1024

/** A window that a substream may always grant, however much the session has committed. */
const MIN_WINDOW = 32 * 1024

/** The same for a substream of which little was read: slightly more than `INITIAL_CREDIT`. */
const MIN_FIRST_WINDOW = 16 * 1024

/**
 * Such a substream gets at most this fraction of what the session has not committed: credit can not
 * be revoked, and a thousand idle substreams would leave nothing to the busy ones.
 */
const FIRST_SHARE = 512

/** Payloads up to this length are coalesced: frames of one byte must not cost an object each. */
const SMALL = 512
const TAIL = 4096

/** The window grows after this many consecutive grants that the peer had to wait for. */
const STALLS_TO_GROW = 2

interface Chunk {
  bytes: Uint8Array<ArrayBuffer>
  /** Nothing else uses its buffer. */
  owned: boolean
}

/** What the substreams of a session share. */
export interface Pool {
  /** Bytes that are granted or unread, of all substreams. */
  committed: number
  readonly ceiling: number
}

export class ReceiveBuffer {
  #chunks: Chunk[] = []
  #head = 0
  #tail: Uint8Array<ArrayBuffer> | undefined
  #tailLength = 0
  #buffered = 0
  #received = 0
  #consumed = 0
  #window: number
  #granted = 0
  #grantedBefore = 0
  #stalls = 0
  #wasStalled = false
  #isComplete = false
  #committed = 0
  #isInPool = true

  constructor (
    window: number,
    readonly maxWindow: number,
    readonly pool: Pool
  ) {
    this.#window = window
  }

  get buffered (): number {
    return this.#buffered
  }

  get hasGranted (): boolean {
    return this.#granted > 0
  }

  /**
   * Accounts for a payload, and keeps it if `keep`. False if the peer, which supports credit, has
   * sent more than it was granted.
   */
  push (bytes: Uint8Array<ArrayBuffer>, owned: boolean, keep: boolean, enforce: boolean): boolean {
    this.#received += bytes.length
    // Initial data may arrive after the first grant was sent.
    if (enforce && this.#granted > 0 && this.#received > Math.max(this.#granted, INITIAL_CREDIT)) {
      return false
    }
    this.#detectStalledSender()
    if (!keep) {
      this.#consumed += bytes.length
    } else {
      this.#buffered += bytes.length
      if (bytes.length > SMALL) {
        this.#finishTail()
        this.#chunks.push({ bytes, owned })
      } else {
        this.#append(bytes)
      }
    }
    this.#account()
    return true
  }

  /** Copies into `view` and returns how much. */
  readInto (view: Uint8Array<ArrayBuffer>): number {
    let taken = 0
    while (taken < view.length) {
      const chunk = this.#front()
      if (chunk === undefined) break
      const part = chunk.bytes.subarray(0, view.length - taken)
      view.set(part, taken)
      taken += part.length
      if (part.length === chunk.bytes.length) this.#shift()
      // The rest of an owned buffer may still be transferred as a whole later.
      else chunk.bytes = chunk.bytes.subarray(part.length)
    }
    this.#consume(taken)
    return taken
  }

  /** The first payload, in a buffer that may be transferred; undefined if there is none. */
  take (): Uint8Array<ArrayBuffer> | undefined {
    const chunk = this.#front()
    if (chunk === undefined) return undefined
    this.#shift()
    this.#consume(chunk.bytes.length)
    return chunk.owned ? chunk.bytes : chunk.bytes.slice()
  }

  /** Drops what is unread; it counts as read. */
  discard (): void {
    this.#chunks = []
    this.#head = 0
    this.#tail = undefined
    this.#consume(this.#buffered)
  }

  /** No more payload will arrive: unused credit is free for other substreams. */
  complete (): void {
    this.#isComplete = true
    this.#account()
  }

  /** What is unread counts no more: it is in the hands of the application, which may drop it. */
  leavePool (): void {
    this.pool.committed -= this.#committed
    this.#isInPool = false
  }

  /** The `max_data` that is due; always one if `first`. */
  creditOffer (first = false): number | undefined {
    if (this.#isComplete && !first) return undefined
    const window = this.#affordableWindow()
    const next = Math.max(this.#granted, this.#consumed + window)
    return first || next - this.#granted >= Math.max(1, Math.ceil(window / 2)) ? next : undefined
  }

  /** This `max_data` was sent. */
  granted (maxData: number): void {
    if (maxData <= this.#granted) return
    this.#grantedBefore = this.#granted
    this.#granted = maxData
    if (!this.#wasStalled) this.#stalls = 0
    this.#wasStalled = false
    this.#account()
  }

  /**
   * Doubles the window of a sender that waits for credit although the reader keeps up.
   *
   * A sender that has used up one grant exactly, while the next was on its way, stalled until that
   * arrived. The next was due because half of the window had been read, so a slow reader is never
   * mistaken for a long path.
   */
  #detectStalledSender (): void {
    if (this.#received !== this.#grantedBefore || this.#wasStalled) return
    this.#wasStalled = true
    this.#stalls += 1
    if (this.#stalls >= STALLS_TO_GROW) {
      this.#stalls = 0
      this.#window = Math.min(this.#window * 2, this.maxWindow)
    }
  }

  #affordableWindow (): number {
    const room = Math.max(0, this.pool.ceiling - this.pool.committed)
    const affordable = this.#consumed < MIN_FIRST_WINDOW / 2
      ? Math.max(Math.floor(room / FIRST_SHARE), MIN_FIRST_WINDOW)
      : Math.max(this.#committed + Math.floor(room / 2), MIN_WINDOW)
    return Math.min(this.#window, affordable)
  }

  /** Updates the part of the pool that is this substream's. */
  #account (): void {
    if (!this.#isInPool) return
    const committed = this.#isComplete
      ? this.#buffered
      : Math.max(this.#buffered, this.#granted - this.#consumed)
    this.pool.committed += committed - this.#committed
    this.#committed = committed
  }

  #consume (length: number): void {
    this.#buffered -= length
    this.#consumed += length
    this.#account()
  }

  #append (bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#tailLength + bytes.length > TAIL) this.#finishTail()
    if (this.#tail === undefined || this.#tail.length < this.#tailLength + bytes.length) {
      const length = Math.min(TAIL, Math.max(64, 2 * (this.#tailLength + bytes.length)))
      const grown = new Uint8Array(length)
      if (this.#tail !== undefined) grown.set(this.#tail.subarray(0, this.#tailLength))
      this.#tail = grown
    }
    this.#tail.set(bytes, this.#tailLength)
    this.#tailLength += bytes.length
  }

  #finishTail (): void {
    if (this.#tail === undefined) return
    const bytes = this.#tail.subarray(0, this.#tailLength)
    this.#tail = undefined
    this.#tailLength = 0
    this.#chunks.push({ bytes, owned: true })
  }

  #front (): Chunk | undefined {
    if (this.#head === this.#chunks.length) this.#finishTail()
    return this.#chunks[this.#head]
  }

  #shift (): void {
    this.#head += 1
    // Amortised: the array is cut once its read part is the larger one.
    if (this.#head * 2 > this.#chunks.length) {
      this.#chunks = this.#chunks.slice(this.#head)
      this.#head = 0
    }
  }
}
