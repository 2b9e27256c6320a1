// The bytes of a frame: docs/wire.md section 1.

/** Values of `flag`. Compare by equality: 3 has the bits of 1 and 2. */
export const enum Flag {
  Fin = 0,
  StopSending = 1,
  ResetStream = 2,
  FinAck = 3,
  /** Only over a WebSocket, which has no channels of its own that could be closed. */
  ChannelClosed = 4
}

/** Length of the longest frame to send, length prefix included. */
export const MAX_FRAME = 16_384

/** Length of the longest body that is accepted: litep2p sends a full payload with a flag. */
export const MAX_BODY = 16_396

/** Payloads that are a smaller part of their message than this are copied, not to pin the rest. */
const MAX_PINNED = 4

/** Nesting limit of unknown groups, which bounds the stack that a peer can use. */
const MAX_DEPTH = 100

const enum Field {
  Flag = 1,
  Message = 2,
  ErrorCode = 3,
  MaxData = 1001,
  Stream = 1002,
  Label = 1003,
  MaxSubstreams = 1004,
  Reason = 1005,
  Draining = 1006,
  Opened = 1007
}

export const enum Wire {
  Varint = 0,
  Fixed64 = 1,
  Bytes = 2,
  StartGroup = 3,
  EndGroup = 4,
  Fixed32 = 5
}

/** One frame. Numbers above 2^53 lose their lowest bits: all of them are totals of bytes. */
export interface Frame {
  /** May have a value that is not in `Flag`, which is ignored. */
  flag?: number
  payload?: Uint8Array<ArrayBuffer>
  /** Nothing else uses the buffer of the payload, so that it may be transferred. */
  owned?: boolean
  errorCode?: number
  maxData?: number
  stream?: number
  label?: string
  maxSubstreams?: number
  reason?: string
  draining?: boolean
  opened?: number
}

/** The bytes are not frames. Final: the start of the next frame is not known. */
export class FramingError extends Error {}

const encoder = new TextEncoder()
const decoder = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

export function varintLength (value: number): number {
  let length = 1
  for (; value > 127; value = Math.floor(value / 128)) length += 1
  return length
}

/** Writes frames into a buffer that is reused: what sends them copies them. */
class FrameWriter {
  #bytes = new Uint8Array(2 * MAX_FRAME)
  #at = 0

  /** The encoded frame, valid until the next call. */
  encode (frame: Frame): Uint8Array<ArrayBuffer> {
    const { payload, label, reason } = frame
    const labelBytes = label === undefined ? undefined : encoder.encode(label)
    const reasonBytes = reason === undefined ? undefined : encoder.encode(reason)
    // The longest prefix is left free, and written last.
    this.#at = 3
    this.#uint(Field.Flag, frame.flag)
    if (payload !== undefined && payload.length > 0) this.#delimited(Field.Message, payload)
    this.#uint(Field.ErrorCode, frame.errorCode)
    this.#uint(Field.MaxData, frame.maxData)
    this.#uint(Field.Stream, frame.stream)
    this.#delimited(Field.Label, labelBytes)
    this.#uint(Field.MaxSubstreams, frame.maxSubstreams)
    this.#delimited(Field.Reason, reasonBytes)
    if (frame.draining) this.#uint(Field.Draining, 1)
    this.#uint(Field.Opened, frame.opened)
    const end = this.#at
    const length = end - 3
    const start = 3 - varintLength(length)
    this.#at = start
    this.#varint(length)
    return this.#bytes.subarray(start, end)
  }

  #varint (value: number): void {
    for (; value > 127; value = Math.floor(value / 128)) {
      this.#bytes[this.#at++] = (value % 128) | 128
    }
    this.#bytes[this.#at++] = value
  }

  #uint (field: Field, value: number | undefined): void {
    if (value === undefined) return
    this.#varint(field * 8 + Wire.Varint)
    this.#varint(value)
  }

  #delimited (field: Field, bytes: Uint8Array | undefined): void {
    if (bytes === undefined) return
    this.#varint(field * 8 + Wire.Bytes)
    this.#varint(bytes.length)
    this.#bytes.set(bytes, this.#at)
    this.#at += bytes.length
  }
}

/** Every carrier copies what it sends, so that all of them can share one buffer. */
export const writer = new FrameWriter()

/** The bytes of a frame in a buffer of its own. */
export const encodeFrame = (frame: Frame): Uint8Array<ArrayBuffer> =>
  writer.encode(frame).slice()

/** The longest payload beside a `max_data`, if `withMaxData`, in a frame of `limit` bytes. */
export function maxPayload (limit: number, others: number): number {
  // Prefix and length of the payload take three bytes each above 127.
  return Math.max(0, limit - 3 - 1 - 3 - others)
}

export class BodyReader {
  at = 0

  constructor (readonly bytes: Uint8Array<ArrayBuffer>) {}

  varint (): number {
    let value = 0
    for (let index = 0, scale = 1; index < 10; index++, scale *= 128) {
      const byte = this.bytes[this.at++]
      if (byte === undefined) throw new FramingError('truncated')
      // The tenth byte holds the 64th bit; no byte may follow.
      if (index === 9 && byte > 1) break
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
    throw new FramingError('varint')
  }

  key (): [number, Wire] {
    const key = this.varint()
    const field = Math.floor(key / 8)
    if (key >= 2 ** 32) throw new FramingError('field-number')
    if ((key & 7) > Wire.Fixed32) throw new FramingError('wire-type')
    if (field === 0) throw new FramingError('field-number')
    return [field, key & 7]
  }

  take (length: number): Uint8Array<ArrayBuffer> {
    const start = this.at
    if (length > this.bytes.length - start) throw new FramingError('truncated')
    this.at += length
    return this.bytes.subarray(start, this.at)
  }

  uint (wire: Wire): number {
    if (wire !== Wire.Varint) throw new FramingError('wire-type')
    return this.varint()
  }

  delimited (wire: Wire): Uint8Array<ArrayBuffer> {
    if (wire !== Wire.Bytes) throw new FramingError('wire-type')
    return this.take(this.varint())
  }

  text (wire: Wire): string {
    const bytes = this.delimited(wire)
    try {
      return decoder.decode(bytes)
    } catch {
      throw new FramingError('utf8')
    }
  }

  skip (field: number, wire: Wire, depth: number): void {
    if (depth === 0) throw new FramingError('depth')
    if (wire === Wire.Varint) this.varint()
    else if (wire === Wire.Fixed64) this.take(8)
    else if (wire === Wire.Bytes) this.delimited(wire)
    else if (wire === Wire.Fixed32) this.take(4)
    else if (wire === Wire.EndGroup) throw new FramingError('end-group')
    else {
      let [inner, innerWire] = this.key()
      for (; inner !== field || innerWire !== Wire.EndGroup; [inner, innerWire] = this.key()) {
        this.skip(inner, innerWire, depth - 1)
      }
    }
  }
}

/** Protobuf truncates enums and 32-bit fields that are wider. */
const truncated = (value: number): number => value % 2 ** 32

/** Parses the body of one frame. The last occurrence of a field counts. */
export function decodeBody (bytes: Uint8Array<ArrayBuffer>): Frame {
  const reader = new BodyReader(bytes)
  const frame: Frame = {}
  while (reader.at < bytes.length) {
    const [field, wire] = reader.key()
    switch (field) {
      case Field.Flag: frame.flag = truncated(reader.uint(wire)); break
      case Field.Message: frame.payload = reader.delimited(wire); break
      case Field.ErrorCode: frame.errorCode = truncated(reader.uint(wire)); break
      case Field.MaxData: frame.maxData = reader.uint(wire); break
      case Field.Stream: frame.stream = reader.uint(wire); break
      case Field.Label: frame.label = reader.text(wire); break
      case Field.MaxSubstreams: frame.maxSubstreams = reader.uint(wire); break
      case Field.Reason: frame.reason = reader.text(wire); break
      case Field.Draining: frame.draining = reader.uint(wire) !== 0; break
      case Field.Opened: frame.opened = reader.uint(wire); break
      default: reader.skip(field, wire, MAX_DEPTH)
    }
  }
  if (frame.payload?.length === 0) delete frame.payload
  return frame
}

const NOTHING = new Uint8Array()

/**
 * Splits a byte stream into frames, whatever the boundaries of its messages. Holds one incomplete
 * frame at most: each message is read to its end before the next.
 */
export class FrameDecoder {
  #rest = NOTHING
  /** Whether the rest is a whole message, of which nothing has been read. */
  #isFresh = false
  #prefix = 0
  #prefixLength = 0
  /** Length of the body; negative within the prefix. */
  #length = -1
  #body: Uint8Array<ArrayBuffer> | undefined
  #filled = 0

  push (message: Uint8Array<ArrayBuffer>): void {
    this.#rest = message
    this.#isFresh = true
  }

  /** The next frame; undefined if it is incomplete. Throws `FramingError`. */
  next (): Frame | undefined {
    const isWhole = this.#isFresh && this.#prefixLength === 0
    this.#isFresh = false
    if (this.#length < 0 && !this.#readPrefix()) return undefined
    const length = this.#length
    if (this.#body === undefined && this.#rest.length >= length) {
      const body = this.#rest.subarray(0, length)
      const backing = this.#rest.buffer.byteLength
      this.#skip(length)
      return this.#finish(body, isWhole && this.#rest.length === 0, backing)
    }
    if (this.#rest.length === 0) return undefined
    this.#body ??= new Uint8Array(length)
    const part = this.#rest.subarray(0, length - this.#filled)
    this.#body.set(part, this.#filled)
    this.#filled += part.length
    this.#skip(part.length)
    return this.#filled < length ? undefined : this.#finish(this.#body, true, length)
  }

  #finish (body: Uint8Array<ArrayBuffer>, owned: boolean, backing: number): Frame {
    this.#length = -1
    this.#body = undefined
    this.#filled = 0
    const frame = decodeBody(body)
    if (frame.payload !== undefined) {
      frame.owned = owned
      if (frame.payload.length * MAX_PINNED < backing) {
        frame.payload = frame.payload.slice()
        frame.owned = true
      }
    }
    return frame
  }

  #readPrefix (): boolean {
    for (let index = 0; index < this.#rest.length; index++) {
      const byte = this.#rest[index]!
      // A trailing zero byte adds nothing: the length was complete without it.
      if (byte === 0 && this.#prefixLength > 0) throw new FramingError('non-minimal-length')
      this.#prefix += (byte & 127) * 128 ** this.#prefixLength
      this.#prefixLength += 1
      if (byte < 128) {
        if (this.#prefix > MAX_BODY) throw new FramingError('too-long')
        this.#length = this.#prefix
        this.#prefix = this.#prefixLength = 0
        this.#skip(index + 1)
        return true
      }
      if (this.#prefixLength === 3) throw new FramingError('too-long')
    }
    this.#rest = NOTHING
    return false
  }

  /** Keeps nothing of a message that was read: its buffer may have been transferred. */
  #skip (length: number): void {
    this.#rest = length < this.#rest.length ? this.#rest.subarray(length) : NOTHING
  }
}
