// ChaCha20-Poly1305 (RFC 8439), which WebCrypto does not have. For the few hundred bytes of a
// handshake: it is short, not fast. BigInt takes time that depends on its values; each key of a
// handshake encrypts one message, so that nobody can measure one twice.

const CONSTANTS = [0x61707865, 0x3320646e, 0x79622d32, 0x6b206574]
const P = (1n << 130n) - 5n
const CLAMP = 0x0ffffffc0ffffffc0ffffffc0fffffffn
const TAG_LENGTH = 16

type Bytes = Uint8Array<ArrayBuffer>

const rotate = (value: number, bits: number): number => (value << bits) | (value >>> (32 - bits))

function quarterRound (state: Uint32Array, a: number, b: number, c: number, d: number): void {
  for (const [bitsOfD, bitsOfB] of [[16, 12], [8, 7]] as const) {
    state[a]! += state[b]!
    state[d] = rotate(state[d]! ^ state[a]!, bitsOfD)
    state[c]! += state[d]!
    state[b] = rotate(state[b]! ^ state[c]!, bitsOfB)
  }
}

/** One block of the key stream. */
function block (key: Bytes, nonce: Bytes, counter: number): Bytes {
  const words = (bytes: Bytes): number[] => {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length)
    return Array.from({ length: bytes.length / 4 }, (_, index) => view.getUint32(4 * index, true))
  }
  const initial = Uint32Array.of(...CONSTANTS, ...words(key), counter, ...words(nonce))
  const state = initial.slice()
  for (let round = 0; round < 10; round++) {
    for (let column = 0; column < 4; column++) {
      quarterRound(state, column, column + 4, column + 8, column + 12)
    }
    for (let column = 0; column < 4; column++) {
      quarterRound(state, column, 4 + (column + 1) % 4, 8 + (column + 2) % 4, 12 + (column + 3) % 4)
    }
  }
  const out = new DataView(new ArrayBuffer(64))
  for (const [index, word] of state.entries()) {
    out.setUint32(4 * index, word + initial[index]!, true)
  }
  return new Uint8Array(out.buffer)
}

/** ChaCha20 from block 1 on, in both directions. */
function chacha20 (key: Bytes, nonce: Bytes, bytes: Bytes): Bytes {
  const out = bytes.slice()
  for (let at = 0; at < out.length; at += 64) {
    const stream = block(key, nonce, 1 + at / 64)
    for (let index = at; index < Math.min(out.length, at + 64); index++) {
      out[index]! ^= stream[index - at]!
    }
  }
  return out
}

const littleEndian = (bytes: Bytes): bigint =>
  bytes.reduceRight((value, byte) => value << 8n | BigInt(byte), 0n)

function poly1305 (key: Bytes, message: Bytes): Bytes {
  const r = littleEndian(key.subarray(0, 16)) & CLAMP
  let sum = 0n
  for (let at = 0; at < message.length; at += 16) {
    const part = message.subarray(at, at + 16)
    sum = (sum + littleEndian(part) + (1n << BigInt(8 * part.length))) * r % P
  }
  sum += littleEndian(key.subarray(16, 32))
  return Uint8Array.from(
    { length: TAG_LENGTH },
    (_, index) => Number(sum >> BigInt(8 * index) & 255n)
  )
}

function tagOf (key: Bytes, nonce: Bytes, associated: Bytes, ciphertext: Bytes): Bytes {
  const padded = (length: number): number => Math.ceil(length / 16) * 16
  const start = padded(associated.length)
  const end = start + padded(ciphertext.length)
  const message = new Uint8Array(end + 16)
  message.set(associated)
  message.set(ciphertext, start)
  const view = new DataView(message.buffer)
  view.setUint32(end, associated.length, true)
  view.setUint32(end + 8, ciphertext.length, true)
  return poly1305(block(key, nonce, 0).subarray(0, 32), message)
}

/** The ciphertext, followed by the tag. */
export function seal (key: Bytes, nonce: Bytes, associated: Bytes, plaintext: Bytes): Bytes {
  const ciphertext = chacha20(key, nonce, plaintext)
  return Uint8Array.of(...ciphertext, ...tagOf(key, nonce, associated, ciphertext))
}

/** The plaintext; undefined if the tag is not that of the ciphertext. */
export function open (
  key: Bytes,
  nonce: Bytes,
  associated: Bytes,
  sealed: Bytes
): Bytes | undefined {
  const length = sealed.length - TAG_LENGTH
  if (length < 0) return undefined
  const ciphertext = sealed.subarray(0, length)
  const tag = tagOf(key, nonce, associated, ciphertext)
  let difference = 0
  for (const [index, byte] of tag.entries()) difference |= byte ^ sealed[length + index]!
  return difference === 0 ? chacha20(key, nonce, ciphertext) : undefined
}
