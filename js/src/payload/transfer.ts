// What both sides of a payload have in common: limits, time, cancelling, and reading messages.

import type { BidirectionalStream } from '../api.js'
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
  /** Called after each piece. `total` is undefined while it is not known. */
  onProgress?: (progress: { transferred: number, total: number | undefined }) => void
  /** Cancels the payload. */
  signal?: AbortSignal
}

const MAX_METADATA = 4096

export class Transfer {
  readonly maxTotal: number
  readonly maxMetadata: number
  readonly #idleTimeout: number
  readonly #reader: ReadableStreamDefaultReader<Bytes>
  readonly #writer: WritableStreamDefaultWriter<BufferSource>
  readonly #hasher = new Sha256()
  #rest: Bytes = new Uint8Array()

  constructor (stream: BidirectionalStream, readonly options: PayloadOptions) {
    this.maxTotal = options.maxTotal ?? 64 * 1024 * 1024
    this.maxMetadata = Math.min(MAX_METADATA, options.maxMetadata ?? MAX_METADATA)
    this.#idleTimeout = options.idleTimeout ?? 60_000
    this.#reader = stream.readable.getReader()
    this.#writer = stream.writable.getWriter()
    // It is reported by whatever is written or read then.
    this.#writer.closed.catch(() => {})
  }

  get hasher (): Sha256 {
    return this.#hasher
  }

  /** Runs a part of it. An error resets the substream with the code for its cause. */
  async run<T> (work: () => Promise<T>): Promise<T> {
    const { signal } = this.options
    const cancel = (): void => { this.cancel() }
    if (signal?.aborted) cancel()
    signal?.addEventListener('abort', cancel)
    try {
      return await work()
    } catch (cause) {
      const error = signal?.aborted
        ? new PayloadError('cancelled', 'cancelled by this side', false, { cause: signal.reason })
        : payloadErrorOf(cause)
      if (!error.isRemote && error.kind !== 'substream') this.cancel(error.kind)
      throw error
    } finally {
      signal?.removeEventListener('abort', cancel)
    }
  }

  /** Ends it: the other side gets the code. */
  cancel (kind: keyof typeof PAYLOAD_CODES = 'cancelled'): void {
    this.#writer.abort({ streamErrorCode: PAYLOAD_CODES[kind] }).catch(() => {})
  }

  progressed (transferred: number, total: number | undefined): void {
    this.options.onProgress?.({ transferred, total })
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

/** The pieces of a source. */
export async function * piecesOf (
  source: Blob | Bytes | ReadableStream<Bytes>
): AsyncGenerator<Bytes> {
  if (source instanceof Uint8Array) {
    for (let at = 0; at < source.length; at += PIECE) yield source.subarray(at, at + PIECE)
    return
  }
  const reader = (source instanceof Blob ? source.stream() : source).getReader()
  try {
    for (;;) {
      const { value, done } = await reader.read()
      if (done) return
      yield value
    }
  } finally {
    reader.cancel().catch(() => {})
  }
}

const PIECE = 128 * 1024
