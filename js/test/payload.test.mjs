// The messages of payloads, on the bytes that the tests of Rust use too, SHA-256, and signals.

import assert from 'node:assert/strict'
import crypto from 'node:crypto'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import {
  Flag, open, receivePayload, sendPayload, session, settle, turn, until
} from './fake.mjs'
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

/** A stream on which the peer has sent `parts`. `aborted` has the code of its reset. */
function fakeStream (...parts) {
  const stream = { sent: [], aborted: undefined, finished: new Promise(() => {}) }
  stream.readable = new ReadableStream({
    start: controller => {
      for (const part of parts) {
        if (part === 'FIN') controller.close()
        else controller.enqueue(part)
      }
    }
  })
  stream.writable = new WritableStream({
    write: chunk => { stream.sent.push(chunk) },
    abort: reason => { stream.aborted = reason.streamErrorCode }
  })
  return stream
}

/** Aborts when the transfer waits for what never comes. Asserts how it ends. */
async function isCancelled (stream, transferring, controller) {
  const error = transferring.then(() => assert.fail('no error'), error => error)
  for (let turns = 0; turns < 20; turns++) await new Promise(resolve => { setImmediate(resolve) })
  const reason = new Error('enough')
  controller.abort(reason)
  const late = new Promise(resolve => { setTimeout(resolve, 3_000, 'it goes on').unref() })
  const { kind, isRemote, cause } = await Promise.race([error, late])
  assert.deepEqual([kind, isRemote, cause], ['cancelled', false, reason])
  assert.equal(stream.aborted, 0x2108)
}

test('a signal ends a transfer whose source stalls, and cancels the source', async () => {
  const controller = new AbortController()
  let cancelledWith
  const source = new ReadableStream({
    pull: () => new Promise(() => {}),
    cancel: reason => { cancelledWith = reason }
  })
  const stream = fakeStream()
  await isCancelled(stream, sendPayload(stream, source, { signal: controller.signal }), controller)
  assert.equal(cancelledWith.message, 'enough')
})

test('a signal ends a transfer whose target stalls', async () => {
  for (const target of [
    { write: () => new Promise(() => {}) },
    { close: () => new Promise(() => {}) }
  ]) {
    const controller = new AbortController()
    const { signal } = controller
    const stream = fakeStream(encodeHeader({ totalLength: 3 }), Uint8Array.of(1, 2, 3), 'FIN')
    const payload = await receivePayload(stream, { signal })
    await isCancelled(stream, payload.copyTo(new WritableStream(target)), controller)
  }
})

test('a signal leaves a target closed that has taken everything until then', async () => {
  const controller = new AbortController()
  const { signal } = controller
  const stream = fakeStream(encodeHeader({ totalLength: 6 }), Uint8Array.of(1, 2, 3))
  const payload = await receivePayload(stream, { signal })
  const taken = []
  let isClosed = false
  const target = new WritableStream({
    write: chunk => { taken.push(...chunk) },
    close: () => { isClosed = true }
  })
  await isCancelled(stream, payload.copyTo(target), controller)
  assert.deepEqual([taken, isClosed], [[1, 2, 3], true])
  assert.ok(!target.locked)
})

const CANCELLED = 0x2108
const stopsOf = frames => frames.filter(({ flag }) => flag === Flag.StopSending)
  .map(({ errorCode }) => errorCode)

test('a signal stops the receiver while its receipt is awaited', async () => {
  const controller = new AbortController()
  const { substream, channel } = await open(session())
  const sending = sendPayload(substream, Uint8Array.of(1), { signal: controller.signal })
  const failed = sending.then(() => assert.fail('no error'), error => error)
  await turn()
  assert.equal(channel.take().at(-1).flag, Flag.Fin)
  channel.receive({ flag: Flag.FinAck })
  await turn()
  controller.abort()
  assert.equal((await failed).kind, 'cancelled')
  await settle()
  assert.deepEqual(stopsOf(channel.take()), [CANCELLED])
})

test('a signal stops a sender that has stopped its receiver', async () => {
  const controller = new AbortController()
  const { substream, channel } = await open(session())
  channel.receive({ payload: encodeHeader({ totalLength: 3 }), maxData: 1000 })
  const payload = await receivePayload(substream, { signal: controller.signal })
  channel.receive({ flag: Flag.StopSending })
  const failed = payload.bytes(3).then(() => assert.fail('no error'), error => error)
  await turn()
  controller.abort()
  await failed
  await settle()
  assert.deepEqual(stopsOf(channel.take()), [CANCELLED])
})

test('a reset ends a transfer whose source stalls, and cancels the source', async () => {
  const { substream, channel } = await open(session())
  let isCancelled = false
  const source = new ReadableStream({
    pull: () => new Promise(() => {}),
    cancel: () => { isCancelled = true }
  })
  let error
  sendPayload(substream, source).catch(cause => { error = cause })
  await turn()
  channel.receive({ flag: Flag.ResetStream, errorCode: CANCELLED })
  await until(() => error !== undefined)
  assert.deepEqual([error.kind, error.isRemote, isCancelled], ['cancelled', true, true])
})

test('a reset and the end of the session end a transfer whose target stalls', async () => {
  for (const end of [
    ({ channel }) => { channel.receive({ flag: Flag.ResetStream, errorCode: CANCELLED }) },
    ({ zero }) => { zero.finishClose() }
  ]) {
    const fixture = session()
    const { substream, channel } = await open(fixture)
    const part = { payload: Uint8Array.of(1, 2, 3) }
    channel.receive({ payload: encodeHeader({ totalLength: 6 }), maxData: 1000 }, part)
    const payload = await receivePayload(substream, { idleTimeout: 100 })
    let error
    payload.copyTo(new WritableStream({ write: () => new Promise(() => {}) }))
      .catch(cause => { error = cause })
    await turn()
    end({ ...fixture, channel })
    await until(() => error !== undefined)
    assert.match(error.kind, /cancelled|substream/)
  }
})
