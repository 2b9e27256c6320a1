// Backpressure in both directions, and throughput.

import { assert, assertEqual, open, readAll, send, within, withSession } from './tools.mjs'
import { download, uint64, upload, writePattern } from './transfers.mjs'

const KIB = 1024
const MIB = 1024 * KIB

async function msOf (work) {
  const start = performance.now()
  await work()
  return performance.now() - start
}

/** The best of three: other programs run on this machine. */
async function best (work) {
  const times = [await msOf(work), await msOf(work), await msOf(work)]
  return Math.min(...times)
}

/**
 * The page reads nothing of one substream: its writer stops, within the window that was granted,
 * and others go on at their speed.
 */
export const stalledInThePage = parameters => withSession(parameters, {}, async session => {
  const length = 4 * MIB
  await download(session, length)
  const alone = await best(() => download(session, length))
  const before = (await session.getStats()).bytesReceived
  const stalled = await open(session, '/download')
  await send(stalled, uint64(256 * MIB))
  const reader = stalled.readable.getReader()
  // Past the first window, which is a small one.
  for (let read = 0; read < 64 * KIB;) read += (await reader.read()).value.length
  const beside = await best(() => download(session, length))
  const { bytesReceived, committed } = await session.getStats()
  const held = bytesReceived - before - 3 * length
  assert(held > 512 * KIB && held <= MIB + 64 * KIB + 16 * KIB, `the stalled one got ${held} bytes`)
  assert(committed <= 32 * MIB, `${committed} bytes are committed`)
  const cost = beside / alone - 1
  await reader.cancel()
  await within(10_000, 'finished', stalled.finished)
  return { 'held-kib': Math.round(held / KIB), 'neighbours-cost-percent': Math.round(100 * cost) }
})

/** The listener reads nothing of one substream: writes to it wait, and others go on. */
export const stalledInTheListener = parameters => withSession(parameters, {}, async session => {
  const length = 4 * MIB
  await upload(session, length)
  const alone = await best(() => upload(session, length))
  const before = (await session.getStats()).bytesSent
  const stalled = await open(session, '/hold')
  const reader = stalled.readable.getReader()
  await reader.read()
  const written = writePattern(stalled, length)
  const beside = await best(() => upload(session, length))
  const sent = (await session.getStats()).bytesSent - before - 3 * length
  assert(sent > 0 && sent <= 2 * MIB, `${sent} bytes were sent to who reads nothing`)
  const release = await open(session, '/release')
  await send(release, new Uint8Array())
  await readAll(release.readable)
  await within(30_000, 'the held one', written)
  const { value } = await reader.read()
  assertEqual(
    Number(new DataView(value.buffer, value.byteOffset).getBigUint64(0)),
    length,
    'bytes that arrived'
  )
  assert((await reader.read()).done, 'the end')
  await stalled.finished
  return {
    'sent-kib': Math.round(sent / KIB),
    'neighbours-cost-percent': Math.round(100 * (beside / alone - 1))
  }
})

/** Two channels of this browser to itself, without frames: what its SCTP can do. */
async function rawMs (length) {
  const [a, b] = [new RTCPeerConnection(), new RTCPeerConnection()]
  a.onicecandidate = ({ candidate }) => b.addIceCandidate(candidate)
  b.onicecandidate = ({ candidate }) => a.addIceCandidate(candidate)
  const message = new Uint8Array(16 * KIB)
  let left = length
  const senders = [0, 1].map(() => a.createDataChannel(''))
  const all = new Promise(resolve => {
    b.ondatachannel = ({ channel }) => {
      channel.binaryType = 'arraybuffer'
      channel.onmessage = ({ data }) => {
        left -= data.byteLength
        if (left <= 0) resolve()
      }
    }
  })
  await a.setLocalDescription()
  await b.setRemoteDescription(a.localDescription)
  await b.setLocalDescription()
  await a.setRemoteDescription(b.localDescription)
  await within(10_000, 'raw channels', Promise.all(senders.map(channel => new Promise(resolve => {
    channel.onopen = resolve
  }))))
  const start = performance.now()
  for (const channel of senders) {
    let sent = 0
    channel.bufferedAmountLowThreshold = 256 * KIB
    channel.onbufferedamountlow = () => {
      while (sent < length / 2 && channel.bufferedAmount < 512 * KIB) {
        channel.send(message)
        sent += message.length
      }
    }
    channel.onbufferedamountlow()
  }
  await within(60_000, 'raw throughput', all)
  const ms = performance.now() - start
  a.close()
  b.close()
  return ms
}

/** 64 MiB each way, beside two raw channels of the same browser. */
export const throughput = parameters => withSession(parameters, {}, async session => {
  const length = 64 * MIB
  const rate = ms => Math.round(length / MIB / ms * 1000)
  const up = await msOf(() => upload(session, length))
  const down = await msOf(() => download(session, length))
  const raw = parameters.address.includes('webrtc-direct') ? await rawMs(length) : undefined
  return { 'up-mib-s': rate(up), 'down-mib-s': rate(down), ...raw && { 'raw-mib-s': rate(raw) } }
})
