// Substreams over one session: what arrives, and how they end.

import {
  assert, assertEqual, chunksOf, errorOf, open, pattern, readAll, sameBytes, send, within,
  withSession
} from './tools.mjs'

const RESET_CODE = 77
const STOP_CODE = 78

async function roundTrip (session, content) {
  const substream = await open(session, '/echo')
  const sent = send(substream, content)
  const back = await within(30_000, 'the end', readAll(substream.readable))
  await sent
  assert(sameBytes(back, content), 'other bytes came back')
  await within(5_000, 'finished', substream.finished)
}

/** 1 KiB goes there and back, and both sides confirm the end. */
export const echo = parameters =>
  withSession(parameters, {}, session => roundTrip(session, pattern(1024)))

/** Lengths at the edges of frames, windows and buffers. */
export const echoOfEverySize = parameters => withSession(parameters, {}, async session => {
  for (const length of [0, 1, 125, 128, 512, 513, 12_288, 16_379, 16_380, 65_536, 3_000_001]) {
    await roundTrip(session, pattern(length))
  }
})

/** Views of every kind are written, and buffers of the caller are read into. */
export const buffersOfTheCaller = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/echo')
  const writer = substream.writable.getWriter()
  const content = pattern(200_000)
  const written = (async () => {
    await writer.write(content.buffer.slice(0, 100))
    await writer.write(new DataView(content.buffer, 100, 900))
    await writer.write(new Uint16Array(content.buffer, 1000, 500))
    await writer.write(content.subarray(2000))
    await writer.close()
  })()
  const reader = substream.readable.getReader({ mode: 'byob' })
  let buffer = new ArrayBuffer(50_000)
  let at = 0
  for (;;) {
    const { value, done } = await within(10_000, 'a read', reader.read(new Uint8Array(buffer)))
    if (done) break
    assert(sameBytes(value, content.subarray(at, at + value.length)), `other bytes at ${at}`)
    at += value.length
    buffer = value.buffer
  }
  await written
  assertEqual(at, content.length, 'bytes')
  await substream.finished
})

/** Each direction ends by itself: the listener answers after the end of the request. */
export const halfClose = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/download')
  const request = new DataView(new ArrayBuffer(8))
  request.setBigUint64(0, 5_000_000n)
  await send(substream, request)
  let at = 0
  for await (const chunk of chunksOf(substream.readable)) {
    assert(sameBytes(chunk, pattern(chunk.length, at)), `other bytes at ${at}`)
    at += chunk.length
  }
  assertEqual(at, 5_000_000, 'bytes')
})

/** A chunk that is no buffer fails, and resets its substream only. */
export const noBuffer = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/see-reset')
  await substream.readable.getReader().read()
  const error = await errorOf(substream.writable.getWriter().write('text'), 'write of text')
  assertEqual(error.name, 'TypeError', 'error')
  await roundTrip(session, pattern(10))
})

/** The listener resets: both directions fail with its code. */
export const resetByTheListener = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/reset')
  const writer = substream.writable.getWriter()
  await writer.write(Uint8Array.of(1))
  for (const [what, promise] of [
    ['read', substream.readable.getReader().read()],
    ['writer.closed', writer.closed],
    ['finished', substream.finished]
  ]) {
    const error = await within(5_000, what, errorOf(promise, what))
    assertEqual(
      [error.name, error.kind, error.source, error.streamErrorCode],
      ['SubstreamError', 'reset', 'stream', RESET_CODE],
      what
    )
  }
})

/** The page aborts, with a write under way that the listener never takes. */
export const abort = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/hold')
  const reader = substream.readable.getReader()
  await reader.read()
  const writer = substream.writable.getWriter()
  const write = writer.write(new Uint8Array(64 * 1024 * 1024))
  const pending = errorOf(write, 'write')
  await writer.abort({ streamErrorCode: 9 })
  assertEqual((await within(1_000, 'write', pending)).kind, 'aborted', 'write')
  const error = await errorOf(reader.read(), 'read')
  assertEqual([error.kind, error.streamErrorCode], ['aborted', 9], 'read')
})

/** The code of an abort arrives. */
export const abortWithCode = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/see-reset')
  await substream.readable.getReader().read()
  await substream.writable.abort(9)
})

/** The page cancels: the listener is told the code, and what it sent before is dropped. */
export const cancel = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/see-stop')
  const reader = substream.readable.getReader()
  await reader.read()
  await reader.cancel({ streamErrorCode: 11 })
  await send(substream, pattern(10))
  await within(5_000, 'finished', substream.finished)
})

/** The listener stops reading: writes fail with its code, and reading goes on. */
export const stopByTheListener = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/stop')
  const writer = substream.writable.getWriter()
  await writer.write(Uint8Array.of(1))
  const error = await within(5_000, 'closed', errorOf(writer.closed, 'closed'))
  assertEqual([error.kind, error.streamErrorCode], ['stopped', STOP_CODE], 'closed')
  assertEqual((await readAll(substream.readable)).length, 0, 'bytes')
})

/** The listener opens a substream to the page. */
export const openedByTheListener = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/call-back')
  const done = send(substream, Uint8Array.of())
  const incoming = session.incomingBidirectionalStreams.getReader()
  const { value: called } = await within(5_000, 'a substream', incoming.read())
  assertEqual(called.protocol, '/from-listener', 'protocol')
  await called.readable.pipeTo(called.writable)
  await Promise.all([called.finished, done, readAll(substream.readable)])
})

/** Signals end an open that waits, and a substream that is open. */
export const signals = parameters => withSession(parameters, {}, async session => {
  const reason = new Error('no longer wanted')
  const aborted = errorOf(open(session, '/echo', { signal: AbortSignal.abort(reason) }), 'open')
  assertEqual((await aborted).message, reason.message, 'open')
  const controller = new AbortController()
  const substream = await open(session, '/see-reset', { signal: controller.signal })
  await substream.readable.getReader().read()
  controller.abort(reason)
  assertEqual((await errorOf(substream.finished, 'finished')).kind, 'aborted', 'finished')
})

/** A protocol that the listener does not have. */
export const unknownProtocol = parameters => withSession(parameters, {}, async session => {
  const substream = await open(session, '/unknown')
  const error = await within(5_000, 'finished', errorOf(substream.finished, 'finished'))
  assertEqual([error.kind, error.streamErrorCode], ['reset', 0x1001], 'finished')
})

async function atOnce (session, count) {
  const one = async number => {
    const substream = await session.createBidirectionalStream({ protocol: '/echo' })
    const sent = send(substream, pattern(100, number))
    assert(sameBytes(await readAll(substream.readable), pattern(100, number)), 'other bytes')
    await sent
  }
  const start = performance.now()
  await Promise.all(Array.from({ length: count }, (_, number) => one(number)))
  return { 'substreams-per-s': Math.round(count / (performance.now() - start) * 1000) }
}

/** More substreams than the listener takes at once, each of them used. */
export const manySubstreams = parameters =>
  withSession(parameters, {}, session => atOnce(session, 1000))

/** More substreams than the browser has numbers for, of a listener that takes them all. */
export const moreSubstreamsThanChannels = parameters =>
  withSession(parameters, {}, session => atOnce(session, 3000))

/** More substreams in a row than a browser has numbers for channels at once. */
export const tenThousandSubstreams = parameters => withSession(parameters, {}, async session => {
  const count = 10_000
  let next = 0
  const worker = async () => {
    while (next < count) {
      const number = next++
      const substream = await session.createBidirectionalStream({ protocol: '/echo' })
      const sent = send(substream, pattern(10, number))
      assert(sameBytes(await readAll(substream.readable), pattern(10, number)), 'other bytes')
      await sent
    }
  }
  const start = performance.now()
  await Promise.all(Array.from({ length: 64 }, worker))
  const { substreamsOpened } = await session.getStats()
  assert(substreamsOpened === count, `${substreamsOpened} substreams`)
  return { 'substreams-per-s': Math.round(count / (performance.now() - start) * 1000) }
})
