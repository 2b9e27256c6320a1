// What programs in TypeScript do with the package. It is compiled, by `package.test.mjs`, not run.

import {
  certificateHash, connect, connectAny, ConnectError, SubstreamError, type BidirectionalStream,
  type ConnectErrorKind, type Session
} from '../dist/index.js'
import { Identity, noise } from '../dist/noise.js'
import { PayloadError, receivePayload, sendPayload } from '../dist/payload.js'
import { version1 } from '../dist/v1.js'
import { webRtcFrom, webRtcPort } from '../dist/worker.js'

async function dial (address: string, signal: AbortSignal): Promise<Session> {
  try {
    return await connect(address, { security: certificateHash, version: version1, signal })
  } catch (error) {
    const kind: ConnectErrorKind | undefined = error instanceof ConnectError ? error.kind : undefined
    if (kind !== 'munging-refused') throw error
    return (await connectAny([address], { security: noise(), webSocketHeadStart: 100 })).session
  }
}

async function read (stream: BidirectionalStream): Promise<Uint8Array<ArrayBuffer>> {
  const reader = stream.readable.getReader({ mode: 'byob' })
  const { value } = await reader.read(new Uint8Array(10))
  return value ?? new Uint8Array()
}

export async function run (address: string, worker: Worker): Promise<number | null> {
  await using session = await dial(address, AbortSignal.timeout(1000))
  const stream = await session.createBidirectionalStream({ protocol: '/x', priority: 1 })
  const writer = stream.writable.getWriter()
  await writer.write(await read(stream))
  const { closeCode, reason }: { closeCode: number, reason: string } = await session.closed
  for await (const incoming of session.incomingBidirectionalStreams as unknown as AsyncIterable<BidirectionalStream>) {
    const payload = await receivePayload(incoming, { maxTotal: closeCode })
    await payload.copyTo(new WritableStream<Uint8Array>())
  }
  const sent = await sendPayload(stream, new Blob([reason]), { resumable: true })
  const port = webRtcPort()
  worker.postMessage(port, [port])
  const identity = await Identity.generate()
  await connect(address, { security: noise({ identity }), webRtc: webRtcFrom(port) })
  try {
    await stream.finished
  } catch (error) {
    if (error instanceof SubstreamError) return error.streamErrorCode
    if (error instanceof PayloadError && error.isRemote) return null
  }
  return sent.resumedFrom
}

// @ts-expect-error: how the listener is authenticated has to be chosen.
export const without = connect('/ip4/127.0.0.1/udp/1/webrtc-direct', {})
