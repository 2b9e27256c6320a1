// How sessions close: what was accepted arrives, nothing else holds the close up, and each wait
// has an end.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { errorOf, Flag, open, session as start, settle, turn, until } from './fake.mjs'

const KIB = 1024
const MIB = 1024 * KIB
const SHUTDOWN = 0x1007

const isPending = async promise => {
  const pending = Symbol('pending')
  return await Promise.race([promise.catch(() => {}), settle().then(() => pending)]) === pending
}

const flagsOf = channel => channel.take().filter(({ flag }) => flag !== undefined)
  .map(({ flag, errorCode }) => errorCode === undefined ? [flag] : [flag, errorCode])

/** The browser sends everything, and the peer answers the close of channel 0. */
async function finish ({ zero, channels, session, source }) {
  for (const channel of [zero, ...channels]) channel.drain()
  await until(() => zero.isClosed)
  zero.finishClose()
  const info = await session.closed
  assert.ok(source.isClosed)
  return info
}

test('a close right after that of a writer delivers what was written and its FIN', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  channel.receive({ maxData: 20 * KIB })
  const writer = substream.writable.getWriter()
  const written = [30, 30, 0].map(kib => writer.write(new Uint8Array(kib * KIB)))
  const closing = writer.close()
  fixture.session.close()
  await turn()
  assert.equal(channel.payload, 20 * KIB, 'the credit')
  channel.receive({ maxData: MIB })
  await turn()
  assert.equal(channel.payload, 60 * KIB)
  assert.deepEqual(flagsOf(channel).slice(-2), [[Flag.Fin], [Flag.StopSending, SHUTDOWN]])
  assert.ok(await isPending(fixture.session.closed))
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await Promise.all([closing, ...written])
  await finish(fixture)
})

test('a close in the turn in which a stream was opened delivers it', async () => {
  const fixture = start()
  const substream = await fixture.session.createBidirectionalStream()
  const closing = substream.writable.close()
  fixture.session.close()
  await turn()
  const [channel] = fixture.channels
  assert.ok(flagsOf(channel).some(([flag]) => flag === Flag.Fin))
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await closing
  await finish(fixture)
})

test('what was written to a stream that is not closed leaves before its reset', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  channel.receive({ maxData: 20 * KIB })
  const writer = substream.writable.getWriter()
  const written = [20, 20].map(kib => writer.write(new Uint8Array(kib * KIB)))
  fixture.session.close()
  await turn()
  assert.deepEqual(flagsOf(channel), [], 'not yet')
  // Written too late.
  const late = errorOf(writer.write(new Uint8Array(KIB)))
  channel.receive({ maxData: MIB })
  await turn()
  const frames = channel.take()
  assert.equal(frames.reduce((sum, { payload }) => sum + (payload?.length ?? 0), 0), 20 * KIB)
  assert.deepEqual(
    [frames.at(-1).flag, frames.at(-1).errorCode],
    [Flag.ResetStream, SHUTDOWN]
  )
  await Promise.all(written)
  assert.equal((await late).kind, 'session')
  assert.equal((await errorOf(substream.finished)).kind, 'session')
  await finish(fixture)
})

test('a writer that closes while the close waits for its data gets its FIN', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const writer = substream.writable.getWriter()
  const written = writer.write(new Uint8Array(20 * KIB))
  fixture.session.close()
  await turn()
  const closing = writer.close()
  channel.receive({ maxData: MIB })
  await turn()
  assert.deepEqual(flagsOf(channel).slice(-2), [[Flag.Fin], [Flag.StopSending, SHUTDOWN]])
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await Promise.all([written, closing])
  await finish(fixture)
})

test('a peer is stopped after it has everything, and may send until then', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  channel.receive({ maxData: 20 * KIB })
  const writer = substream.writable.getWriter()
  const written = writer.write(new Uint8Array(60 * KIB))
  const closing = writer.close()
  const reading = errorOf(substream.readable.getReader().read())
  fixture.session.close()
  await turn()
  assert.equal((await reading).kind, 'session')
  assert.deepEqual(flagsOf(channel), [], 'data waits for credit')
  // The echo goes on, with credit.
  for (let sent = 0; sent < 40; sent++) {
    channel.receive({ payload: new Uint8Array(16 * KIB), maxData: 20 * KIB + sent * KIB })
    await turn()
  }
  const frames = channel.take()
  assert.ok(frames.some(({ maxData }) => maxData > MIB))
  const flags = frames.filter(({ flag }) => flag !== undefined).map(({ flag }) => flag)
  assert.deepEqual(flags, [])
  assert.equal((await fixture.session.getStats()).substreams, 1)
  channel.receive({ maxData: MIB })
  await turn()
  assert.deepEqual(flagsOf(channel), [[Flag.Fin], [Flag.StopSending, SHUTDOWN]])
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await Promise.all([closing, written])
  await finish(fixture)
})

test('a peer that stops the data of a closing session is stopped too', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const writing = errorOf(substream.writable.getWriter().write(new Uint8Array(60 * KIB)))
  fixture.session.close()
  await turn()
  channel.receive({ flag: Flag.StopSending })
  assert.deepEqual(flagsOf(channel), [[Flag.Fin], [Flag.StopSending, SHUTDOWN]])
  assert.equal((await writing).kind, 'stopped')
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await finish(fixture)
})

test('accepted data has closeTimeout, and not longer', async () => {
  const fixture = start({ closeTimeout: 150 })
  const { substream } = await open(fixture)
  const writer = substream.writable.getWriter()
  const failing = errorOf(writer.write(new Uint8Array(20 * KIB)))
  const closing = errorOf(writer.close())
  const began = performance.now()
  fixture.session.close()
  await fixture.session.closed
  const took = performance.now() - began
  assert.ok(took >= 145 && took < 1_000, `${took} ms`)
  assert.equal((await failing).kind, 'session')
  assert.equal((await closing).kind, 'session')
  assert.ok(fixture.source.isClosed)
})

test('what the browser has not sent may leave for closeTimeout', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  const closing = substream.writable.close()
  await settle()
  channel.receive({ flag: Flag.FinAck }, { flag: Flag.Fin })
  await closing
  fixture.session.close()
  // Longer than the second that this once had.
  await new Promise(resolve => { setTimeout(resolve, 1_300) })
  assert.ok(!fixture.source.isClosed && !fixture.zero.isClosed, 'the goodbye waits in the browser')
  await finish(fixture)
})

test('a download that is not finished is stopped, and fails at once', async () => {
  for (const [info, code] of [[undefined, SHUTDOWN], [{ closeCode: 9, reason: '' }, 9]]) {
    const fixture = start()
    const { substream, channel } = await open(fixture)
    const requested = substream.writable.close()
    await settle()
    channel.receive({ flag: Flag.FinAck }, { payload: new Uint8Array(600) })
    await requested
    const reader = substream.readable.getReader()
    assert.equal((await reader.read()).value.length, 600)
    const reading = errorOf(reader.read())
    channel.take()
    fixture.session.close(info)
    assert.equal((await reading).kind, 'session')
    assert.equal((await errorOf(substream.finished)).kind, 'session')
    assert.deepEqual(flagsOf(channel), [[Flag.StopSending, code]])
    // What was under way is dropped; its FIN ends the wait.
    channel.receive({ payload: new Uint8Array(600) }, { flag: Flag.Fin, errorCode: 0 })
    assert.deepEqual(flagsOf(channel), [[Flag.FinAck]])
    await finish(fixture)
    assert.equal((await fixture.session.getStats()).committed, 0)
  }
})

test('a stream that has arrived whole stays readable after the close', async () => {
  const fixture = start()
  const { substream, channel } = await open(fixture)
  channel.receive({ payload: new Uint8Array(600) }, { flag: Flag.Fin })
  fixture.session.close()
  await turn()
  assert.deepEqual(flagsOf(channel), [[Flag.FinAck], [Flag.ResetStream, SHUTDOWN]])
  const reader = substream.readable.getReader()
  assert.equal((await reader.read()).value.length, 600)
  assert.ok((await reader.read()).done)
  await finish(fixture)
})

test('a connection ends when the peer has answered for channel 0', async () => {
  const fixture = start()
  fixture.session.close({ closeCode: 3, reason: 'bye' })
  fixture.zero.drain()
  await until(() => fixture.zero.isClosed)
  assert.deepEqual(fixture.zero.take().at(-1), { flag: Flag.Fin, errorCode: 3, reason: 'bye' })
  await new Promise(resolve => { setTimeout(resolve, 300) })
  assert.ok(!fixture.source.isClosed, 'before the peer has answered')
  fixture.zero.finishClose()
  assert.deepEqual(await fixture.session.closed, { closeCode: 3, reason: 'bye' })
  assert.ok(fixture.source.isClosed)
})

test('a peer that does not answer for channel 0 is waited for until closeTimeout', async () => {
  const fixture = start({ closeTimeout: 150 })
  const began = performance.now()
  fixture.session.close()
  fixture.zero.drain()
  await fixture.session.closed
  const took = performance.now() - began
  assert.ok(took >= 145 && took < 1_000, `${took} ms`)
  assert.ok(fixture.source.isClosed)
})
