// What both sides of a payload have in common: limits, time, cancelling, and reading messages.

import type { BidirectionalStream } from '../api.js'
import { deferred } from '../deferred.js'
import { Sha256 } from './sha256.js'
import { PAYLOAD_CODES, PayloadError, payloadErrorOf, type PayloadErrorKind } from './errors.js'

type Bytes = Uint8Array<ArrayBuffer>

export interface PayloadOptions {
  /** Longest payload, in bytes. Default: 64 MiB. */
  maxTotal?: number
  /** Longest metadata, in bytes. Default and maximum: 4 096. */
  maxMetadata?: number
  /** How long to wait without progress, in milliseconds. Default: 60 000. */
  idleTimeout?: number
  /**
   * Called after each piece. `total` is undefined while it is not known. `resumedFrom` of the bytes
   * in `transferred` were there before, and are not sent again.
   */
  onProgress?: (
    progress: { transferred: number, total: number | undefined, resumedFrom: number }
  ) => void
  /** Cancels the payload. */
  signal?: AbortSignal
}

const MAX_METADATA = 4096

/** How long a target has to close after the transfer was cancelled. */
const CLOSE_TIMEOUT = 1_000

export class Transfer {
  readonly maxTotal: number
  readonly maxMetadata: number
  /** Bytes that the receiver had already. */
  resumedFrom = 0
  readonly #idleTimeout: number
  readonly #reader: ReadableStreamDefaultReader<Bytes>
  readonly #writer: WritableStreamDefaultWriter<BufferSource>
  readonly #hasher = new Sha256()
  readonly #ending = new AbortController()
  #rest: Bytes = new Uint8Array()
  /** All bytes are read, or written: what is left is reported by reads and writes. */
  isConfirming = false

  constructor (stream: BidirectionalStream, readonly options: PayloadOptions) {
    this.maxTotal = options.maxTotal ?? 64 * 1024 * 1024
    this.maxMetadata = Math.min(MAX_METADATA, options.maxMetadata ?? MAX_METADATA)
    this.#idleTimeout = options.idleTimeout ?? 60_000
    this.#reader = stream.readable.getReader()
    this.#writer = stream.writable.getWriter()
    // It is reported by whatever is written or read then.
    this.#writer.closed.catch(() => {})
    stream.finished.catch((error: unknown) => {
      if (!this.isConfirming) this.#ending.abort(error)
    })
  }

  /** Aborted when it is cancelled, or its substream has failed. */
  get signal (): AbortSignal {
    return this.#ending.signal
  }

  get hasher (): Sha256 {
    return this.#hasher
  }

  /** How long to wait for something on this side once the transfer has failed. */
  get patience (): number {
    return this.options.signal?.aborted ? CLOSE_TIMEOUT : this.#idleTimeout
  }

  /**
   * Runs a part of it. An error resets the substream with the code for its cause. The signal, and
   * the end of the substream, end it also while it waits for a source or a target that stalls.
   */
  async run<T> (work: () => Promise<T>): Promise<T> {
    const { signal } = this.options
    const ended = deferred<never>()
    const end = (): void => { ended.reject(this.signal.reason) }
    const abort = (): void => { this.#ending.abort(signal?.reason) }
    this.signal.addEventListener('abort', end)
    signal?.addEventListener('abort', abort)
    try {
      signal?.throwIfAborted()
      this.signal.throwIfAborted()
      return await Promise.race([work(), ended.promise])
    } catch (cause) {
      const error = signal?.aborted
        ? new PayloadError('cancelled', 'cancelled by this side', false, { cause: signal.reason })
        : payloadErrorOf(cause)
      // The other side may have ended one half only.
      this.cancel(error.kind === 'substream' ? 'cancelled' : error.kind)
      throw error
    } finally {
      signal?.removeEventListener('abort', abort)
      this.signal.removeEventListener('abort', end)
    }
  }

  /** Ends it: the other side gets the code. */
  cancel (kind: keyof typeof PAYLOAD_CODES = 'cancelled'): void {
    const reason = { streamErrorCode: PAYLOAD_CODES[kind] }
    this.#writer.abort(reason).catch(() => {})
    // After FIN, or STOP_SENDING of the peer, `abort` has no effect.
    this.#reader.cancel(reason).catch(() => {})
  }

  progressed (transferred: number, total: number | undefined): void {
    this.options.onProgress?.({ transferred, total, resumedFrom: this.resumedFrom })
  }

  /** Writes, and waits until the browser has it: what was read from a source may be used again. */
  write (bytes: Bytes): Promise<void> {
    return this.#within(this.#writer.write(bytes))
  }

  finish (): Promise<void> {
    return this.#within(this.#writer.close())
  }

  /** The next bytes, at most `most`; undefined at the end. */
  async read (most = Infinity): Promise<Bytes | undefined> {
    if (this.#rest.length === 0) {
      const { value, done } = await this.#within(this.#reader.read())
      if (done) return undefined
      this.#rest = value
    }
    const part = this.#rest.subarray(0, most)
    this.#rest = this.#rest.subarray(part.length)
    return part
  }

  /** Exactly `length` bytes, which the caller has limited. */
  async exactly (length: number, ifShort: PayloadErrorKind): Promise<Bytes> {
    const all = new Uint8Array(length)
    for (let at = 0; at < length;) {
      const part = await this.read(length - at)
      if (part === undefined) throw new PayloadError(ifShort, 'the stream ended')
      all.set(part, at)
      at += part.length
    }
    return all
  }

  /** The body of a message of at most `max` bytes, decoded. */
  async message<T> (max: number, decode: (body: Bytes) => T): Promise<T> {
    let length = 0
    for (let scale = 1; ; scale *= 128) {
      const [byte] = await this.exactly(1, 'bad-message')
      length += (byte! & 127) * scale
      // Checked before a byte of the message is buffered.
      if (length > max || (byte === 0 && scale > 1)) {
        throw new PayloadError('bad-message', 'its length')
      }
      if (byte! < 128) break
    }
    const body = await this.exactly(length, 'bad-message')
    try {
      return decode(body)
    } catch (cause) {
      throw new PayloadError('bad-message', 'no protobuf', false, { cause })
    }
  }

  async #within<T> (promise: Promise<T>): Promise<T> {
    let timer: ReturnType<typeof setTimeout> | undefined
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        reject(new PayloadError('expired', `no progress for ${this.#idleTimeout} ms`))
      }, this.#idleTimeout)
    })
    try {
      return await Promise.race([promise, late])
    } finally {
      clearTimeout(timer)
    }
  }
}

export const isSame = (a: Bytes, b: Bytes): boolean =>
  a.length === b.length && a.every((byte, index) => byte === b[index])

/** The pieces of a source, which the signal cancels. */
export async function * piecesOf (
  source: Blob | Bytes | ReadableStream<Bytes>,
  signal: AbortSignal
): AsyncGenerator<Bytes> {
  if (source instanceof Uint8Array) {
    for (let at = 0; at < source.length; at += PIECE) yield source.subarray(at, at + PIECE)
    return
  }
  const reader = (source instanceof Blob ? source.stream() : source).getReader()
  const cancel = (): void => { reader.cancel(signal.reason).catch(() => {}) }
  signal.addEventListener('abort', cancel)
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    signal.removeEventListener('abort', cancel)
    cancel()
  }
}

const PIECE = 128 * 1024
