// Receives a payload.

import type { BidirectionalStream } from '../api.js'
import { atMost } from '../deferred.js'
import { SubstreamError } from '../errors.js'
import { PayloadError } from './errors.js'
import { Sha256 } from './sha256.js'
import { isSame, piecesOf, Transfer, type PayloadOptions } from './transfer.js'
import {
  decodeHeader,
  decodeNumber,
  encodeReceipt,
  encodeResume,
  HASH_LENGTH,
  MAX_FIELDS,
  SHA256,
  type Header
} from './wire.js'

type Bytes = Uint8Array<ArrayBuffer>

export interface Received {
  /** Length of the whole payload in bytes. */
  readonly total: number
  /** What was here before. */
  readonly resumedFrom: number
  /** SHA-256 of the whole payload, if the sender has sent it. */
  readonly hash: Bytes | undefined
}

/**
 * Takes over a substream on which the peer sends a payload, and reads its header. Rejects with a
 * `PayloadError`, for example for a payload that is too large, before any of its bytes.
 */
export async function receivePayload (
  stream: BidirectionalStream,
  options: PayloadOptions = {}
): Promise<Payload> {
  const transfer = new Transfer(stream, options)
  return transfer.run(async () => {
    const header = await transfer.message(transfer.maxMetadata + MAX_FIELDS, decodeHeader)
    const { totalLength = 0, metadata, hash = 0, resumable } = header
    if ((metadata?.length ?? 0) > transfer.maxMetadata) {
      throw new PayloadError('bad-message', 'its metadata')
    }
    if (hash > SHA256) throw new PayloadError('bad-message', `unknown hash function ${hash}`)
    if (resumable && (hash !== SHA256 || header.totalLength === undefined)) {
      throw new PayloadError('bad-message', 'resumable without a length and a hash')
    }
    if (totalLength > transfer.maxTotal) {
      throw new PayloadError('too-large', `${totalLength} bytes are more than ${transfer.maxTotal}`)
    }
    return new Payload(transfer, header)
  })
}

/** A payload whose header has arrived. Unread bytes slow down its sender. */
export class Payload {
  /** Length in bytes, if the sender knew it. */
  readonly total: number | undefined
  readonly metadata: Bytes
  readonly isHashed: boolean
  /** The sender can skip what is here already. */
  readonly isResumable: boolean
  readonly #transfer: Transfer
  #hasher = new Sha256()
  #resumedFrom: number | undefined

  /** @internal */
  constructor (transfer: Transfer, header: Header) {
    this.#transfer = transfer
    this.total = header.totalLength
    this.metadata = header.metadata ?? new Uint8Array()
    this.isHashed = header.hash === SHA256
    this.isResumable = header.resumable === true
  }

  /**
   * Tells the sender that the bytes in `prefix` are here from an earlier attempt. Returns the
   * offset at which those that follow begin: its length, or 0 if they do not belong to this payload
   * and have to be discarded.
   */
  async resume (prefix: Blob): Promise<number> {
    return this.#transfer.run(() => this.#begin(prefix))
  }

  /** All bytes, if they are at most `limit`. */
  async bytes (limit: number): Promise<Bytes> {
    const pieces: Bytes[] = []
    let length = 0
    await this.#receive(async piece => {
      length += piece.length
      if (length > limit) throw new PayloadError('too-large', `more than ${limit} bytes`)
      pieces.push(piece)
    }, limit)
    const all = new Uint8Array(length)
    let at = 0
    for (const piece of pieces) {
      all.set(piece, at)
      at += piece.length
    }
    return all
  }

  /**
   * Copies the bytes that follow the offset to `target`, and closes that before the sender gets its
   * receipt. After an error `target` is closed too. It can be resumed from what that has, unless
   * the hash was another.
   */
  async copyTo (target: WritableStream<Bytes>): Promise<Received> {
    const writer = target.getWriter()
    let isClosed = false
    const close = async (): Promise<void> => {
      isClosed = true
      await writer.close()
    }
    try {
      return await this.#receive(piece => writer.write(piece), Infinity, close)
    } finally {
      if (!isClosed) await atMost(this.#transfer.patience, close())
      writer.releaseLock()
    }
  }

  /** Ends it: the sender gets the kind `cancelled`. */
  cancel (): void {
    this.#transfer.cancel()
  }

  async #begin (prefix: Blob): Promise<number> {
    if (this.#resumedFrom !== undefined) return this.#resumedFrom
    this.#resumedFrom = 0
    if (!this.isResumable) return 0
    const have = prefix.size <= this.total! ? prefix.size : 0
    if (have > 0) {
      const pieces = piecesOf(prefix, this.#transfer.signal)
      for await (const piece of pieces) this.#hasher.update(piece)
    }
    await this.#transfer.write(encodeResume(have, have > 0 ? this.#hasher.digest() : undefined))
    const { number: offset } = await this.#transfer.message(MAX_FIELDS, decodeNumber)
    if (offset !== have && offset !== 0) {
      throw new PayloadError('bad-message', `begins at ${offset}`)
    }
    if (offset === 0) this.#hasher = new Sha256()
    this.#resumedFrom = offset
    return offset
  }

  #receive (
    take: (piece: Bytes) => Promise<void>,
    limit: number,
    flush: () => Promise<void> = async () => {}
  ): Promise<Received> {
    const transfer = this.#transfer
    return transfer.run(async () => {
      if ((this.total ?? 0) > limit) throw new PayloadError('too-large', `more than ${limit} bytes`)
      const resumedFrom = await this.#begin(new Blob())
      transfer.resumedFrom = resumedFrom
      let position = resumedFrom
      const deliver = async (piece: Bytes): Promise<void> => {
        position += piece.length
        if (position > transfer.maxTotal) {
          throw new PayloadError('too-large', `more than ${transfer.maxTotal} bytes`)
        }
        if (this.isHashed) this.#hasher.update(piece)
        await take(piece).catch((cause: unknown) => {
          if (cause instanceof PayloadError) throw cause
          throw new PayloadError('local-failure', 'the target failed', false, { cause })
        })
        transfer.progressed(position, this.total)
      }
      const theirs = this.total === undefined
        ? await this.#untilTheEnd(deliver)
        : await this.#exactly(this.total - position, deliver)
      const ours = this.isHashed ? this.#hasher.digest() : undefined
      if (ours !== undefined && !isSame(ours, theirs)) {
        throw new PayloadError('hash-mismatch', 'the bytes do not match their hash')
      }
      await flush()
      transfer.isConfirming = true
      await transfer.write(encodeReceipt(position))
      await transfer.finish().catch((error: unknown) => {
        // A sender that has its receipt need not read on.
        if (!(error instanceof SubstreamError && error.kind === 'stopped')) throw error
      })
      return { total: position, resumedFrom, hash: ours }
    })
  }

  /** `length` bytes, the hash, and the end. Returns the hash. */
  async #exactly (length: number, deliver: (piece: Bytes) => Promise<void>): Promise<Bytes> {
    for (let left = length; left > 0;) {
      const piece = await this.#transfer.read(left)
      if (piece === undefined) throw new PayloadError('truncated', `${left} bytes are missing`)
      left -= piece.length
      await deliver(piece)
    }
    const hash = await this.#transfer.exactly(this.isHashed ? HASH_LENGTH : 0, 'truncated')
    if (await this.#transfer.read() !== undefined) {
      throw new PayloadError('overflow', 'more bytes than the header announces')
    }
    return hash
  }

  /** All bytes but the last, which are the hash. */
  async #untilTheEnd (deliver: (piece: Bytes) => Promise<void>): Promise<Bytes> {
    const length = this.isHashed ? HASH_LENGTH : 0
    let held = new Uint8Array()
    for (;;) {
      const piece = await this.#transfer.read()
      if (piece === undefined) break
      const all = new Uint8Array(held.length + piece.length)
      all.set(held)
      all.set(piece, held.length)
      const end = Math.max(0, all.length - length)
      held = all.slice(end)
      if (end > 0) await deliver(all.slice(0, end))
    }
    if (held.length < length) throw new PayloadError('truncated', 'the hash is missing')
    return held
  }
}

