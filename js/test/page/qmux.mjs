// The same transfers by QMux over a WebSocket, which is what programs for WebTransport fall back to.

import Session from '@moq/qmux'
import { pattern, within } from './tools.mjs'
import { readPattern, uint64 } from './transfers.mjs'

const MIB = 1024 * 1024
const PIECE = pattern(251 * 1024)

/** The milliseconds of a stream that carries so many bytes up, then down. */
async function msOf (session, up, down) {
  const start = performance.now()
  const { readable, writable } = await session.createBidirectionalStream()
  const writer = writable.getWriter()
  for (const length of [up, down]) await writer.write(new Uint8Array(uint64(length).buffer))
  for (let left = up; left > 0; left -= PIECE.length) {
    await writer.ready
    writer.write(PIECE.subarray(0, left)).catch(() => {})
  }
  await writer.close()
  await readPattern(readable, down)
  return performance.now() - start
}

/** 64 MiB each way with the listener at `parameters.qmux`. */
export async function qmuxThroughput ({ qmux }) {
  const session = new Session(qmux)
  await within(5_000, 'ready', session.ready)
  const rate = ms => Math.round(64_000 / ms)
  const up = await within(60_000, 'upload', msOf(session, 64 * MIB, 0))
  const down = await within(60_000, 'download', msOf(session, 0, 64 * MIB))
  session.close()
  return { 'up-mib-s': rate(up), 'down-mib-s': rate(down) }
}
