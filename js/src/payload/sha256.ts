// SHA-256 (FIPS 180-4) in pieces, which WebCrypto can not do.

const BLOCK = 64

/** The fractional parts of the cube roots, and of the square roots, of the first primes. */
const [K, INITIAL] = constants()

function constants (): [Uint32Array, Uint32Array] {
  const primes: number[] = []
  for (let number = 2; primes.length < 64; number++) {
    if (primes.every(prime => number % prime !== 0)) primes.push(number)
  }
  const fraction = (root: number): number => (root - Math.floor(root)) * 2 ** 32
  return [
    Uint32Array.from(primes, prime => fraction(Math.cbrt(prime))),
    Uint32Array.from(primes.slice(0, 8), prime => fraction(Math.sqrt(prime)))
  ]
}

export class Sha256 {
  #state: Uint32Array = INITIAL.slice()
  readonly #rest = new Uint8Array(BLOCK)
  #restLength = 0
  #length = 0
  readonly #schedule = new Uint32Array(64)

  update (bytes: Uint8Array): void {
    this.#length += bytes.length
    let at = 0
    if (this.#restLength > 0) {
      at = Math.min(BLOCK - this.#restLength, bytes.length)
      this.#rest.set(bytes.subarray(0, at), this.#restLength)
      this.#restLength += at
      if (this.#restLength < BLOCK) return
      this.#block(this.#rest, 0)
      this.#restLength = 0
    }
    for (; at + BLOCK <= bytes.length; at += BLOCK) this.#block(bytes, at)
    this.#rest.set(bytes.subarray(at))
    this.#restLength = bytes.length - at
  }

  /** The hash of what was added so far. More may be added. */
  digest (): Uint8Array<ArrayBuffer> {
    const copy = new Sha256()
    copy.#state = this.#state.slice()
    const end = new Uint8Array(this.#restLength < 56 ? BLOCK : 2 * BLOCK)
    end.set(this.#rest.subarray(0, this.#restLength))
    end[this.#restLength] = 0x80
    const view = new DataView(end.buffer)
    view.setUint32(end.length - 8, Math.floor(this.#length / 2 ** 29))
    view.setUint32(end.length - 4, this.#length % 2 ** 29 * 8)
    for (let at = 0; at < end.length; at += BLOCK) copy.#block(end, at)
    const out = new DataView(new ArrayBuffer(32))
    for (const [index, word] of copy.#state.entries()) out.setUint32(4 * index, word)
    return new Uint8Array(out.buffer)
  }

  #block (bytes: Uint8Array, at: number): void {
    const w = this.#schedule
    for (let i = 0; i < 16; i++, at += 4) {
      w[i] = bytes[at]! << 24 | bytes[at + 1]! << 16 | bytes[at + 2]! << 8 | bytes[at + 3]!
    }
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15]!, w[i - 2]!]
      const s0 = (x >>> 7 | x << 25) ^ (x >>> 18 | x << 14) ^ x >>> 3
      const s1 = (y >>> 17 | y << 15) ^ (y >>> 19 | y << 13) ^ y >>> 10
      w[i] = w[i - 16]! + s0 + w[i - 7]! + s1
    }
    let [a, b, c, d, e, f, g, h] = this.#state as unknown as
      [number, number, number, number, number, number, number, number]
    for (let i = 0; i < 64; i++) {
      const s1 = (e >>> 6 | e << 26) ^ (e >>> 11 | e << 21) ^ (e >>> 25 | e << 7)
      const t1 = h + s1 + (e & f ^ ~e & g) + K[i]! + w[i]! | 0
      const s0 = (a >>> 2 | a << 30) ^ (a >>> 13 | a << 19) ^ (a >>> 22 | a << 10)
      const t2 = s0 + (a & b ^ a & c ^ b & c) | 0
      h = g
      g = f
      f = e
      e = d + t1 | 0
      d = c
      c = b
      b = a
      a = t1 + t2 | 0
    }
    for (const [index, word] of [a, b, c, d, e, f, g, h].entries()) this.#state[index]! += word
  }
}
