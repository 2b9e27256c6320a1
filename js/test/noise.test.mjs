// The cryptography of Noise, against vectors and against Node's, and how it fails.

import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { mock, test } from 'node:test'
import { load } from './modules.mjs'

const {
  canonicalPeerId, certificateHash, connect, Identity, noise, open, peerIdOf, seal, verify
} = await load(`
  export { certificateHash, connect } from './index.js'
  export { noise } from './noise.js'
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

test('an ECDSA signature has one form, and every other is an error of the dial', async () => {
  const message = text('noise-libp2p-static-key:and a key')
  const pair = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' })
  const key = publicKey(3, pair.publicKey.export({ type: 'spki', format: 'der' }))
  const integer = bytes => [2, bytes.length, ...bytes]
  const sequence = (...bytes) => [0x30, bytes.length, ...bytes]
  const positive = bytes => bytes[0] > 127 ? [0, ...bytes] : bytes
  // Until both numbers have 32 bytes.
  let r, s
  do {
    const raw = crypto.sign('sha256', message, { key: pair.privateKey, dsaEncoding: 'ieee-p1363' });
    [r, s] = [[...raw.subarray(0, 32)], [...raw.subarray(32)]]
  } while (r[0] === 0 || s[0] === 0)
  const [first, second] = [integer(positive(r)), integer(positive(s))]
  const valid = sequence(...first, ...second)
  assert.equal(await verify(key, message, Uint8Array.from(valid)), true)
  const tagged = [...first]
  tagged[0] = 3
  for (const [what, bytes] of Object.entries({
    empty: [],
    'only a header': [0x30, 0],
    'another tag': [0x31, ...valid.slice(1)],
    'a length that is too long': [0x30, valid[1] + 1, ...valid.slice(2)],
    'bytes that follow': [...valid, 0],
    'bytes that follow in the sequence': sequence(...first, ...second, 0),
    'one number': sequence(...first),
    'no integer': sequence(...tagged, ...second),
    'a leading zero': sequence(2, first[1] + 1, 0, ...first.slice(2), ...second),
    'a negative number': sequence(...integer([128 | r[0], ...r.slice(1)]), ...second),
    'an empty number': sequence(2, 0, ...second),
    'a number of 33 bytes': sequence(...integer([1, ...r]), ...second)
  })) {
    const verified = verify(key, message, Uint8Array.from(bytes))
    await assert.rejects(verified, { name: 'ConnectError', kind: 'authentication' }, what)
  }
  for (let length = 0; length < valid.length; length++) {
    const verified = verify(key, message, Uint8Array.from(valid.slice(0, length)))
    await assert.rejects(verified, { name: 'ConnectError', kind: 'authentication' }, `${length}`)
  }
})

test('a key that is none is an error of the dial, whatever the engine throws', async () => {
  const fails = key => assert.rejects(
    verify(key, text('message'), new Uint8Array(64)),
    { name: 'ConnectError', kind: 'authentication' }
  )
  const ecdsa = Uint8Array.of(0x30, 6, 2, 1, 1, 2, 1, 1)
  for (const type of [0, 1]) await fails(publicKey(type, new Uint8Array(31)))
  await assert.rejects(
    verify(publicKey(3, new Uint8Array(31)), text('message'), ecdsa),
    { name: 'ConnectError', kind: 'authentication' }
  )
  const mocked = mock.method(crypto.webcrypto.subtle, 'importKey', async () => {
    throw new Error('of OpenSSL')
  })
  try {
    await fails(publicKey(0, new Uint8Array(300)))
  } finally {
    mocked.mock.restore()
  }
})

test('a key pair of another kind is no identity', async () => {
  const { subtle } = crypto.webcrypto
  const pair = await subtle.generateKey({ name: 'ECDSA', namedCurve: 'P-256' }, true, ['sign'])
  await assert.rejects(Identity.of(pair), { name: 'ConnectError', kind: 'invalid-option' })
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

/** A handshake with a peer whose first message has arrived. */
function begin (first = new Uint8Array(32)) {
  const io = { send () {} }
  const shaking = noise().handshake(io, { expectedPeer: undefined })
  io.onFrame({ payload: Uint8Array.of(0, first.length, ...first) })
  return shaking
}

test('failures of WebCrypto are errors of the dial', async () => {
  const { subtle } = crypto.webcrypto
  const fails = (name, error) => mock.method(subtle, name, async () => { throw error })
  for (const [name, error, kind] of [
    ['generateKey', new DOMException('no X25519', 'NotSupportedError'), 'unsupported'],
    // Without a secure context there is no `subtle`.
    ['digest', new TypeError('undefined has no digest'), 'unsupported'],
    ['generateKey', new DOMException('out of memory', 'OperationError'), 'handshake-failed']
  ]) {
    const mocked = fails(name, error)
    try {
      await assert.rejects(begin(), { name: 'ConnectError', kind, cause: error })
    } finally {
      mocked.mock.restore()
    }
  }
  const mocked = fails('generateKey', new DOMException('no Ed25519', 'NotSupportedError'))
  try {
    await assert.rejects(Identity.generate(), { name: 'ConnectError', kind: 'unsupported' })
  } finally {
    mocked.mock.restore()
  }
  const short = begin(new Uint8Array(31))
  await assert.rejects(short, { name: 'ConnectError', kind: 'handshake-failed' })
})

/** An address with three certificate hashes. */
const THREE_HASHES = '/ip4/127.0.0.1/udp/4001/webrtc-direct' + [1, 2, 3].map(byte => {
  const hash = Buffer.from([0x12, 0x20, ...new Uint8Array(32).fill(byte)])
  return `/certhash/u${hash.toString('base64url')}`
}).join('')

test('several certificate hashes are dialled one by one with Noise', async () => {
  const address = THREE_HASHES
  const dial = async (security, ...outcomes) => {
    const dialled = []
    const webRtc = async ({ certhashes }, { limits }) => {
      dialled.push([certhashes.map(([byte]) => byte), limits.connectTimeout <= 10_000])
      const kind = outcomes[dialled.length - 1]
      throw Object.assign(new Error(), { name: 'ConnectError', kind })
    }
    const error = await connect(address, { security, webRtc }).then(assert.fail, error => error)
    return [error.kind, ...dialled.map(([bytes, isWithin]) => isWithin && bytes.join())]
  }
  const [other, gone] = ['authentication', 'unreachable']
  assert.deepEqual(await dial(certificateHash, other), [other, '1,2,3'])
  assert.deepEqual(await dial(noise(), other, other, other), [other, '1', '2', '3'])
  assert.deepEqual(await dial(noise(), other, gone), [gone, '1', '2'])
})

test('a peer with a right certificate is dialled once, whatever its identity', async () => {
  const refusal = Object.assign(new Error('another peer'), { kind: 'authentication' })
  const security = { subprotocol: '', handshake: async () => { throw refusal } }
  let dials = 0
  const webRtc = async (_, dial) => {
    dials += 1
    return dial.security.handshake({ send () {} }, {})
  }
  await assert.rejects(connect(THREE_HASHES, { security, webRtc }), refusal)
  assert.equal(dials, 1)
})

test('no certificate hash is dialled after the time limit of the dial', async () => {
  let dials = 0
  const webRtc = async () => {
    dials += 1
    await new Promise(resolve => { setTimeout(resolve, 20) })
    throw Object.assign(new Error(), { kind: 'authentication' })
  }
  const dialling = connect(THREE_HASHES, { security: noise(), webRtc, connectTimeout: 10 })
  await assert.rejects(dialling, { name: 'ConnectError', kind: 'timed-out' })
  assert.equal(dials, 1)
})
