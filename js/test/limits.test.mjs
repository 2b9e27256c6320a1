// What a peer can make grow, up to each bound.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import {
  errorOf, FakeChannel, Flag, open, session as start, settle, until, webSocketSession
} from './fake.mjs'

const KIB = 1024
const MIB = 1024 * KIB

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc')

/** The peer opens substreams, sends 12 KiB on each, and ends them, as far as it may. */
class Uploader {
  opened = 0
  limit = 64

  constructor (fixture) {
    this.fixture = fixture
    this.incoming = fixture.session.incomingBidirectionalStreams.getReader()
  }

  /** Opens one. Returns its substream, or undefined if the peer has to wait. */
  async upload () {
    for (const { maxSubstreams } of this.fixture.zero.take()) {
      this.limit = maxSubstreams ?? this.limit
    }
    if (this.opened === this.limit) return undefined
    const channel = new FakeChannel(`/${this.opened++}`)
    this.fixture.carrier.onDataChannel(channel)
    const { value: substream } = await this.incoming.read()
    const closing = substream.writable.close()
    await settle()
    const payload = new Uint8Array(12 * KIB)
    channel.receive({ payload }, { flag: Flag.FinAck }, { flag: Flag.Fin })
    await closing
    await substream.finished
    return substream
  }
}

async function readAll (substream) {
  let length = 0
  for await (const chunk of substream.readable) length += chunk.length
  return length
}

test('unread data of ended substreams counts until it is read, and further ones wait', async () => {
  const fixture = start({ sessionCeiling: 256 * KIB, maxInboundSubstreams: 8 })
  const peer = new Uploader(fixture)
  peer.limit = fixture.zero.take()[0].maxSubstreams
  const unread = []
  for (;;) {
    const substream = await peer.upload()
    if (substream === undefined) break
    unread.push(substream)
    assert.ok(unread.length < 100, 'there is no bound')
  }
  // The ceiling, and what the peer was allowed to open before it was reached.
  assert.ok(unread.length >= 22 && unread.length <= 22 + 8, `${unread.length} substreams`)
  const { committed, substreams } = await fixture.session.getStats()
  assert.deepEqual([substreams, committed], [0, unread.length * 12 * KIB])
  // Nothing of it is lost, and there is room again.
  for (const substream of unread.splice(0)) assert.equal(await readAll(substream), 12 * KIB)
  assert.equal((await fixture.session.getStats()).committed, 0)
  assert.equal(await readAll(await peer.upload()), 12 * KIB)
  const cancelled = await peer.upload()
  await cancelled.readable.cancel()
  assert.equal((await fixture.session.getStats()).committed, 0)
})

test('unread data of substreams that the application has dropped counts no more', async () => {
  const fixture = start()
  const peer = new Uploader(fixture)
  for (let count = 0; count < 20; count++) await peer.upload()
  for (let round = 0; round < 100; round++) {
    collectGarbage()
    await settle()
    // The last may still be on the stack.
    if ((await fixture.session.getStats()).committed <= 2 * 12 * KIB) return
  }
  assert.fail('it counts for ever')
})

test('a peer without credit is refused while too much of ended substreams is unread', async () => {
  const fixture = start({ sessionCeiling: 64 * KIB }, { peerHasCredit: false })
  const peer = new Uploader(fixture)
  const unread = []
  for (let count = 0; count < 6; count++) unread.push(await peer.upload())
  const refused = new FakeChannel('/x')
  fixture.carrier.onDataChannel(refused)
  assert.deepEqual(refused.take(), [{ flag: Flag.ResetStream, errorCode: 0x1002 }])
  for (const substream of unread) await readAll(substream)
  assert.equal(await readAll(await peer.upload()), 12 * KIB)
})

test('substreams that have ended before they are accepted have a place until then', async () => {
  const fixture = start({ maxInboundSubstreams: 4 })
  fixture.zero.take()
  const channels = Array.from({ length: 4 }, (_, index) => new FakeChannel(`/${index}`))
  for (const channel of channels) {
    fixture.carrier.onDataChannel(channel)
    channel.receive({ payload: Uint8Array.of(1) }, { flag: Flag.StopSending }, { flag: Flag.Fin })
  }
  assert.equal((await fixture.session.getStats()).substreams, 0)
  assert.deepEqual(fixture.zero.take(), [])
  const incoming = fixture.session.incomingBidirectionalStreams.getReader()
  for (let index = 0; index < 4; index++) {
    assert.equal((await incoming.read()).value.protocol, `/${index}`)
    assert.equal(fixture.zero.take().at(-1).maxSubstreams, 5 + index)
  }
})

test('one in sixteen refused substreams counts as unused', async () => {
  const limits = { maxInboundSubstreams: 1, maxUnusedSubstreams: 20 }
  const fixture = start(limits, { peerHasCredit: false })
  fixture.carrier.onDataChannel(new FakeChannel('/first'))
  let ended = false
  fixture.session.closed.catch(() => { ended = true })
  for (let count = 1; count <= 21 * 16; count++) {
    await settle()
    assert.ok(!ended, `ended after ${count - 1}`)
    const channel = new FakeChannel('/x')
    fixture.carrier.onDataChannel(channel)
    assert.deepEqual(channel.take(), [{ flag: Flag.ResetStream, errorCode: 0x1002 }])
  }
  const error = await errorOf(fixture.session.closed)
  assert.deepEqual([error.name, error.kind], ['SessionError', 'protocol'])
  // The peer learns why.
  assert.deepEqual(fixture.zero.take().at(-1), {
    flag: Flag.Fin, errorCode: 0x1002, reason: 'unused substreams'
  })
})

test('what has arrived whole is accepted after the session has ended', async () => {
  const fixture = start()
  for (const [label, ...frames] of [
    ['/whole', { payload: Uint8Array.of(7) }, { flag: Flag.StopSending }, { flag: Flag.Fin }],
    ['/part', { payload: Uint8Array.of(8) }]
  ]) {
    const channel = new FakeChannel(label)
    fixture.carrier.onDataChannel(channel)
    channel.receive(...frames)
  }
  fixture.zero.finishClose()
  await fixture.session.closed
  const incoming = fixture.session.incomingBidirectionalStreams.getReader()
  const { value: substream } = await incoming.read()
  assert.equal(substream.protocol, '/whole')
  assert.equal(await readAll(substream), 1)
  assert.ok((await incoming.read()).done)
})

test('credit and limits wait for a peer that reads nothing of a WebSocket', async () => {
  const fixture = webSocketSession({
    sendBuffer: 16 * KIB, maxInboundSubstreams: 16, maxFramesWithoutEffect: 2 ** 31
  })
  const { session, socket } = fixture
  const incoming = session.incomingBidirectionalStreams.getReader()
  let [limit, number] = [16, 1]
  const loop = async () => {
    for (let opened = 0; opened < 60_000; opened++) {
      for (const { maxSubstreams } of socket.take()) limit = maxSubstreams ?? limit
      if (opened === limit) return
      socket.receive(
        { stream: number, label: '' },
        { stream: number, payload: Uint8Array.of(1), maxData: 1000 },
        { stream: number, flag: Flag.Fin }
      )
      const { value: substream } = await incoming.read()
      const closing = substream.writable.close()
      assert.equal(await readAll(substream), 1)
      socket.receive({ stream: number, flag: Flag.FinAck })
      await closing
      number += 2
    }
  }
  await loop()
  const held = socket.bufferedAmount
  assert.ok(held > 256 * KIB && held < 300 * KIB, `${held} bytes wait`)
  // And go on when it reads.
  const before = limit
  socket.bufferedAmount = 0
  await until(() => socket.take().some(({ maxSubstreams }) => maxSubstreams > before))
  // Opens of this side wait too.
  socket.bufferedAmount = MIB
  const opening = session.createBidirectionalStream()
  await settle()
  assert.deepEqual(socket.take(), [])
  socket.bufferedAmount = 0
  await opening
})

test('a substream without a grant, opened while credit is held, is bounded', async () => {
  for (const first of [{ maxData: 1000 }, {}]) {
    const { session, socket } = webSocketSession({ substreamCeiling: 256 * KIB })
    await settle()
    socket.bufferedAmount = 1.5 * MIB
    socket.take()
    socket.receive({ stream: 1, label: '' }, { stream: 1, ...first, payload: Uint8Array.of(1) })
    assert.deepEqual(socket.take(), [], 'no credit')
    let most = 0
    for (let count = 0; count < 256; count++) {
      socket.receive({ stream: 1, payload: new Uint8Array(16 * KIB) })
      most = Math.max(most, (await session.getStats()).committed)
    }
    socket.bufferedAmount = 0
    socket.finishClose(1000)
    assert.ok(most <= 272 * KIB, `${most} bytes were unread`)
    const { flag, errorCode } = socket.take()[0]
    assert.deepEqual([flag, errorCode], [Flag.ResetStream, 0x1002])
  }
})

test('a peer that makes a WebSocket reply and reads nothing loses the session', async () => {
  const { session, socket } = webSocketSession({
    maxUnusedSubstreams: 2 ** 31, maxFramesWithoutEffect: 2 ** 31
  })
  const last = 2 * 100_000 + 1
  // Each resets itself, and then sends late data, which is answered.
  for (let number = 1; number < last; number += 2) {
    socket.receive({ stream: number, label: '' }, { stream: number, flag: Flag.ResetStream })
  }
  const ended = errorOf(session.closed)
  let most = 0
  for (let number = 1; number < last && socket.closedWith === undefined; number += 2) {
    socket.receive({ stream: number, payload: Uint8Array.of(1) })
    most = Math.max(most, socket.bufferedAmount)
    if (number % 2048 === 1) await settle()
  }
  assert.equal(socket.closedWith?.[0], 3008)
  assert.equal((await ended).kind, 'protocol')
  // 1 MiB beyond `sendBuffer`.
  assert.ok(most > MIB && most <= 2 * MIB + 128 * KIB, `${most} bytes waited`)
})
