// How a session divides what it may grant among its substreams: as in `src/substream/recv.rs`.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { load } from './modules.mjs'

const { Pool, ReceiveBuffer } = await load("export * from './receive.js'")

const KIB = 1024
const MIB = 1024 * KIB
const CEILING = 32 * MIB
const MIN_WINDOW = 32 * KIB
const MIN_FIRST_WINDOW = 16 * KIB

const pool = () => new Pool(CEILING, () => {})

/** Sends the `max_data` that is due now, and returns it. */
function grant (buffer, first) {
  const offer = buffer.creditOffer(first)
  if (offer !== undefined) buffer.granted(offer)
  return offer
}

/** A substream of which `length` bytes were read, and the window that it grants then. */
function readOnce (shared, length) {
  const buffer = new ReceiveBuffer(MIB, 16 * MIB, shared)
  buffer.push(new Uint8Array(length), true, false, false)
  return { buffer, window: grant(buffer, true) - length }
}

test('any number of idle substreams leaves half of the ceiling', () => {
  const shared = pool()
  const first = new ReceiveBuffer(MIB, MIB, shared)
  assert.equal(grant(first, true), 64 * KIB)
  let last
  for (let count = 0; count < 20_000; count++) {
    last = new ReceiveBuffer(MIB, MIB, shared)
    assert.ok(grant(last, true) >= MIN_FIRST_WINDOW)
  }
  assert.ok(shared.committed <= CEILING / 2, `${shared.committed}`)
  const before = shared.committed
  last = new ReceiveBuffer(MIB, MIB, shared)
  assert.equal(grant(last, true), MIN_FIRST_WINDOW)
  assert.equal(shared.committed, before, 'the minimum does not count')
})

test('the more was read, the more of the ceiling can be granted', () => {
  const shared = pool()
  let left = CEILING
  for (const length of [200_000, 2 * MIB, 20 * MIB]) {
    left /= 2
    assert.equal(readOnce(shared, length).window, MIB, `after ${length} bytes`)
    for (let count = 0; count < 200; count++) {
      const { window } = readOnce(shared, length)
      assert.ok(window >= MIN_WINDOW && shared.committed <= CEILING - left)
    }
    assert.equal(readOnce(shared, length).window, MIN_WINDOW, `after ${length} bytes`)
  }
})

test('thirty idle substreams do not take the window of one that carries much', () => {
  const shared = pool()
  for (let count = 0; count < 30; count++) {
    // A response of 100 KB each, then nothing.
    readOnce(shared, 100_000)
  }
  assert.equal(readOnce(shared, 8 * MIB).window, MIB)
})

test('what a substream counts is given back when it ends, and when it is read', () => {
  const shared = pool()
  const { buffer } = readOnce(shared, 100_000)
  buffer.push(new Uint8Array(100_000), true, true, true)
  assert.equal(shared.committed, MIB - MIN_WINDOW)
  // Nothing more will come: the unread bytes are left, now without a minimum.
  buffer.complete()
  assert.equal(shared.committed, 100_000)
  buffer.end()
  assert.equal(shared.committed, 100_000)
  assert.equal(buffer.take().length, 100_000)
  assert.equal(shared.committed, 0)
})
