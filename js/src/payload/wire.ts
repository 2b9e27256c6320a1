// The messages around the bytes of a payload: proto/payload.proto.

import { field, fieldsOf } from '../protobuf.js'

type Bytes = Uint8Array<ArrayBuffer>

export const HASH_LENGTH = 32
export const SHA256 = 1

/** Longest message without metadata: its fields, and room for those of later versions. */
export const MAX_FIELDS = 256

export interface Header {
  /** Without it the payload ends where the stream does. */
  totalLength?: number
  metadata?: Bytes
  hash?: number
  resumable?: boolean
}

/** A message after its length. */
function message (...fields: Array<[number, number | Bytes | undefined]>): Bytes {
  const body = fields.flatMap(([number, value]) => value === undefined ? [] : field(number, value))
  // The length of a field of bytes, without its key.
  return Uint8Array.from(field(0, Uint8Array.from(body)).slice(1))
}

export const encodeHeader = ({ totalLength, metadata, hash, resumable }: Header): Bytes =>
  message([1, totalLength], [2, metadata], [3, hash], [4, resumable ? 1 : undefined])

export const encodeResume = (have: number, prefixHash?: Bytes): Bytes =>
  message([1, have], [2, prefixHash])

export const encodeStart = (offset: number): Bytes => message([1, offset])

export const encodeReceipt = (received: number): Bytes => message([1, received])

export function decodeHeader (body: Bytes): Header {
  const fields = fieldsOf(body)
  const [totalLength, metadata, hash] = [fields.get(1), fields.get(2), fields.get(3)]
  const header: Header = { resumable: fields.get(4) === 1 }
  if (typeof totalLength === 'number') header.totalLength = totalLength
  if (metadata instanceof Uint8Array) header.metadata = metadata.slice()
  if (typeof hash === 'number') header.hash = hash
  return header
}

/** The number, and the bytes, of `Resume`, `Start` and `Receipt`. */
export function decodeNumber (body: Bytes): { number: number, bytes: Bytes } {
  const fields = fieldsOf(body)
  const [number, bytes] = [fields.get(1), fields.get(2)]
  return {
    number: typeof number === 'number' ? number : 0,
    bytes: bytes instanceof Uint8Array ? bytes.slice() : new Uint8Array()
  }
}
