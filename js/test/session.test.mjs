// Sessions against a peer that this test plays: credit, limits, and what a peer can do wrong.

import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import {
  encodeFrame, errorOf, FakeChannel, Flag, open, session as start, settle, turn, until
} from './fake.mjs'

const KIB = 1024
const MIB = 1024 * KIB

/** In steps, so that timers which start others count from their own time. */
function advance (ms) {
  for (let passed = 0; passed < ms; passed += 500) mock.timers.tick(500)
}

const kindsOf = channel => channel.take().filter(({ flag }) => flag !== undefined)
  .map(({ flag, errorCode }) => errorCode === undefined ? [flag] : [flag, errorCode])

test('a substream opens, ends in both directions, and closes its channel', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture, { protocol: '/echo' })
  assert.equal(channel.label, '/echo')
  const writer = substream.writable.getWriter()
  await writer.write(Uint8Array.of(1, 2))
  const frames = channel.take()
  assert.deepEqual([...frames.find(frame => frame.payload)?.payload ?? []], [1, 2])
  assert.ok(frames.some(frame => frame.maxData > 0), 'credit with the first frames')
  const closing = writer.close()
  await settle()
  assert.deepEqual(kindsOf(channel), [[Flag.Fin]])
  channel.receive({ flag: Flag.FinAck }, { payload: Uint8Array.of(3) }, { flag: Flag.Fin })
  await closing
  assert.deepEqual(kindsOf(channel), [[Flag.FinAck]])
  await substream.finished
  assert.ok(channel.isClosed)
  // What has arrived is read after the end.
  const reader = substream.readable.getReader()
  assert.deepEqual([...(await reader.read()).value], [3])
  assert.ok((await reader.read()).done)
  assert.equal((await fixture.session.getStats()).substreams, 0)
})

test('broken frames reset their substream after the frames before them, and no other', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const neighbour = await open(fixture)
  channel.take()
  channel.receiveBytes([...encodeFrame({ payload: Uint8Array.of(7) }), 0x80, 0x00])
  const reader = substream.readable.getReader()
  assert.deepEqual([...(await reader.read()).value], [7])
  assert.equal((await errorOf(reader.read())).kind, 'protocol')
  assert.deepEqual(kindsOf(channel), [[Flag.ResetStream, 0x1004]])
  neighbour.channel.receive({ payload: Uint8Array.of(8) })
  assert.deepEqual([...(await neighbour.substream.readable.getReader().read()).value], [8])
  assert.equal((await fixture.session.getStats()).violations, 1)
})

test('a message of text resets its substream', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  channel.take()
  channel.onmessage({ data: 'text' })
  assert.equal((await errorOf(substream.finished)).kind, 'protocol')
  assert.deepEqual(kindsOf(channel), [[Flag.ResetStream, 0x1004]])
})

test('a peer beyond its credit is reset with FLOW_CONTROL', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const granted = channel.take().findLast(frame => frame.maxData !== undefined).maxData
  channel.receive({ maxData: MIB })
  for (let sent = 0; sent < granted; sent += 8 * KIB) {
    channel.receive({ payload: new Uint8Array(8 * KIB) })
  }
  assert.deepEqual(kindsOf(channel), [], 'all that was granted')
  channel.receive({ payload: new Uint8Array(1) })
  assert.deepEqual(kindsOf(channel), [[Flag.ResetStream, 0x2001]])
  const error = await errorOf(substream.finished)
  assert.deepEqual([error.kind, error.streamErrorCode], ['flow-control', 0x2001])
  // What was unread is dropped, and no longer counted.
  assert.equal((await fixture.session.getStats()).committed, 0)
})

test('FIN_ACK before FIN is a violation, after it a repetition is not', async () => {
  const fixture = start()
  const early = await open(fixture)
  early.channel.take()
  early.channel.receive({ flag: Flag.FinAck })
  assert.deepEqual(kindsOf(early.channel), [[Flag.ResetStream, 0x1004]])
  const { substream, channel } = await open(fixture)
  const closing = substream.writable.close()
  await settle()
  channel.receive(
    { flag: Flag.FinAck },
    { flag: Flag.FinAck },
    { flag: Flag.Fin },
    { flag: Flag.Fin }
  )
  await closing
  await substream.finished
})

test('a writer waits for credit, and for nothing else', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const writer = substream.writable.getWriter()
  const write = writer.write(new Uint8Array(100 * KIB))
  await settle()
  assert.equal(channel.payload, 12 * KIB, 'before the first credit')
  channel.receive({ maxData: 20 * KIB })
  assert.equal(channel.payload, 20 * KIB)
  // It never falls.
  channel.receive({ maxData: 1 })
  channel.receive({ maxData: 100 * KIB })
  assert.equal(channel.payload, 100 * KIB)
  await write
  assert.ok(channel.take().every(frame => encodeFrame(frame).length <= 16 * KIB))
})

test('a peer without credit gets short frames, and is not limited', async () => {
  const fixture = start({}, { peerHasCredit: false })
  const { substream, channel } = await open(fixture)
  const write = substream.writable.getWriter().write(new Uint8Array(50 * KIB))
  await settle()
  assert.equal(channel.payload, 12 * KIB)
  channel.receive({ payload: Uint8Array.of(1) })
  await write
  assert.equal(channel.payload, 50 * KIB)
  assert.ok(channel.take().every(frame => encodeFrame(frame).length <= 4096))
})

test('unread data of a peer without credit is bounded', async () => {
  const fixture = start({ substreamCeiling: 64 * KIB }, { peerHasCredit: false })
  const { channel } = await open(fixture)
  for (let sent = 0; sent <= 64 * KIB; sent += 8 * KIB) {
    channel.receive({ payload: new Uint8Array(8 * KIB) })
  }
  assert.deepEqual(kindsOf(channel), [[Flag.ResetStream, 0x1002]])
})

test('no more waits in the browser than sendBuffer, whatever the peer grants', async () => {
  const fixture = start({ sendBuffer: 64 * KIB })
  const writers = []
  for (let index = 0; index < 4; index++) {
    const { substream, channel } = await open(fixture)
    channel.receive({ maxData: 2 ** 40 })
    writers.push(substream.writable.getWriter().write(new Uint8Array(MIB)))
  }
  await settle()
  const queued = () => fixture.channels.reduce((sum, { bufferedAmount }) => sum + bufferedAmount, 0)
  let most = 0
  for (
    let round = 0; round < 1000 && fixture.channels.some(({ payload }) => payload < MIB); round++
  ) {
    most = Math.max(most, queued())
    const channel = fixture.channels[round % 4]
    channel.drain(Math.floor(channel.bufferedAmount / 4))
    await settle()
  }
  assert.ok(most > 32 * KIB && most <= 64 * KIB + 17 * KIB, `${most}`)
  await Promise.all(writers)
})

test('turns within a priority, and the greater priority first', async () => {
  const fixture = start({ sendBuffer: 32 * KIB })
  const all = []
  for (const priority of [0, 0, 1]) {
    const { substream, channel } = await open(fixture, { priority })
    channel.receive({ maxData: MIB })
    all.push({ substream, channel })
  }
  // The first fills the browser.
  for (const { substream } of all) {
    substream.writable.getWriter().write(new Uint8Array(256 * KIB)).catch(() => {})
  }
  await settle()
  const drain = async () => {
    for (const { channel } of all) channel.drain()
    await settle()
  }
  while (all[2].channel.payload < 256 * KIB) {
    const before = all[1].channel.payload
    await drain()
    if (all[2].channel.payload < 256 * KIB) assert.equal(all[1].channel.payload, before)
  }
  for (let round = 0; round < 6; round++) await drain()
  const ahead = Math.abs(all[0].channel.payload - all[1].channel.payload)
  assert.ok(all[1].channel.payload > 0 && ahead <= 64 * KIB, `${ahead} bytes ahead`)
})

/** What is granted at most beyond what has arrived. The sender sends `parts` of each grant. */
async function largestWindow (parts) {
  const fixture = start({ receiveWindow: 64 * KIB, maxReceiveWindow: 256 * KIB })
  const { substream, channel } = await open(fixture)
  channel.receive({ maxData: MIB })
  const reader = substream.readable.getReader()
  let [granted, received, read, most] = [0, 0, 0, 0]
  const look = () => {
    for (const { maxData } of channel.take()) granted = Math.max(granted, maxData ?? 0)
    most = Math.max(most, granted - received)
  }
  look()
  for (let round = 0; round < 60; round++) {
    // What is granted from here on has not arrived at the sender.
    const [from, limit] = [received, granted]
    for (const part of parts) {
      const end = Math.floor(from + (limit - from) * part)
      while (received < end) {
        const length = Math.min(8 * KIB, end - received)
        channel.receive({ payload: new Uint8Array(length) })
        received += length
      }
      while (read < received) read += (await reader.read()).value.length
      look()
    }
  }
  return most
}

test('the window grows for a sender that it holds up, up to its bound', async () => {
  // Half is read, and granted again, before the other half arrives: the path is longer.
  const most = await largestWindow([0.75, 1])
  assert.ok(most > 128 * KIB && most <= 256 * KIB, `${most}`)
})

test('the window does not grow while the sender waits for the reader', async () => {
  assert.equal(await largestWindow([1]), 64 * KIB)
})

test('frames of one byte are coalesced', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const count = 5_000
  for (let index = 0; index < count; index++) {
    channel.receive({ payload: Uint8Array.of(index % 251) })
  }
  const reader = substream.readable.getReader()
  let [reads, at] = [0, 0]
  while (at < count) {
    const { value } = await reader.read()
    for (const byte of value) assert.equal(byte, at++ % 251)
    reads += 1
  }
  assert.ok(reads <= 4, `${reads} reads`)
})

test('opens wait for room at the peer', async () => {
  const fixture = start()
  const openings = Array.from({ length: 70 }, () => fixture.session.createBidirectionalStream())
  await settle()
  assert.equal(fixture.channels.length, 64, 'before the limit is known')
  fixture.zero.receive({ maxSubstreams: 66 })
  await settle()
  assert.equal(fixture.channels.length, 66)
  const controller = new AbortController()
  const given = errorOf(fixture.session.createBidirectionalStream({ signal: controller.signal }))
  controller.abort(new Error('enough'))
  assert.equal((await given).message, 'enough')
  fixture.zero.receive({ maxSubstreams: 100 })
  await Promise.all(openings)
  assert.equal(fixture.channels.length, 70)
})

test('a peer that drains gets the number of substreams, and no new ones', async () => {
  const fixture = start()
  await open(fixture)
  fixture.zero.take()
  fixture.zero.receive({ draining: true })
  await fixture.session.draining
  assert.deepEqual(fixture.zero.take(), [{ opened: 1 }])
  assert.equal((await errorOf(fixture.session.createBidirectionalStream())).kind, 'draining')
})

test('substreams of the peer are bounded, and its limit is announced', async () => {
  const fixture = start({ maxInboundSubstreams: 4 })
  assert.deepEqual(fixture.zero.take(), [{ maxSubstreams: 4 }])
  const channels = Array.from({ length: 5 }, (_, index) => new FakeChannel(`/${index}`))
  for (const channel of channels) fixture.carrier.onDataChannel(channel)
  assert.deepEqual(kindsOf(channels[4]), [[Flag.ResetStream, 0x1002]])
  const incoming = fixture.session.incomingBidirectionalStreams.getReader()
  const { value: first } = await incoming.read()
  assert.equal(first.protocol, '/0')
  const closing = first.writable.close()
  await settle()
  channels[0].receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await closing
  // The refused one, and the one that has ended.
  assert.equal(fixture.zero.take().at(-1).maxSubstreams, 6)
})

test('reads that wait for substreams of the peer get one each', async () => {
  const fixture = start()
  const incoming = fixture.session.incomingBidirectionalStreams.getReader()
  const reads = [0, 1, 2].map(() => incoming.read())
  await settle()
  for (const label of ['/0', '/1', '/2']) fixture.carrier.onDataChannel(new FakeChannel(label))
  const accepted = await Promise.all(reads)
  assert.deepEqual(accepted.map(({ value }) => value.protocol), ['/0', '/1', '/2'])
})

test('a page that cancels its wait for substreams has them refused in time', async () => {
  mock.timers.enable({ apis: ['setTimeout'] })
  try {
    const fixture = start()
    const incoming = fixture.session.incomingBidirectionalStreams.getReader()
    const reading = incoming.read()
    await settle()
    await incoming.cancel()
    assert.ok((await reading).done)
    const channel = new FakeChannel('/x')
    fixture.carrier.onDataChannel(channel)
    advance(30_000)
    assert.deepEqual(kindsOf(channel), [[Flag.ResetStream, 0x1002]])
  } finally {
    mock.timers.reset()
  }
})

test('a channel that may lose or reorder is refused', () => {
  const fixture = start()
  for (const change of [{ ordered: false }, { maxRetransmits: 0 }, { maxPacketLifeTime: 1 }]) {
    const channel = Object.assign(new FakeChannel(), change)
    fixture.carrier.onDataChannel(channel)
    assert.ok(channel.isClosed)
  }
})

test('a peer that opens and resets in a loop loses the session', async () => {
  const fixture = start({ maxUnusedSubstreams: 20 })
  for (let round = 0; round < 21; round++) {
    const channel = new FakeChannel('/x')
    fixture.carrier.onDataChannel(channel)
    channel.receive({ flag: Flag.ResetStream, errorCode: 1 })
  }
  const error = await errorOf(fixture.session.closed)
  assert.deepEqual([error.name, error.kind], ['SessionError', 'protocol'])
})

test('frames without effect reset their substream, and end the session', async () => {
  const fixture = start({ maxFramesWithoutEffect: 20 })
  const { substream, channel } = await open(fixture)
  for (let round = 0; round < 22; round++) channel.receive({ maxData: 1 })
  assert.equal((await errorOf(substream.finished)).streamErrorCode, 0x1003)
  for (let round = 0; round < 80; round++) fixture.zero.receive({ maxSubstreams: 1 })
  assert.equal((await errorOf(fixture.session.closed)).kind, 'protocol')
})

test('times: FIN_ACK, and substreams that nobody accepts', async () => {
  mock.timers.enable({ apis: ['setTimeout'] })
  try {
    const fixture = start()
    const { substream, channel } = await open(fixture)
    const closing = errorOf(substream.writable.close())
    await settle()
    // A slow link is no silent peer: the time begins when the browser has sent FIN.
    advance(60_000)
    channel.drain()
    advance(9_500)
    assert.equal(await Promise.race([closing, settle()]), undefined, 'too early')
    advance(1_500)
    assert.equal((await closing).kind, 'timed-out')
    assert.deepEqual(kindsOf(channel), [[Flag.Fin]])
    channel.receive({ payload: Uint8Array.of(5) })
    assert.deepEqual([...(await substream.readable.getReader().read()).value], [5])

    const waiting = new FakeChannel('/x')
    fixture.carrier.onDataChannel(waiting)
    advance(30_000)
    assert.deepEqual(kindsOf(waiting), [[Flag.ResetStream, 0x1002]])
  } finally {
    mock.timers.reset()
  }
})

test('a close gives its code, resets what is not ended, and ends what is', async () => {
  const fixture = start()
  const cut = await open(fixture)
  const ended = await open(fixture)
  const closing = ended.substream.writable.close()
  await settle()
  fixture.session.close({ closeCode: 70_000, reason: 'bye' })
  await turn()
  assert.deepEqual(kindsOf(cut.channel), [[Flag.ResetStream, 0x1007]])
  assert.deepEqual(fixture.zero.take().at(-1), { flag: Flag.Fin, errorCode: 70_000, reason: 'bye' })
  ended.channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await closing
  for (const channel of [fixture.zero, ...fixture.channels]) channel.drain()
  await until(() => fixture.zero.isClosed)
  fixture.zero.finishClose()
  assert.deepEqual(await fixture.session.closed, { closeCode: 70_000, reason: 'bye' })
  assert.ok(fixture.source.isClosed)
  assert.equal((await errorOf(cut.substream.finished)).kind, 'session')
})

test('a reset of this side does not pass what was read for everything', async () => {
  const { substream, channel } = await open(start())
  const half = new Uint8Array(600)
  channel.receive({ payload: half }, { payload: half }, { flag: Flag.Fin })
  const reader = substream.readable.getReader()
  assert.equal((await reader.read()).value.length, 600)
  await substream.writable.abort(7)
  assert.equal((await errorOf(reader.read())).kind, 'aborted')
})

test('a channel that closes lets those go on that waited for its room', async () => {
  const fixture = start({ sendBuffer: 64 * KIB })
  const lost = await open(fixture)
  const other = await open(fixture)
  for (const { channel } of [lost, other]) channel.receive({ maxData: MIB })
  const failing = errorOf(lost.substream.writable.getWriter().write(new Uint8Array(MIB)))
  await settle()
  const writing = other.substream.writable.getWriter().write(new Uint8Array(32 * KIB))
  await settle()
  assert.equal(other.channel.payload, 0)
  lost.channel.receive({ flag: Flag.ResetStream, errorCode: 5 })
  lost.channel.readyState = 'closed'
  lost.channel.onclose()
  await writing
  assert.equal(other.channel.payload, 32 * KIB)
  assert.equal((await failing).streamErrorCode, 5)
})

test('a buffer that is transferred while it is written fails its own stream alone', async () => {
  const fixture = start()
  const spoilt = await open(fixture)
  const other = await open(fixture)
  const bytes = new Uint8Array(100 * KIB)
  const failing = errorOf(spoilt.substream.writable.getWriter().write(bytes))
  await settle()
  structuredClone(bytes, { transfer: [bytes.buffer] })
  for (const { channel } of [spoilt, other]) channel.receive({ maxData: MIB })
  assert.equal((await failing).kind, 'aborted')
  await other.substream.writable.getWriter().write(new Uint8Array(32 * KIB))
  assert.equal(other.channel.payload, 32 * KIB)
})

test('a channel that has closed with data takes no room from the others', async () => {
  const fixture = start({ sendBuffer: 64 * KIB })
  const lost = await open(fixture)
  lost.channel.receive({ maxData: MIB })
  const failing = errorOf(lost.substream.writable.getWriter().write(new Uint8Array(MIB)))
  await settle()
  assert.ok(lost.channel.bufferedAmount >= 48 * KIB)
  lost.channel.receive({ flag: Flag.ResetStream, errorCode: 5 })
  lost.channel.readyState = 'closed'
  lost.channel.onclose()
  assert.equal((await failing).streamErrorCode, 5)
  const { substream, channel } = await open(fixture)
  channel.receive({ maxData: MIB })
  substream.writable.getWriter().write(new Uint8Array(32 * KIB)).catch(() => {})
  await settle()
  assert.equal(channel.payload, 32 * KIB)
})

test('work for a frame does not grow with the channels that wait to be sent', async () => {
  const readsOf = async busy => {
    const fixture = start()
    const { substream, channel } = await open(fixture)
    channel.receive({ maxData: 12 * KIB })
    const writing = errorOf(substream.writable.getWriter().write(new Uint8Array(MIB)))
    for (let count = 0; count < busy; count++) {
      const other = await open(fixture)
      await other.substream.writable.getWriter().write(Uint8Array.of(1))
    }
    let reads = 0
    for (const other of fixture.channels) {
      let amount = other.bufferedAmount
      Object.defineProperty(other, 'bufferedAmount', {
        get () {
          reads += 1
          return amount
        },
        set (value) { amount = value }
      })
    }
    // Each of them lets a byte be sent, if there is room.
    for (let frames = 1; frames <= 100; frames++) channel.receive({ maxData: 12 * KIB + frames })
    assert.equal(channel.payload, 12 * KIB + 100)
    const total = reads
    fixture.zero.finishClose()
    await writing
    return total
  }
  assert.equal(await readsOf(200), await readsOf(2))
})

test('everything leaves within the buffer, in whatever order the channels drain', async () => {
  const sendBuffer = 64 * KIB
  const fixture = start({ sendBuffer })
  let seed = 7
  const random = below => {
    seed = (seed * 48_271) % (2 ** 31 - 1)
    return seed % below
  }
  let written = 0
  for (let count = 0; count < 20; count++) {
    const { substream, channel } = await open(fixture)
    channel.receive({ maxData: MIB })
    substream.writable.getWriter().write(new Uint8Array(100 * KIB)).then(() => { written += 1 })
  }
  for (let rounds = 0; written < 20; rounds++) {
    assert.ok(rounds < 10_000, `${written} of 20 are written`)
    const waiting = fixture.channels.reduce((sum, { bufferedAmount }) => sum + bufferedAmount, 0)
    assert.ok(waiting < sendBuffer + 20 * KIB, `${waiting} bytes wait`)
    const busy = fixture.channels.filter(({ bufferedAmount }) => bufferedAmount > 0)
    const channel = busy[random(busy.length)]
    channel.drain(random(2) * random(channel.bufferedAmount))
    if (random(10) === 0) await settle()
  }
})
