// The two sides of the entry `/worker`, with ports and connections of this test.

import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { errorOf, FakeChannel, settle, until } from './fake.mjs'
import { load } from './modules.mjs'

const { certificateHash, limitsOf, parseAddress, version2, webRtcFrom, webRtcPort } = await load(`
  export { parseAddress } from './address.js'
  export { limitsOf } from './options.js'
  export { certificateHash } from './security.js'
  export { version2 } from './webrtc/version.js'
  export { webRtcFrom, webRtcPort } from './worker.js'
`)

const HASH = Buffer.from([0x12, 0x20, ...new Uint8Array(32)]).toString('base64url')
const ADDRESS = parseAddress(`/ip4/127.0.0.1/udp/4001/webrtc-direct/certhash/u${HASH}`)

/** Ports as of a `MessageChannel`, which moves what it can not copy. */
class FakePort {
  isClosed = false
  #listeners = []

  postMessage (data, transfer) {
    const { other } = this
    if (this.isClosed || other.isClosed) return
    if (!FakeConnection.canMove && transfer?.some(moved => moved instanceof FakeChannel)) {
      throw new DOMException('invalid transferable array', 'DataCloneError')
    }
    const ports = (transfer ?? []).filter(moved => moved instanceof FakePort)
    queueMicrotask(() => { other.onmessage?.({ data, ports }) })
  }

  addEventListener (type, listener) {
    if (type === 'close') this.#listeners.push(listener)
  }

  close () {
    if (this.isClosed) return
    this.isClosed = true
    queueMicrotask(() => {
      for (const listener of this.other.#listeners) listener()
    })
  }
}

const ports = []
const connections = []

class FakeMessageChannel {
  constructor () {
    this.port1 = new FakePort()
    this.port2 = new FakePort()
    this.port1.other = this.port2
    this.port2.other = this.port1
    ports.push(this)
  }
}

class FakeConnection {
  static isRefused = false
  static canMove = true
  connectionState = 'new'
  iceConnectionState = 'new'
  localDescription = { sdp: 'a=ice-pwd:secret' }
  channels = []
  limit = Infinity

  constructor () {
    if (FakeConnection.isRefused) throw new Error('too many connections')
    connections.push(this)
  }

  createDataChannel (label) {
    if (this.channels.length >= this.limit) throw new DOMException('no id', 'OperationError')
    const channel = new FakeChannel(label)
    channel.readyState = 'connecting'
    channel.addEventListener = (type, listener) => { channel.onopened = listener }
    this.channels.push(channel)
    return channel
  }

  async setLocalDescription () {}
  async setRemoteDescription () {}

  close () {
    this.connectionState = 'closed'
  }
}

const globals = ['MessageChannel', 'RTCPeerConnection', 'navigator']
const originals = globals.map(name => Object.getOwnPropertyDescriptor(globalThis, name))

/** The last request of each lock, and the ends of those who hold one. */
const locks = new Map()
const terminations = []

before(() => {
  const navigator = {
    userAgent: '',
    locks: {
      request: async (name, hold) => {
        const [released, terminated] = [deferred(), deferred()]
        const previous = locks.get(name)
        locks.set(name, released.promise)
        await previous
        terminations.push(terminated.resolve)
        await Promise.race([hold(), terminated.promise])
        released.resolve()
      }
    }
  }
  for (const [name, value] of [
    ['MessageChannel', FakeMessageChannel], ['RTCPeerConnection', FakeConnection],
    ['navigator', navigator]
  ]) {
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true })
  }
})

after(() => {
  for (const [index, name] of globals.entries()) {
    if (originals[index] === undefined) delete globalThis[name]
    else Object.defineProperty(globalThis, name, originals[index])
  }
})

function deferred () {
  let resolve
  const promise = new Promise(_resolve => { resolve = _resolve })
  return { promise, resolve }
}

function dial (options = {}, signal = new AbortController().signal) {
  const limits = limitsOf(options)
  const dialler = webRtcFrom(webRtcPort())
  return dialler(ADDRESS, { security: certificateHash, limits, version: version2, signal })
}

/** The port of the last connection, on its page and in its worker. */
const sides = () => [ports.at(-1).port1, ports.at(-1).port2]

/** The connection that the page has made for `dial`. */
async function begun () {
  const before = connections.length
  await until(() => connections[before]?.channels[0]?.onopened !== undefined)
  return connections[before]
}

async function connected () {
  const dialling = dial()
  const connection = await begun()
  connection.channels[0].readyState = 'open'
  connection.channels[0].onopened()
  const start = await dialling
  await settle()
  return { start, connection }
}

test('the end of a session closes its connection and its port on both sides', async () => {
  const { start, connection } = await connected()
  const ending = start.carrier.end({ kind: 'closed' }, 1000)
  await until(() => connection.channels[0].isClosed)
  connection.channels[0].finishClose()
  await ending
  await settle()
  assert.equal(connection.connectionState, 'closed')
  assert.deepEqual(sides().map(({ isClosed }) => isClosed), [true, true])
})

test('a channel that is made after the end of its session is closed', async () => {
  const { start, connection } = await connected()
  const channel = start.carrier.open('/late')
  channel.finish(true)
  await until(() => connection.channels.length === 2)
  await settle()
  assert.ok(connection.channels[1].isClosed)
  start.carrier.fail(new Error('lost'))
  const later = start.carrier.open('/later')
  await settle()
  assert.equal(connection.channels.length, 2)
  assert.ok(!later.isOpen)
})

test('opens that the page has not answered fail with their session', async () => {
  const { start } = await connected()
  const closed = []
  start.carrier.start({
    closedByPeer: channel => { closed.push(channel) },
    ended () {}
  })
  const channel = start.carrier.open('/x')
  start.carrier.source.close()
  await settle()
  assert.deepEqual(closed, [channel])
})

test('opens of a worker wait while the browser has no number for another channel', async () => {
  const { start, connection } = await connected()
  start.carrier.start({ closedByPeer () {}, channelOpen () {}, ended () {} })
  connection.limit = 2
  const [first, second] = ['/first', '/second'].map(label => start.carrier.open(label))
  await until(() => connection.channels.length === 2)
  await settle()
  assert.equal(connection.channels.length, 2)
  connection.limit = 3
  first.finish(true)
  connection.channels[1].finishClose()
  await until(() => connection.channels.length === 3)
  assert.equal(connection.channels[2].label, '/second')
  connection.channels[2].readyState = 'open'
  await settle()
  assert.ok(second.isOpen)
})

test('statistics that the browser does not give are left out', async () => {
  const { start, connection } = await connected()
  connection.getStats = async () => { throw new DOMException('closing', 'InvalidStateError') }
  const unhandled = []
  const note = error => { unhandled.push(error) }
  process.on('unhandledRejection', note)
  try {
    let stats
    start.carrier.stats().then(value => { stats = value })
    await until(() => stats !== undefined || unhandled.length > 0)
    assert.deepEqual([stats, unhandled], [{}, []])
  } finally {
    process.off('unhandledRejection', note)
  }
})

test('a worker that is terminated leaves no connection on its page', async () => {
  const { connection } = await connected()
  assert.equal(connection.connectionState, 'new')
  terminations.at(-1)()
  await settle()
  assert.equal(connection.connectionState, 'closed')
  assert.ok(sides()[1].isClosed)
})

test('a page that can make no connection fails the dial at once, with its ports', async () => {
  FakeConnection.isRefused = true
  try {
    const error = await errorOf(dial())
    assert.deepEqual([error.name, error.kind], ['ConnectError', 'unsupported'])
    await settle()
    assert.deepEqual(sides().map(({ isClosed }) => isClosed), [true, true])
  } finally {
    FakeConnection.isRefused = false
  }
})

test('a browser that can not move channels fails the dial at once, with its ports', async () => {
  FakeConnection.canMove = false
  try {
    const error = await errorOf(dial())
    assert.deepEqual([error.name, error.kind], ['ConnectError', 'unsupported-in-worker'])
    await settle()
    assert.equal(connections.at(-1).connectionState, 'closed')
    assert.deepEqual(sides().map(({ isClosed }) => isClosed), [true, true])
  } finally {
    FakeConnection.canMove = true
  }
})

test('a dial that is given up before the page answers ends at once', async () => {
  const controller = new AbortController()
  const reason = new Error('enough')
  const dialler = webRtcFrom(new FakeMessageChannel().port2)
  const dialling = dialler(ADDRESS, {
    security: certificateHash, limits: limitsOf({}), version: version2, signal: controller.signal
  })
  controller.abort(reason)
  assert.equal(await errorOf(dialling), reason)
  assert.ok(ports.at(-1).port1.isClosed)
})

test('a dial that fails on the page closes its connection and its ports', async () => {
  const dialling = errorOf(dial())
  const connection = await begun()
  connection.connectionState = 'failed'
  connection.onconnectionstatechange()
  assert.equal((await dialling).kind, 'unreachable')
  await settle()
  assert.equal(connection.connectionState, 'closed')
  assert.deepEqual(sides().map(({ isClosed }) => isClosed), [true, true])
})
