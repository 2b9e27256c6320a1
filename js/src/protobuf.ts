// The few protobuf messages beside frames: of the handshake, and of payloads.

import { BodyReader, FramingError, Wire } from './frame.js'

type Bytes = Uint8Array<ArrayBuffer>

function varint (value: number): number[] {
  const bytes = []
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128)
  return [...bytes, value]
}

/** One field: an integer, or bytes. */
export function field (number: number, value: number | Bytes): number[] {
  return typeof value === 'number'
    ? [...varint(number * 8 + Wire.Varint), ...varint(value)]
    : [...varint(number * 8 + Wire.Bytes), ...varint(value.length), ...value]
}

/** The fields of a message, the last of each number. Throws `FramingError`. */
export function fieldsOf (bytes: Bytes): Map<number, number | Bytes> {
  const reader = new BodyReader(bytes)
  const fields = new Map<number, number | Bytes>()
  while (reader.at < bytes.length) {
    const [number, wire] = reader.key()
    if (wire === Wire.Varint) fields.set(number, reader.varint())
    else if (wire === Wire.Bytes) fields.set(number, reader.delimited(wire))
    else reader.skip(number, wire, 16)
  }
  return fields
}

/** A field of bytes. Throws `FramingError` if it is missing, or an integer. */
export function bytesOf (fields: Map<number, number | Bytes>, number: number): Bytes {
  const value = fields.get(number)
  if (!(value instanceof Uint8Array)) throw new FramingError(`field ${number} is missing`)
  return value
}
