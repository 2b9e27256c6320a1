// The codec, on the bytes that the tests of Rust use too.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { load } from './modules.mjs'

const { decodeBody, encodeFrame, FrameDecoder, FramingError, MAX_BODY, maxPayload, MAX_FRAME } =
  await load("export * from './frame.js'")

const FRAMES = readFileSync(new URL('../../proto/frames.txt', import.meta.url), 'utf8')

const NUMBERS = {
  flag: 'flag',
  error_code: 'errorCode',
  max_data: 'maxData',
  stream: 'stream',
  max_substreams: 'maxSubstreams',
  opened: 'opened'
}

function bytesOf (text) {
  const bytes = text.split(' ').filter(word => word !== '').flatMap(word => {
    const pattern = /^pattern:(\d+)$/.exec(word)
    return pattern === null
      ? [...Buffer.from(word, 'hex')]
      : Array.from({ length: Number(pattern[1]) }, (_, index) => index % 251)
  })
  return Uint8Array.from(bytes)
}

function frameOf (fields) {
  const frame = {}
  for (const field of fields.split(' ').filter(field => field !== '')) {
    const [name, value] = field.split('=')
    if (name === 'payload') frame.payload = bytesOf(value)
    else if (name === 'draining') frame.draining = value !== '0'
    else if (NUMBERS[name] === undefined) frame[name] = value
    else frame[NUMBERS[name]] = Number(value)
  }
  return frame
}

/** All frames of `messages`. Whether a payload owns its buffer is no part of the frame. */
function decodeAll (...messages) {
  const decoder = new FrameDecoder()
  const frames = []
  for (const message of messages) {
    decoder.push(message)
    for (let frame = decoder.next(); frame !== undefined; frame = decoder.next()) {
      delete frame.owned
      if (frame.payload !== undefined) frame.payload = frame.payload.slice()
      frames.push(frame)
    }
  }
  return frames
}

const lines = FRAMES.split('\n').filter(line => line !== '' && !line.startsWith('#'))

test('frames of the file', () => {
  const cases = { both: 0, decoded: 0, malformed: 0 }
  for (const line of lines) {
    const equal = line.indexOf(' = ')
    if (equal >= 0) {
      const [frame, bytes] = [frameOf(line.slice(0, equal)), bytesOf(line.slice(equal + 3))]
      assert.deepEqual(encodeFrame(frame), bytes, line)
      assert.deepEqual(decodeAll(bytes), [frame], line)
      cases.both += 1
      continue
    }
    const [what, encoded] = line.split(' < ')
    if (what.startsWith('error ')) {
      const kind = what.slice('error '.length)
      assert.throws(() => decodeBody(bytesOf(encoded)), { message: kind }, line)
      cases.malformed += 1
    } else {
      assert.deepEqual(decodeAll(bytesOf(encoded)), [frameOf(what)], line)
      cases.decoded += 1
    }
  }
  for (const [name, count] of Object.entries(cases)) assert.ok(count > 5, `${count} ${name}`)
})

test('groups that are nested too deeply', () => {
  const deep = depth => Uint8Array.from([...Array(depth).fill(0x23), ...Array(depth).fill(0x24)])
  assert.deepEqual(decodeBody(deep(100)), {})
  assert.throws(() => decodeBody(deep(101)), { message: 'depth' })
})

test('frames that are cut and merged in any way', () => {
  const all = lines.filter(
    line => line.includes(' = ')
  ).map(line => bytesOf(line.split(' = ').at(-1)))
  const stream = Uint8Array.from(all.flatMap(bytes => [...bytes]))
  const expected = all.flatMap(bytes => decodeAll(bytes))
  for (const step of [1, 2, 3, 7, 100, 4096, stream.length]) {
    const messages = []
    for (let at = 0; at < stream.length; at += step) messages.push(stream.slice(at, at + step))
    assert.deepEqual(decodeAll(...messages), expected, `step ${step}`)
  }
})

test('lengths that are none', () => {
  const decode = bytes => () => decodeAll(Uint8Array.from(bytes))
  assert.throws(decode([0x80, 0x00]), { message: 'non-minimal-length' })
  assert.throws(decode([0xff, 0xff, 0x01]), { message: 'too-long' })
  assert.throws(decode([0x81, 0x80, 0x82]), { message: 'too-long' })
  // Refused by its length, before a byte of the body.
  const over = MAX_BODY + 1
  assert.throws(decode([over & 127 | 128, over >> 7 & 127 | 128, over >> 14]), FramingError)
  const most = Uint8Array.of(MAX_BODY & 127 | 128, MAX_BODY >> 7 & 127 | 128, MAX_BODY >> 14)
  assert.deepEqual(decodeAll(most), [])
})

test('a payload owns its buffer only if nothing else uses that', () => {
  const one = encodeFrame({ payload: new Uint8Array(1000) })
  const decoder = new FrameDecoder()
  decoder.push(one)
  assert.equal(decoder.next().owned, true)
  decoder.push(Uint8Array.from([...one, ...one]))
  const shared = [decoder.next(), decoder.next()]
  assert.deepEqual(shared.map(frame => frame.owned), [false, false])
  assert.equal(shared[0].payload.buffer, shared[1].payload.buffer)
  // A small part of a large message does not keep all of it.
  decoder.push(Uint8Array.from([...encodeFrame({ payload: new Uint8Array(10) }), ...one]))
  const small = decoder.next()
  assert.deepEqual([small.owned, small.payload.buffer.byteLength], [true, 10])
})

test('the longest payload fills a frame', () => {
  for (const others of [0, 9, 17]) {
    const length = maxPayload(MAX_FRAME, others)
    const frame = { payload: new Uint8Array(length) }
    if (others >= 9) frame.maxData = 2 ** 49 - 1
    if (others >= 17) frame.stream = 2 ** 32 - 1
    assert.ok(encodeFrame(frame).length <= MAX_FRAME, `${others}`)
  }
})
