// Sessions over a WebSocket: how they close, and when FIN has left.

import assert from 'node:assert/strict'
import { mock, test } from 'node:test'
import { errorOf, Flag, settle, turn, until, webSocketSession } from './fake.mjs'

const KIB = 1024
const MIB = 1024 * KIB

/** Opens substream 2, and grants what it may send. */
async function open ({ session, socket }, number = 2) {
  const substream = await session.createBidirectionalStream()
  await settle()
  socket.receive({ stream: number, maxData: MIB })
  return substream
}

const flags = socket => socket.take().filter(({ flag }) => flag !== undefined)

test('close codes of this side', async () => {
  for (const [info, code, reason] of [
    [undefined, 1000, ''],
    [{ closeCode: 7, reason: 'bye' }, 4007, 'bye'],
    [{ closeCode: 0, reason: 'bye' }, 4000, 'bye'],
    [{ closeCode: 70_000, reason: 'ü'.repeat(100) }, 4999, 'ü'.repeat(61)]
  ]) {
    const { session, socket } = webSocketSession()
    session.close(info)
    await until(() => socket.closedWith !== undefined)
    assert.deepEqual(socket.closedWith, [code, reason])
    socket.finishClose(code, reason)
    assert.deepEqual(await session.closed, { closeCode: 0, reason: '', ...info })
  }
})

test('a violation closes with a code that no orderly close has', async () => {
  for (const [code, frames] of [
    // No number, a number of this side, payload outside of any substream.
    [3002, [{ flag: Flag.Fin }]],
    [3002, [{ stream: 2, label: '' }]],
    [3002, [{ stream: 0, payload: Uint8Array.of(1) }]],
    // A limit of the session.
    [3008, Array.from({ length: 90 }, () => ({ stream: 0, maxSubstreams: 1 }))]
  ]) {
    const { session, socket } = webSocketSession({ maxFramesWithoutEffect: 20 })
    socket.receive(...frames)
    assert.equal((await errorOf(session.closed)).kind, 'protocol')
    assert.equal(socket.closedWith[0], code, socket.closedWith[1])
  }
})

test('close codes of the peer', async () => {
  for (const [goodbye, code, reason, expected] of [
    [undefined, 1000, '', { closeCode: 0, reason: '' }],
    [undefined, 1001, '', { closeCode: 0, reason: '' }],
    [undefined, 1005, '', { closeCode: 0, reason: '' }],
    [undefined, 1000, 'done', { closeCode: 1000, reason: 'done' }],
    [undefined, 4007, 'bye', { closeCode: 4007, reason: 'bye' }],
    [{}, 1000, '', { closeCode: 0, reason: '' }],
    [{ errorCode: 70_000 }, 4999, 'bye', { closeCode: 70_000, reason: 'bye' }],
    // Errors, also after a goodbye: the announced close may have failed.
    ...[1002, 1003, 1007, 1008, 1009, 1011, 3002, 3008].flatMap(code => [
      [undefined, code, 'x', 'lost'], [{ errorCode: 5 }, code, 'x', 'lost']
    ])
  ]) {
    const { session, socket } = webSocketSession()
    if (goodbye !== undefined) socket.receive({ stream: 0, flag: Flag.Fin, ...goodbye })
    socket.finishClose(code, reason)
    if (expected !== 'lost') {
      assert.deepEqual(await session.closed, expected)
      continue
    }
    const error = await errorOf(session.closed)
    assert.deepEqual([error.kind, error.closeCode, error.reason], ['lost', code, reason])
  }
})

test('opens fail at once after a goodbye, and open substreams go on', async () => {
  const fixture = webSocketSession()
  const { session, socket } = fixture
  const substream = await open(fixture)
  // No number is left for this one.
  socket.receive({ stream: 0, maxSubstreams: 1 })
  const waiting = errorOf(session.createBidirectionalStream())
  socket.receive({ stream: 0, flag: Flag.Fin, errorCode: 5 })
  assert.equal((await waiting).kind, 'closed-by-peer')
  assert.equal((await errorOf(session.createBidirectionalStream())).kind, 'closed-by-peer')
  await session.draining
  socket.take()
  const closing = substream.writable.close()
  await settle()
  assert.deepEqual(flags(socket), [{ stream: 2, flag: Flag.Fin }])
  socket.receive({ stream: 2, flag: Flag.FinAck }, { stream: 2, flag: Flag.Fin })
  await closing
  await substream.finished
})

test('the wait for FIN_ACK begins when FIN has left, however much follows it', async () => {
  mock.timers.enable({ apis: ['setTimeout'] })
  const advance = ms => {
    for (let passed = 0; passed < ms; passed += 500) mock.timers.tick(500)
  }
  try {
    const fixture = webSocketSession({ sendBuffer: 64 * KIB })
    const { session, socket } = fixture
    const substream = await open(fixture)
    const busy = await open(fixture, 4)
    const writer = busy.writable.getWriter()
    // FIN has these bytes before it.
    writer.write(new Uint8Array(40 * KIB)).catch(() => {})
    await settle()
    const closing = errorOf(substream.writable.close())
    await settle()
    advance(60_000)
    socket.bufferedAmount -= 39 * KIB
    advance(60_000)
    assert.equal(await Promise.race([closing, settle()]), undefined, 'FIN has not left')
    // It leaves, and the socket stays busy.
    socket.bufferedAmount = 0
    writer.write(new Uint8Array(40 * KIB)).catch(() => {})
    await settle()
    assert.ok(socket.bufferedAmount > 40 * KIB)
    advance(9_500)
    assert.equal(await Promise.race([closing, settle()]), undefined, 'too early')
    advance(1_500)
    assert.equal((await closing).kind, 'timed-out')
    session.close()
  } finally {
    mock.timers.reset()
  }
})

test('a close sends what was accepted, and its close frame after that', async () => {
  const fixture = webSocketSession()
  const { session, socket } = fixture
  const substream = await open(fixture)
  const writer = substream.writable.getWriter()
  const written = writer.write(new Uint8Array(40 * KIB))
  const closing = writer.close()
  session.close({ closeCode: 7, reason: 'bye' })
  await turn()
  const frames = socket.take()
  assert.equal(frames.reduce((sum, { payload }) => sum + (payload?.length ?? 0), 0), 40 * KIB)
  assert.deepEqual(frames.at(-2).flag, Flag.Fin)
  assert.deepEqual(frames.at(-1), { stream: 2, flag: Flag.StopSending, errorCode: 7 })
  assert.equal(socket.closedWith, undefined)
  socket.receive({ stream: 2, flag: Flag.FinAck }, { stream: 2, flag: Flag.Fin })
  await Promise.all([written, closing])
  await until(() => socket.closedWith !== undefined)
  socket.finishClose(4007, 'bye')
  assert.deepEqual(await session.closed, { closeCode: 7, reason: 'bye' })
})
