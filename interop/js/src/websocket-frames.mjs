// A codec for the frames of the WebSocket carrier: uvarint(length) and a protobuf message.

const text = new TextEncoder()

export const FLAG = { FIN: 0, STOP_SENDING: 1, RESET_STREAM: 2, FIN_ACK: 3 }

function varint (value) {
  const bytes = []
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) | 128)
  return [...bytes, value]
}

const uint = (field, value) => value == null ? [] : [...varint(field * 8), ...varint(value)]
const bytes = (field, value) => value == null
  ? []
  : [...varint(field * 8 + 2), ...varint(value.length), ...value]

/** One frame. `message` is an array of bytes, `label` a string. */
export function encode ({ flag, message, maxData, stream, label }) {
  const body = [
    ...uint(1, flag),
    ...bytes(2, message),
    ...uint(1001, maxData),
    ...uint(1002, stream),
    ...bytes(1003, label == null ? null : text.encode(label))
  ]
  return new Uint8Array([...varint(body.length), ...body])
}

export function concat (...frames) {
  return new Uint8Array(frames.flatMap(frame => [...frame]))
}

/** The frames of one message; the carrier under test never splits a frame. */
export function * decode (data) {
  let at = 0
  const number = () => {
    let value = 0
    for (let scale = 1; ; scale *= 128) {
      const byte = data[at++]
      value += (byte & 127) * scale
      if (byte < 128) return value
    }
  }
  while (at < data.length) {
    const length = number()
    const end = at + length
    const frame = {}
    while (at < end) {
      const key = number()
      const field = Math.floor(key / 8)
      const value = number()
      if (key % 8 === 2) {
        const content = data.slice(at, at += value)
        if (field === 2) frame.message = content
        if (field === 1003) frame.label = content
      } else {
        frame[{ 1: 'flag', 3: 'errorCode', 1001: 'maxData', 1002: 'stream', 1004: 'maxSubstreams' }[field]] = value
      }
    }
    yield frame
  }
}
