// The cryptography of Noise, against vectors and against Node's.

import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { test } from 'node:test'
import { load } from './modules.mjs'

const { canonicalPeerId, Identity, open, peerIdOf, seal, verify } = await load(`
  export { open, seal } from './noise/chacha.js'
  export { canonicalPeerId, Identity, peerIdOf, verify } from './noise/identity.js'
`)

const hex = text => Uint8Array.from(Buffer.from(text.replaceAll(' ', ''), 'hex'))
const text = value => new TextEncoder().encode(value)

test('ChaCha20-Poly1305: RFC 8439 section 2.8.2', () => {
  const key = Uint8Array.from({ length: 32 }, (_, index) => 0x80 + index)
  const nonce = hex('070000004041424344454647')
  const associated = hex('50515253c0c1c2c3c4c5c6c7')
  const plaintext = text('Ladies and Gentlemen of the class of \'99: If I could offer you only one ' +
    'tip for the future, sunscreen would be it.')
  const sealed = hex('d31a8d34648e60db7b86afbc53ef7ec2 a4aded51296e08fea9e2b5a736ee62d6' +
    '3dbea45e8ca9671282fafb69da92728b 1a71de0a9e060b2905d6a5b67ecd3b36' +
    '92ddbd7f2d778b8c9803aee328091b58 fab324e4fad675945585808b4831d7bc' +
    '3ff4def08e4b7a9de576d26586cec64b 6116 1ae10b594f09e26a7e902ecbd0600691')
  assert.deepEqual(seal(key, nonce, associated, plaintext), sealed)
  assert.deepEqual(open(key, nonce, associated, sealed), plaintext)
})

test('ChaCha20-Poly1305: every length as in Node, and no changed byte passes', () => {
  for (let length = 0; length < 200; length++) {
    const [key, nonce] = [32, 12].map(size => Uint8Array.from(crypto.randomBytes(size)))
    const [
      associated,
      plaintext
    ] = [length % 37, length].map(size => Uint8Array.from(crypto.randomBytes(size)))
    const cipher = crypto.createCipheriv('chacha20-poly1305', key, nonce, { authTagLength: 16 })
    cipher.setAAD(associated, { plaintextLength: length })
    const expected = Buffer.concat([cipher.update(plaintext), cipher.final(), cipher.getAuthTag()])
    const sealed = seal(key, nonce, associated, plaintext)
    assert.deepEqual(sealed, Uint8Array.from(expected), `length ${length}`)
    sealed[length % sealed.length] ^= 1 << (length % 8)
    assert.equal(open(key, nonce, associated, sealed), undefined, `length ${length}`)
  }
  assert.equal(open(new Uint8Array(32), new Uint8Array(12), hex(''), new Uint8Array(15)), undefined)
})

/** A public key in protobuf. */
const publicKey = (type, data) => {
  const length = data.length < 128 ? [data.length] : [data.length & 127 | 128, data.length >> 7]
  return Uint8Array.of(8, type, 18, ...length, ...data)
}

test('signatures of every kind of key that WebCrypto has', async () => {
  const message = text('noise-libp2p-static-key:and a key')
  const identity = await Identity.generate()
  const kinds = [[identity.publicKey, await identity.sign(message)]]
  for (const [type, kind, options] of [
    [0, 'rsa', { modulusLength: 2048 }],
    [3, 'ec', { namedCurve: 'P-256' }]
  ]) {
    const pair = crypto.generateKeyPairSync(kind, options)
    const spki = pair.publicKey.export({ type: 'spki', format: 'der' })
    // Signatures of ECDSA in DER are of different lengths.
    for (let round = 0; round < 20; round++) {
      kinds.push(
        [publicKey(type, spki), Uint8Array.from(crypto.sign('sha256', message, pair.privateKey))]
      )
    }
  }
  for (const [key, signature] of kinds) {
    assert.equal(await verify(key, message, signature), true)
    assert.equal(await verify(key, text('another'), signature), false)
  }
  const secp256k1 = publicKey(2, new Uint8Array(33))
  await assert.rejects(verify(secp256k1, message, new Uint8Array(70)), { kind: 'authentication' })
})

test('peer ids', async () => {
  const identity = await Identity.generate()
  assert.match(identity.peerId, /^12D3KooW\w{44}$/)
  assert.equal(await peerIdOf(identity.publicKey), identity.peerId)
  assert.equal((await Identity.of(identity.keyPair)).peerId, identity.peerId)
  // Of the peer-ids specification: one id in both forms.
  const base58 = 'QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N'
  const cid = 'bafzbeie5745rpv2m6tjyuugywy4d5ewrqgqqhfnf445he3omzpjbx5xqxe'
  assert.equal(canonicalPeerId(cid), base58)
  assert.equal(canonicalPeerId(base58), base58)
  assert.throws(() => canonicalPeerId('bafy'), { kind: 'invalid-address' })
})
