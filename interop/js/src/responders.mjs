// The responder's side of every test protocol, independent of which side of the connection opens.

import { isReset } from './errors.mjs'
import * as protocols from './protocols.mjs'
import { PatternCheck } from './pattern.mjs'
import { Substream } from './substream.mjs'
import { sleep } from './within.mjs'

/** connection -> { verified, reset }: the newest records, for the result protocols. */
const records = new WeakMap()

function record (connection, entry) {
  records.set(connection, { ...records.get(connection), ...entry })
}

/** Waits for the record `key` of a connection and removes it, so that it is reported once. */
async function takeRecord (connection, key) {
  const giveUpAt = Date.now() + protocols.RESULT_WAIT_MS
  while (records.get(connection)?.[key] === undefined && Date.now() < giveUpAt) {
    await sleep(10)
  }
  const value = records.get(connection)?.[key]
  record(connection, { [key]: undefined })
  return value
}

async function echo (substream) {
  for await (const chunk of substream.chunks()) await substream.write(chunk)
  await substream.closeWrite()
}

async function bench (substream) {
  const header = new DataView((await substream.readExactly(16)).buffer)
  await substream.readPatternToEnd(Number(header.getBigUint64(0)))
  await substream.writePattern(Number(header.getBigUint64(8)))
  await substream.closeWrite()
}

async function halfClose (substream) {
  await substream.readToEnd()
  await substream.writePattern(protocols.HALF_CLOSE_BYTES)
  await substream.closeWrite()
}

async function halfCloseRemote (substream, connection) {
  await substream.writePattern(protocols.HALF_CLOSE_BYTES)
  await substream.closeWrite()
  const check = new PatternCheck()
  try {
    for await (const chunk of substream.chunks()) check.update(chunk)
  } finally {
    record(connection, { verified: BigInt(check.count) })
  }
}

async function halfCloseResult (substream, connection) {
  const answer = new DataView(new ArrayBuffer(8))
  answer.setBigUint64(0, await takeRecord(connection, 'verified') ?? protocols.NO_RESULT)
  await substream.write(new Uint8Array(answer.buffer))
  await substream.closeWrite()
}

async function resetMe (substream, connection) {
  const received = await substream.readExactly(protocols.RESET_ME_BYTES)
  await substream.write(received.subarray(-1))
  try {
    await substream.readToEnd()
    record(connection, { reset: false })
    await substream.closeWrite()
  } catch (error) {
    record(connection, { reset: isReset(error) })
  }
}

async function resetResult (substream, connection) {
  const sawReset = await takeRecord(connection, 'reset') === true
  await substream.write(Uint8Array.of(sawReset ? 1 : 0))
  await substream.closeWrite()
}

async function resetYou (substream) {
  await substream.readExactly(1)
  substream.abort(new Error('reset on request'))
}

const RESPONDERS = {
  [protocols.ECHO]: echo,
  [protocols.BENCH]: bench,
  [protocols.HALF_CLOSE]: halfClose,
  [protocols.HALF_CLOSE_REMOTE]: halfCloseRemote,
  [protocols.HALF_CLOSE_RESULT]: halfCloseResult,
  [protocols.RESET_ME]: resetMe,
  [protocols.RESET_RESULT]: resetResult,
  [protocols.RESET_YOU]: resetYou
}

/** Serves every test protocol on `node`. libp2p aborts, and so resets, a failed substream. */
export async function serve (node, onError = () => {}) {
  for (const [protocol, respond] of Object.entries(RESPONDERS)) {
    const handle = async (stream, connection) => {
      try {
        await respond(new Substream(stream), connection)
      } catch (error) {
        onError(protocol, error)
        throw error
      }
    }
    await node.handle(protocol, handle, protocols.STREAM_LIMITS)
  }
}
