// Content that both sides can make and check.

import {
  assert, assertEqual, chunksOf, open, pattern, readAll, sameBytes, send, withSession
} from './tools.mjs'

/** Whole periods of the pattern, so that one chunk follows another. */
const CHUNK = pattern(251 * 1024)

export const uint64 = value => {
  const bytes = new DataView(new ArrayBuffer(8))
  bytes.setBigUint64(0, BigInt(value))
  return bytes
}

/** Reads so many bytes of the pattern, and then the end. */
export async function readPattern (readable, length) {
  let at = 0
  for await (const chunk of chunksOf(readable)) {
    const start = at % 251
    assert(sameBytes(chunk, CHUNK.subarray(start, start + chunk.length)), `other bytes at ${at}`)
    at += chunk.length
  }
  assertEqual(at, length, 'bytes')
}

export async function download (session, length) {
  const substream = await open(session, '/download')
  await send(substream, uint64(length))
  await readPattern(substream.readable, length)
}

export async function writePattern (substream, length) {
  const writer = substream.writable.getWriter()
  for (let left = length; left > 0; left -= CHUNK.length) {
    await writer.ready
    writer.write(CHUNK.subarray(0, left)).catch(() => {})
  }
  await writer.close()
}

export async function upload (session, length) {
  const substream = await open(session, '/upload')
  const [answer] = await Promise.all([readAll(substream.readable), writePattern(substream, length)])
  assertEqual(Number(new DataView(answer.buffer).getBigUint64(0)), length, 'bytes that arrived')
}

/** Reports the time of the last bytes again and again, while it downloads. */
export const downloadWithReports = parameters => withSession(parameters, {}, async session => {
  const start = performance.timeOrigin + performance.now()
  let last = start
  let pause = 0
  const substream = await open(session, '/download')
  await send(substream, uint64(parameters.length))
  let length = 0
  for await (const chunk of chunksOf(substream.readable)) {
    const now = performance.timeOrigin + performance.now()
    pause = Math.max(pause, now - last)
    last = now
    length += chunk.length
  }
  return { length, start, end: last, pause }
})
