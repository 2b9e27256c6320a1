// Sends a payload.

import type { BidirectionalStream } from '../api.js'
import { PayloadError } from './errors.js'
import { Sha256 } from './sha256.js'
import { isSame, piecesOf, Transfer, type PayloadOptions } from './transfer.js'
import { decodeNumber, encodeHeader, encodeStart, MAX_FIELDS, SHA256, type Header } from './wire.js'

type Bytes = Uint8Array<ArrayBuffer>

export interface SendOptions extends PayloadOptions {
  /** For the receiving application, which gets it first: a name, for example. */
  metadata?: Bytes
  /** Sends the SHA-256, which the receiver verifies. Default: no. */
  hashed?: boolean
  /**
   * Offers the receiver to skip what it has from an earlier attempt. Only for a `Blob` or bytes,
   * and always hashed. Default: no.
   */
  resumable?: boolean
  /** Length of a stream, if it is known. */
  total?: number
}

export interface Sent {
  /** Length of the whole payload in bytes. */
  readonly total: number
  /** What the receiver had already. */
  readonly resumedFrom: number
}

/**
 * Sends a file, bytes or a stream as one payload, and resolves when the receiver has confirmed it.
 * Rejects with a `PayloadError`. The substream must be new, and is used up.
 */
export async function sendPayload (
  stream: BidirectionalStream,
  source: Blob | Bytes | ReadableStream<Bytes>,
  options: SendOptions = {}
): Promise<Sent> {
  const transfer = new Transfer(stream, options)
  return transfer.run(async () => {
    const total = lengthOf(source) ?? options.total
    const isHashed = options.hashed === true || options.resumable === true
    if (total !== undefined && total > transfer.maxTotal) throw tooLarge(total, transfer.maxTotal)
    if ((options.metadata?.length ?? 0) > transfer.maxMetadata) {
      throw new PayloadError('too-large', `metadata is longer than ${transfer.maxMetadata} bytes`)
    }
    const header: Header = { resumable: options.resumable === true }
    if (total !== undefined) header.totalLength = total
    if (options.metadata !== undefined) header.metadata = options.metadata
    if (isHashed) header.hash = SHA256
    await transfer.write(encodeHeader(header))
    let resumedFrom = 0
    let hasher = transfer.hasher
    let rest = source
    if (options.resumable) {
      if (source instanceof ReadableStream) {
        throw new PayloadError('local-failure', 'a stream can not be resumed')
      }
      const resumed = await resume(transfer, source, total!)
      hasher = resumed.hasher
      transfer.resumedFrom = resumedFrom = resumed.offset
      rest = source.slice(resumedFrom)
    }
    let position = resumedFrom
    for await (const piece of piecesOf(rest, transfer.signal)) {
      position += piece.length
      if (position > (total ?? transfer.maxTotal)) {
        throw tooLarge(position, total ?? transfer.maxTotal)
      }
      if (isHashed) hasher.update(piece)
      await transfer.write(piece)
      transfer.progressed(position, total)
    }
    if (total !== undefined && position < total) {
      throw new PayloadError('local-failure', `the source has ${position} of ${total} bytes`)
    }
    if (isHashed) await transfer.write(hasher.digest())
    transfer.isConfirming = true
    await transfer.finish()
    const { number: confirmed } = await transfer.message(MAX_FIELDS, decodeNumber)
    if (confirmed !== position) {
      throw new PayloadError('bad-message', `${confirmed} of ${position} bytes confirmed`)
    }
    // FIN of the receiver, without which the substream would not end.
    if (await transfer.read() !== undefined) {
      throw new PayloadError('bad-message', 'more than a receipt')
    }
    return { total: position, resumedFrom }
  })
}

const tooLarge = (length: number, max: number): PayloadError =>
  new PayloadError('too-large', `${length} bytes are more than ${max}`)

function lengthOf (source: Blob | Bytes | ReadableStream<Bytes>): number | undefined {
  if (source instanceof Uint8Array) return source.length
  return source instanceof Blob ? source.size : undefined
}

/** Compares what the receiver has with the source, and tells it where the bytes begin. */
async function resume (
  transfer: Transfer,
  source: Blob | Bytes,
  total: number
): Promise<{ offset: number, hasher: Sha256 }> {
  const { number: have, bytes: theirs } = await transfer.message(MAX_FIELDS, decodeNumber)
  if (have > total || (have > 0 && theirs.length !== 32)) {
    throw new PayloadError('bad-message', `can not be resumed at ${have}`)
  }
  const hasher = new Sha256()
  const prefix = piecesOf(source.slice(0, have), transfer.signal)
  for await (const piece of prefix) hasher.update(piece)
  const offset = have > 0 && isSame(hasher.digest(), theirs) ? have : 0
  await transfer.write(encodeStart(offset))
  // The receiver may have the prefix of another payload, or of another version.
  return { offset, hasher: offset === have ? hasher : new Sha256() }
}
