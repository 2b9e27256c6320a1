// Negotiations with a peer that this test plays.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { FakeChannel, Flag, session, settle, until } from './fake.mjs'
import { load } from './modules.mjs'

const { multistream } = await load("export { multistream } from './multistream.js'")

const HEADER = '/multistream/1.0.0'
const encode = (...lines) => Buffer.concat(lines.map(line => {
  const { length } = Buffer.from(`${line}\n`)
  return Buffer.concat([
    Buffer.from(length < 128 ? [length] : [length & 127 | 128, length >> 7]),
    Buffer.from(`${line}\n`)
  ])
}))
const decode = frames => {
  let bytes = Buffer.concat(frames.map(({ payload }) => payload ?? Buffer.alloc(0)))
  const lines = []
  while (bytes.length > 0) {
    lines.push(bytes.subarray(1, 1 + bytes[0]).toString().trimEnd())
    bytes = bytes.subarray(1 + bytes[0])
  }
  return lines
}
const codesOf = frames => frames.flatMap(({ errorCode }) => errorCode ?? [])

/** A substream that the peer opens. */
function incoming (carrier, label = '') {
  const channel = new FakeChannel(label)
  carrier.onDataChannel(channel)
  return channel
}

async function rounds (count = 8) {
  for (let round = 0; round < count; round++) await settle()
}

test('an opener agrees, and the bytes that follow are the application’s', async () => {
  const { session: bare, channels } = session()
  const opening = multistream(bare).createBidirectionalStream({ protocol: '/echo' })
  await rounds()
  const [channel] = channels
  assert.equal(channel.label, '')
  assert.deepEqual(decode(channel.take()), [HEADER, '/echo'])
  const payload = Buffer.concat([encode(HEADER, '/echo'), Buffer.from('hello')])
  channel.receive({ maxData: 100_000, payload })
  const stream = await opening
  assert.equal(stream.protocol, '/echo')
  const { value } = await stream.readable.getReader().read()
  assert.equal(Buffer.from(value).toString(), 'hello')
})

test('an opener whose peer answers otherwise resets the substream', async () => {
  const long = Buffer.from([0xff, 0x7f])
  for (const [answer, message] of [
    [encode(HEADER, 'na'), /the peer has no \/echo/],
    [encode(HEADER, '/other'), /answer \/other/],
    [encode('/multistream/2.0.0'), /header \/multistream\/2/],
    [long, /a long message/],
    [Buffer.from([0x80, 0x80, 0x01]), /a long message/],
    [Buffer.from([2, 97, 98]), /no line/]
  ]) {
    const { session: bare, channels } = session()
    const opening = multistream(bare).createBidirectionalStream({ protocol: '/echo' })
    await rounds()
    channels[0].receive({ maxData: 100_000, payload: answer })
    await assert.rejects(opening, error => {
      assert.equal(error.streamErrorCode, 0x1001)
      return message.test(error.message)
    })
    assert.deepEqual(codesOf(channels[0].take()), [0x1001])
  }
})

test('a negotiation that takes too long resets the substream', async () => {
  const { session: bare, channels } = session()
  const slow = multistream(bare, { negotiationTimeout: 20 })
  const opening = slow.createBidirectionalStream({ protocol: '/echo' })
  await assert.rejects(opening, /not agreed within 20 ms/)
  assert.deepEqual(codesOf(channels[0].take()), [0x1001])
})

test('an opener gives up on a peer that sends STOP_SENDING and is silent then', async () => {
  const { session: bare, channels } = session()
  const slow = multistream(bare, { negotiationTimeout: 20 })
  let error
  slow.createBidirectionalStream({ protocol: '/echo' }).catch(cause => { error = cause })
  await rounds()
  channels[0].receive({ maxData: 100_000, flag: Flag.StopSending })
  await until(() => error !== undefined)
  assert.match(error.message, /not agreed within 20 ms/)
  const stop = channels[0].take().find(({ flag }) => flag === Flag.StopSending)
  assert.equal(stop.errorCode, 0x1001)
})

test('a responder gives up on peers that send STOP_SENDING and are silent then', async () => {
  const { session: bare, carrier } = session()
  const slow = multistream(bare, { protocols: ['/b'], negotiationTimeout: 20 })
  const accepting = slow.incomingBidirectionalStreams.getReader().read()
  const silent = Array.from({ length: 16 }, () => {
    const channel = incoming(carrier)
    channel.receive({ maxData: 100_000, flag: Flag.StopSending })
    return channel
  })
  await until(() => silent.every(({ frames }) => codesOf(frames).includes(0x1001)))
  // Their places are free.
  incoming(carrier).receive({ maxData: 100_000, payload: encode(HEADER, '/b') })
  assert.equal((await accepting).value.protocol, '/b')
})

test('a responder takes the first protocol that it has', async () => {
  const { session: bare, carrier } = session()
  const negotiating = multistream(bare, { protocols: ['/b', '/c'] })
  const accepting = negotiating.incomingBidirectionalStreams.getReader().read()
  const channel = incoming(carrier)
  channel.receive({ maxData: 100_000, payload: encode(HEADER, '/a', '/b') })
  const { value: stream } = await accepting
  assert.equal(stream.protocol, '/b')
  assert.deepEqual(decode(channel.take()), [HEADER, 'na', '/b'])
})

test('a responder answers a bounded number of proposals, and goes on to the next', async () => {
  const { session: bare, carrier } = session()
  const negotiating = multistream(bare, { protocols: ['/b'] })
  const accepting = negotiating.incomingBidirectionalStreams.getReader().read()
  const guessing = incoming(carrier)
  guessing.receive({ maxData: 100_000, payload: encode(HEADER, ...Array(20).fill('/a')) })
  await rounds(80)
  assert.deepEqual(codesOf(guessing.take()), [0x1001])
  const labelled = incoming(carrier, '/labelled')
  labelled.receive({ maxData: 100_000 })
  assert.equal((await accepting).value.protocol, '/labelled')
})

test('no more than 16 substreams are taken before the application accepts them', async () => {
  const { session: bare, carrier } = session()
  const negotiating = multistream(bare, { protocols: ['/b'] })
  const reader = negotiating.incomingBidirectionalStreams.getReader()
  const first = reader.read()
  const channels = Array.from({ length: 40 }, () => {
    const channel = incoming(carrier)
    channel.receive({ maxData: 100_000, payload: encode(HEADER, '/b') })
    return channel
  })
  assert.equal((await first).value.protocol, '/b')
  await rounds(80)
  const answered = channels.filter(channel => decode(channel.frames).includes('/b')).length
  assert.ok(answered >= 16 && answered <= 18, `${answered}`)
  for (let count = 1; count < 40; count++) assert.equal((await reader.read()).value.protocol, '/b')
  bare.close()
  assert.ok((await reader.read()).done)
})
