// The side of the dialler in Noise XX: the responder, since the listener begins.
//
//   <- e
//   -> e, ee, s, es, identity
//   <- s, se, identity

import { ConnectError } from '../errors.js'
import { FramingError } from '../frame.js'
import type { HandshakeContext, HandshakeIo, Peer } from '../security.js'
import { open, seal } from './chacha.js'
import { canonicalPeerId, peerIdOf, verify, Identity } from './identity.js'
import { failed, HandshakeMessages } from './messages.js'
import { prologueOf } from './prologue.js'
import { bytesOf, field, fieldsOf } from '../protobuf.js'

type Bytes = Uint8Array<ArrayBuffer>

/** Exactly as long as a hash. */
const NAME = 'Noise_XX_25519_ChaChaPoly_SHA256'
const SIGNED_PREFIX = 'noise-libp2p-static-key:'

const KEY_LENGTH = 32
const TAG_LENGTH = 16

/** Fields of `NoiseHandshakePayload` and `NoiseExtensions`. */
const IDENTITY_KEY = 1
const IDENTITY_SIG = 2
const EXTENSIONS = 4
const PROTOCOL_LABELS = 1001

const text = (value: string): Bytes => new TextEncoder().encode(value)
const concat = (...parts: Bytes[]): Bytes => Uint8Array.from(parts.flatMap(part => [...part]))

async function hmac (key: Bytes, bytes: Bytes): Promise<Bytes> {
  const imported = await crypto.subtle.importKey(
    'raw',
    key,
    { name: 'HMAC', hash: 'SHA-256' },
    false,
    ['sign']
  )
  return new Uint8Array(await crypto.subtle.sign('HMAC', imported, bytes))
}

/** SymmetricState of the Noise specification. */
class SymmetricState {
  #hash = text(NAME)
  #chainingKey = text(NAME)
  #key: Bytes = new Uint8Array(KEY_LENGTH)
  #nonce = 0

  async mixHash (bytes: Bytes): Promise<void> {
    this.#hash = new Uint8Array(await crypto.subtle.digest('SHA-256', concat(this.#hash, bytes)))
  }

  /** Mixes in the secret of a private and a public key. */
  async mixKey (own: CryptoKey, remote: Bytes): Promise<void> {
    const key = await crypto.subtle.importKey('raw', remote, 'X25519', false, [])
    // Fails for keys of low order, whose secret everybody knows.
    const algorithm = { name: 'X25519', public: key }
    const bits = await crypto.subtle.deriveBits(algorithm, own, 256).catch(() => {
      throw failed('the peer sent a key of low order')
    })
    const temporary = await hmac(this.#chainingKey, new Uint8Array(bits))
    this.#chainingKey = await hmac(temporary, Uint8Array.of(1))
    this.#key = await hmac(temporary, concat(this.#chainingKey, Uint8Array.of(2)))
    this.#nonce = 0
  }

  async encrypt (plaintext: Bytes): Promise<Bytes> {
    const sealed = seal(this.#key, this.#nextNonce(), this.#hash, plaintext)
    await this.mixHash(sealed)
    return sealed
  }

  async decrypt (sealed: Bytes): Promise<Bytes> {
    const plaintext = open(this.#key, this.#nextNonce(), this.#hash, sealed)
    if (plaintext === undefined) {
      // Also what a man in the middle sees, whose certificates are not in our prologue.
      throw new ConnectError(
        'authentication',
        'Noise: the peer has other keys, or another certificate'
      )
    }
    await this.mixHash(sealed)
    return plaintext
  }

  #nextNonce (): Bytes {
    const nonce = new Uint8Array(12)
    nonce[4] = this.#nonce++
    return nonce
  }
}

async function generate (): Promise<{ privateKey: CryptoKey, raw: Bytes }> {
  const pair = await crypto.subtle.generateKey('X25519', false, ['deriveBits']) as CryptoKeyPair
  const raw = new Uint8Array(await crypto.subtle.exportKey('raw', pair.publicKey))
  return { privateKey: pair.privateKey, raw }
}

/** Proves `identity` to the peer, and has the peer prove its own. */
export async function handshake (
  io: HandshakeIo,
  context: HandshakeContext,
  identity?: Identity
): Promise<Peer> {
  const messages = new HandshakeMessages(io, 2)
  const state = new SymmetricState()
  await state.mixHash(prologueOf(context))

  const first = await messages.next()
  if (first.length < KEY_LENGTH) throw failed('the first message is too short')
  const remoteEphemeral = first.slice(0, KEY_LENGTH)
  await state.mixHash(remoteEphemeral)
  await state.mixHash(first.slice(KEY_LENGTH))

  const ephemeral = await generate()
  const own = await generate()
  await state.mixHash(ephemeral.raw)
  await state.mixKey(ephemeral.privateKey, remoteEphemeral)
  const sealedStatic = await state.encrypt(own.raw)
  await state.mixKey(own.privateKey, remoteEphemeral)
  identity ??= await Identity.generate()
  const signature = await identity.sign(concat(text(SIGNED_PREFIX), own.raw))
  const payload = Uint8Array.of(
    ...field(IDENTITY_KEY, identity.publicKey),
    ...field(IDENTITY_SIG, signature),
    ...field(EXTENSIONS, Uint8Array.from(field(PROTOCOL_LABELS, 1)))
  )
  messages.send(concat(ephemeral.raw, sealedStatic, await state.encrypt(payload)))

  const last = await messages.next()
  const sealedLength = KEY_LENGTH + TAG_LENGTH
  if (last.length < sealedLength + TAG_LENGTH) throw failed('the last message is too short')
  const remoteStatic = await state.decrypt(last.slice(0, sealedLength))
  await state.mixKey(ephemeral.privateKey, remoteStatic)
  return verified(await state.decrypt(last.slice(sealedLength)), remoteStatic, context.expectedPeer)
}

async function verified (
  payload: Bytes,
  remoteStatic: Bytes,
  expected: string | undefined
): Promise<Peer> {
  try {
    const fields = fieldsOf(payload)
    const key = bytesOf(fields, IDENTITY_KEY)
    const message = concat(text(SIGNED_PREFIX), remoteStatic)
    if (!await verify(key, message, bytesOf(fields, IDENTITY_SIG))) {
      throw new ConnectError('authentication', 'the signature of the peer is wrong')
    }
    const peerId = await peerIdOf(key)
    if (expected !== undefined && canonicalPeerId(expected) !== peerId) {
      throw new ConnectError('authentication', `the peer is ${peerId}, not ${expected}`)
    }
    const extensions = fields.get(EXTENSIONS)
    const takesLabels =
      extensions instanceof Uint8Array && fieldsOf(extensions).get(PROTOCOL_LABELS) === 1
    return { peerId, takesLabels }
  } catch (error) {
    if (error instanceof FramingError) throw failed(`the identity of the peer: ${error.message}`)
    throw error
  }
}
