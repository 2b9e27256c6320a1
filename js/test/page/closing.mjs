// Sessions that the page closes while substreams are open.

import { assertEqual, dial, errorOf, open, pattern, within } from './tools.mjs'
import { uint64 } from './transfers.mjs'

const MIB = 1024 * 1024
const CLOSE = { closeCode: 7, reason: 'done' }

async function closeOf (session, ms) {
  const start = performance.now()
  session.close(CLOSE)
  assertEqual(await within(ms, 'close', session.closed), CLOSE, 'closed')
  return { 'close-ms': Math.round(performance.now() - start) }
}

/** Nothing is awaited: not the writes, not the close of the writer. */
export async function closeRightAfterWriting (parameters) {
  const session = await dial(parameters)
  const substream = await open(session, '/count')
  const writer = substream.writable.getWriter()
  const written = [0, 1, 2].map(part => writer.write(pattern(MIB, part * MIB)))
  const closed = writer.close()
  const figures = await closeOf(session, 9_000)
  await Promise.all([...written, closed])
  return figures
}

/** A download of which little was read is stopped, and does not hold up the close. */
export async function closeWithinADownload (parameters) {
  const session = await dial(parameters)
  const substream = await open(session, '/download')
  const writer = substream.writable.getWriter()
  await writer.write(uint64(256 * MIB))
  await writer.close()
  const reader = substream.readable.getReader()
  for (let read = 0; read < MIB;) read += (await reader.read()).value.length
  const reading = errorOf((async () => { while (!(await reader.read()).done); })(), 'read')
  const figures = await closeOf(session, 4_000)
  assertEqual((await reading).kind, 'session', 'read')
  return figures
}
