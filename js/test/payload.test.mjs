// The messages of payloads, on the bytes that the tests of Rust use too, and SHA-256.

import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { load } from './modules.mjs'

const {
  decodeHeader, decodeNumber, encodeHeader, encodeReceipt, encodeResume, encodeStart, Sha256
} = await load("export * from './payload/wire.js'; export * from './payload/sha256.js'")

const FILE = readFileSync(new URL('../../proto/payloads.txt', import.meta.url), 'utf8')
const bytes = hex => Uint8Array.from(Buffer.from(hex, 'hex'))

test('messages of the file, in both directions', () => {
  let cases = 0
  for (const line of FILE.split('\n').filter(line => line !== '' && !line.startsWith('#'))) {
    const [message, encoded] = line.split(' = ')
    const [name, ...words] = message.split(' ')
    const fields = Object.fromEntries(words.map(word => word.split('=')))
    const body = bytes(encoded).slice(1)
    if (name === 'header') {
      const header = {
        ...fields.total_len && { totalLength: Number(fields.total_len) },
        ...fields.metadata && { metadata: bytes(fields.metadata) },
        ...fields.hash && { hash: Number(fields.hash) },
        resumable: fields.resumable === '1'
      }
      assert.deepEqual(encodeHeader(header), bytes(encoded), line)
      assert.deepEqual(decodeHeader(body), header, line)
    } else {
      const number = Number(fields.have ?? fields.offset ?? fields.received)
      const hash = fields.prefix_hash === undefined ? undefined : bytes(fields.prefix_hash)
      const encode = { resume: encodeResume, start: encodeStart, receipt: encodeReceipt }[name]
      assert.deepEqual(encode(number, hash), bytes(encoded), line)
      assert.deepEqual(decodeNumber(body), { number, bytes: hash ?? new Uint8Array() }, line)
    }
    cases += 1
  }
  assert.equal(cases, 7)
})

test('SHA-256 as in Node, in any pieces', () => {
  for (let length = 0; length < 300; length++) {
    const content = crypto.randomBytes(length)
    const hasher = new Sha256()
    for (let at = 0, step = 1; at < length; at += step, step = step * 2 % 131) {
      hasher.update(content.subarray(at, at + step))
      // A digest in between changes nothing.
      if (at % 3 === 0) hasher.digest()
    }
    const expected = crypto.createHash('sha256').update(content).digest()
    assert.deepEqual(hasher.digest(), Uint8Array.from(expected), `length ${length}`)
  }
})
