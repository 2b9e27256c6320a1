// Data that has arrived and was not read yet, and the credit granted for it: docs/wire.md section
// 3.

/** Payload bytes that may be sent before the peer has shown whether it supports credit. */
export const INITIAL_CREDIT = 12 * 1024

/**
 * A window that a substream may always grant, however much the session has committed. It does not
 * count against the ceiling: credit can not be revoked, and many idle substreams would leave nothing
 * else to the busy ones.
 */
const MIN_WINDOW = 32 * 1024

/** The same for a substream of which little was read: slightly more than `INITIAL_CREDIT`. */
const MIN_FIRST_WINDOW = 16 * 1024

/** Such a substream gets at most this fraction of the room that it has. */
const FIRST_SHARE = 256

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
export class Pool {
  /** Bytes that are granted or unread, of all substreams, beyond what each may always grant. */
  committed = 0
  /** Of these the unread ones of substreams that have ended. */
  #ended = 0

  /** Calls `onRoom` when it is full no longer. */
  constructor (readonly ceiling: number, readonly onRoom: () => void) {}

  /** Whether so much of ended substreams is unread that the peer must not open more. */
  get isFull (): boolean {
    return this.#ended >= this.ceiling
  }

  add (bytes: number, isOfEnded: boolean): void {
    const wasFull = this.isFull
    this.committed += bytes
    if (isOfEnded) this.#ended += bytes
    if (wasFull && !this.isFull) this.onRoom()
  }
}

/** The part of a pool that is one substream's. */
class Share {
  #bytes = 0
  #isOfEnded = false

  constructor (readonly pool: Pool) {}

  set (bytes: number): void {
    this.pool.add(bytes - this.#bytes, this.#isOfEnded)
    this.#bytes = bytes
  }

  /** The substream has ended, of which so many bytes are unread. */
  end (unread: number): void {
    this.set(0)
    this.#isOfEnded = true
    this.set(unread)
  }
}

/** What the application has dropped unread is in memory no longer. */
const dropped = new FinalizationRegistry<Share>(share => { share.set(0) })

export class ReceiveBuffer {
  #chunks: Chunk[] = []
  #head = 0
  #tail: Uint8Array<ArrayBuffer> | undefined
  #tailLength = 0
  #unread = 0
  #received = 0
  #consumed = 0
  #window: number
  #granted = 0
  #grantedBefore = 0
  #stalls = 0
  #wasStalled = false
  #isComplete = false
  readonly #share: Share

  constructor (
    window: number,
    readonly maxWindow: number,
    readonly pool: Pool
  ) {
    this.#window = window
    this.#share = new Share(pool)
  }

  get unread (): number {
    return this.#unread
  }

  get hasGranted (): boolean {
    return this.#granted > 0
  }

  /**
   * Accounts for a payload, and keeps it if `keep`. False if the peer has sent more than it was
   * granted, if `enforce`.
   */
  push (bytes: Uint8Array<ArrayBuffer>, owned: boolean, keep: boolean, enforce: boolean): boolean {
    this.#received += bytes.length
    // Initial data may arrive after the first grant was sent.
    if (enforce && this.#received > Math.max(this.#granted, INITIAL_CREDIT)) return false
    this.#detectStalledSender()
    if (!keep) {
      this.#consumed += bytes.length
    } else {
      this.#unread += bytes.length
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
    this.#consume(this.#unread)
  }

  /** No more payload will arrive: unused credit is free for other substreams. */
  complete (): void {
    this.#isComplete = true
    this.#account()
  }

  /** The substream has ended. What is unread counts until it is read, or dropped. */
  end (): void {
    this.#share.end(this.#unread)
    if (this.#unread > 0) dropped.register(this, this.#share)
  }

  /** The `max_data` that is due; always one if `first`. */
  creditOffer (first = false): number | undefined {
    if (this.#isComplete && !first) return undefined
    const window = this.#affordableWindow()
    const next = Math.max(this.#granted, this.#consumed + window)
    return first || next - this.#granted >= Math.max(1, window / 2) ? next : undefined
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

  /** The window that is granted whatever the session has committed. */
  get #minimum (): number {
    return this.#consumed < MIN_FIRST_WINDOW / 2 ? MIN_FIRST_WINDOW : MIN_WINDOW
  }

  /** What the peer may still send, and what is unread. */
  get #committed (): number {
    return Math.max(this.#unread, this.#granted - this.#consumed)
  }

  /**
   * The less was read, the more is left to others: half of the ceiling below 1/32 of it, and half
   * of that for each 16 times as much. Substreams that carry a little each and then idle with their
   * last grant can not, in any number, take everything from one that carries much.
   */
  #affordableWindow (): number {
    const { ceiling, committed } = this.pool
    const halvings = Math.log2(Math.max(1, this.#consumed * 512 / ceiling)) >> 2
    const room = Math.max(0, ceiling - committed - ceiling / (2 << halvings))
    const minimum = this.#minimum
    return Math.min(this.#window, Math.floor(minimum < MIN_WINDOW
      ? Math.max(room / FIRST_SHARE, minimum)
      : Math.max(this.#committed, minimum) + room / 2))
  }

  /** Updates the part of the pool that is this substream's. */
  #account (): void {
    this.#share.set(this.#isComplete
      ? this.#unread
      : Math.max(0, this.#committed - this.#minimum))
  }

  #consume (length: number): void {
    this.#unread -= length
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
