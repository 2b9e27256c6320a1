// Identities and public keys of peers: the libp2p peer-ids specification.

import { ConnectError } from '../errors.js'
import { bytesOf, field, fieldsOf } from '../protobuf.js'

type Bytes = Uint8Array<ArrayBuffer>

const enum KeyType {
  Rsa = 0,
  Ed25519 = 1,
  Secp256k1 = 2,
  Ecdsa = 3
}

const BASE58 = '123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz'
const BASE32 = 'abcdefghijklmnopqrstuvwxyz234567'

/** Longer keys are named by their hash. */
const MAX_INLINE_KEY = 42

/** The key pair of this side, with which it proves its peer id. */
export class Identity {
  private constructor (
    /** An Ed25519 pair. It can be stored in IndexedDB, and need not be extractable. */
    readonly keyPair: CryptoKeyPair,
    /** The public key in protobuf. */
    readonly publicKey: Bytes,
    readonly peerId: string
  ) {}

  /** A new identity, whose private key can not be read out. Rejects with a `ConnectError`. */
  static generate (): Promise<Identity> {
    return typed((async () => {
      const pair = await crypto.subtle.generateKey('Ed25519', false, ['sign', 'verify'])
      return Identity.of(pair as CryptoKeyPair)
    })())
  }

  /** The identity of an Ed25519 key pair that was stored. Rejects with a `ConnectError`. */
  static of (keyPair: CryptoKeyPair): Promise<Identity> {
    return typed((async () => {
      if (keyPair.publicKey.algorithm.name !== 'Ed25519') {
        throw new ConnectError('invalid-option', 'no Ed25519 key pair')
      }
      const raw = new Uint8Array(await crypto.subtle.exportKey('raw', keyPair.publicKey))
      const publicKey = Uint8Array.of(...field(1, KeyType.Ed25519), ...field(2, raw))
      return new Identity(keyPair, publicKey, await peerIdOf(publicKey))
    })())
  }

  /** @internal */
  async sign (message: Bytes): Promise<Bytes> {
    return new Uint8Array(await crypto.subtle.sign('Ed25519', this.keyPair.privateKey, message))
  }
}

/** WebCrypto does not have an algorithm. */
const isUnsupported = (error: unknown): boolean =>
  error instanceof DOMException && error.name === 'NotSupportedError'

/** Failures of WebCrypto as errors of the dial. */
export async function typed<T> (work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (cause) {
    if (cause instanceof ConnectError) throw cause
    // Without an algorithm, or without a secure context, where all of it is undefined.
    const isMissing = cause instanceof TypeError || isUnsupported(cause)
    const kind = isMissing ? 'unsupported' : 'handshake-failed'
    throw new ConnectError(kind, `WebCrypto: ${cause}`, { cause })
  }
}

/** The id of the peer with this public key, in protobuf. */
export async function peerIdOf (publicKey: Bytes): Promise<string> {
  return base58(await multihashOf(publicKey))
}

async function multihashOf (publicKey: Bytes): Promise<Bytes> {
  if (publicKey.length <= MAX_INLINE_KEY) return Uint8Array.of(0, publicKey.length, ...publicKey)
  return Uint8Array.of(
    0x12,
    0x20,
    ...new Uint8Array(await crypto.subtle.digest('SHA-256', publicKey))
  )
}

/** The id in its usual form: a CID in base32 names the same peer as its multihash in base58. */
export function canonicalPeerId (text: string): string {
  if (!text.startsWith('b')) return text
  const cid = base32(text.slice(1))
  // Version 1, and the codec of public keys.
  if (cid[0] !== 1 || cid[1] !== 0x72) {
    throw new ConnectError('invalid-address', `no peer id: ${text}`)
  }
  return base58(cid.subarray(2))
}

function base58 (bytes: Bytes): string {
  let value = bytes.reduce((value, byte) => value * 256n + BigInt(byte), 0n)
  let text = ''
  for (; value > 0n; value /= 58n) text = BASE58[Number(value % 58n)]! + text
  const zeros = bytes.findIndex(byte => byte !== 0)
  return '1'.repeat(Math.max(0, zeros)) + text
}

function base32 (text: string): Bytes {
  const out: number[] = []
  let bits = 0
  let value = 0
  for (const char of text) {
    value = (value << 5 | BASE32.indexOf(char)) & 0xfff
    bits += 5
    if (bits >= 8) out.push(value >> (bits -= 8) & 255)
  }
  return Uint8Array.from(out)
}

/** Whether the peer with this public key, in protobuf, has signed `message`. */
export async function verify (
  publicKey: Bytes,
  message: Bytes,
  signature: Bytes
): Promise<boolean> {
  const fields = fieldsOf(publicKey)
  const data = bytesOf(fields, 2)
  const type = fields.get(1)
  const check = async (
    format: 'raw' | 'spki',
    algorithm: EcKeyImportParams | RsaHashedImportParams | { name: string },
    bytes: Bytes
  ): Promise<boolean> => {
    const { subtle } = crypto
    try {
      // `importKey` has an overload for each format.
      const key = await subtle.importKey(format as 'raw', data, algorithm, false, ['verify'])
      return await subtle.verify({ hash: 'SHA-256', ...algorithm }, key, bytes, message)
    } catch (cause) {
      if (isUnsupported(cause)) throw cause
      // Each engine has an error of its own choice for a key that is none.
      throw new ConnectError('authentication', `the key of the peer: ${cause}`, { cause })
    }
  }
  switch (type) {
    case KeyType.Ed25519: return check('raw', { name: 'Ed25519' }, signature)
    case KeyType.Rsa: return check(
      'spki',
      { name: 'RSASSA-PKCS1-v1_5', hash: 'SHA-256' },
      signature
    )
    case KeyType.Ecdsa: return check(
      'spki',
      { name: 'ECDSA', namedCurve: 'P-256' },
      rawSignature(signature)
    )
    default: throw new ConnectError(
      'authentication',
      `the browser can not verify keys of type ${type}`
    )
  }
}

/**
 * `r` and `s` of an ECDSA signature in DER, 32 bytes each, as WebCrypto takes them. Throws
 * `ConnectError` for one that is no DER: a second form of a signature would be accepted too.
 */
function rawSignature (der: Bytes): Bytes {
  const out = new Uint8Array(64)
  let at = 2
  let isValid = der[0] === 0x30 && der[1] === der.length - 2
  for (const end of [32, 64]) {
    const length = der[at + 1] ?? 0
    const [first = 128, second = 0] = der.subarray(at + 2, at + 2 + length)
    // Positive, and with a leading zero only before a byte that would be a sign.
    isValid &&= der[at] === 2 && first < 128 && (first > 0 || second > 127)
    const digits = der.subarray(first > 0 ? at + 2 : at + 3, at + 2 + length)
    isValid &&= digits.length <= 32
    if (isValid) out.set(digits, end - digits.length)
    at += 2 + length
  }
  if (!isValid || at !== der.length) {
    throw new ConnectError('authentication', 'the signature of the peer is no DER')
  }
  return out
}
