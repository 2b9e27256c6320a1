// A session over data channels of this test, which plays the peer.

import assert from 'node:assert/strict'
import { load } from './modules.mjs'

const internals = await load(`
  export { decodeBody, encodeFrame, Flag, FrameDecoder } from './frame.js'
  export { limitsOf } from './options.js'
  export { receivePayload, sendPayload } from './payload.js'
  export { AnabranchSession } from './session.js'
  export { RtcCarrier } from './webrtc/carrier.js'
  export { WsCarrier } from './websocket/carrier.js'
`)

export const { encodeFrame, receivePayload, sendPayload } = internals
export const Flag = { Fin: 0, StopSending: 1, ResetStream: 2, FinAck: 3 }

/** A data channel. Its other end is the test. */
export class FakeChannel {
  readyState = 'open'
  ordered = true
  maxRetransmits = null
  maxPacketLifeTime = null
  bufferedAmount = 0
  bufferedAmountLowThreshold = 0
  isClosed = false
  #decoder = new internals.FrameDecoder()
  /** The frames that were sent, payloads as they were. */
  frames = []

  constructor (label = '') {
    this.label = label
  }

  send (bytes) {
    if (this.readyState !== 'open') throw new DOMException('not open', 'InvalidStateError')
    this.bufferedAmount += bytes.length
    this.#decoder.push(bytes.slice())
    for (let frame = this.#decoder.next(); frame !== undefined; frame = this.#decoder.next()) {
      delete frame.owned
      this.frames.push(frame)
    }
  }

  close () {
    this.isClosed = true
    this.readyState = 'closing'
  }

  /** The peer has answered the close, or has closed it. */
  finishClose () {
    this.readyState = 'closed'
    this.onclose()
  }

  /** The browser has sent all but `left` bytes. */
  drain (left = 0) {
    const low = this.bufferedAmountLowThreshold
    const isLow = this.bufferedAmount > low && left <= low
    this.bufferedAmount = left
    if (isLow) this.onbufferedamountlow?.()
  }

  /** The peer sends these frames in one message. */
  receive (...frames) {
    this.receiveBytes(Buffer.concat(frames.map(frame => encodeFrame(frame))))
  }

  receiveBytes (bytes) {
    this.onmessage({ data: Uint8Array.from(bytes).buffer })
  }

  /** The frames that were sent since the last call. */
  take () {
    return this.frames.splice(0)
  }

  get payload () {
    return this.frames.reduce((length, { payload }) => length + (payload?.length ?? 0), 0)
  }
}

/** A session, its channel 0, and the channels that it opens. */
export function session (options = {}, { peerHasCredit = true } = {}) {
  const limits = internals.limitsOf(options)
  const zero = new FakeChannel()
  const channels = []
  const source = {
    isClosed: false,
    open (channel, label) {
      const fake = new FakeChannel(label)
      channels.push(fake)
      channel.attach(fake)
    },
    reopen () {},
    stats: async () => ({}),
    close () {
      source.isClosed = true
    }
  }
  const carrier = new internals.RtcCarrier(source, zero, limits.sendBuffer)
  const session = new internals.AnabranchSession({
    carrier, limits, transport: 'webrtc', peerId: undefined, peerHasCredit
  })
  return { session, carrier, zero, channels, source }
}

/** A WebSocket. Its other end is the test. */
export class FakeSocket {
  readyState = 1
  bufferedAmount = 0
  /** What it was closed with. */
  closedWith = undefined
  frames = []
  #decoder = new internals.FrameDecoder()

  send (bytes) {
    this.bufferedAmount += bytes.length
    this.#decoder.push(bytes.slice())
    for (let frame = this.#decoder.next(); frame !== undefined; frame = this.#decoder.next()) {
      delete frame.owned
      this.frames.push(frame)
    }
  }

  close (code, reason) {
    this.readyState = 2
    this.closedWith ??= [code, reason]
  }

  /** The peer sends these frames in one message. */
  receive (...frames) {
    this.onmessage({ data: Uint8Array.from(Buffer.concat(frames.map(encodeFrame))).buffer })
  }

  /** The closing handshake is complete, or the connection broke. */
  finishClose (code, reason = '', wasClean = true) {
    this.readyState = 3
    this.onclose({ code, reason, wasClean })
  }

  take () {
    return this.frames.splice(0)
  }
}

/** A session over a WebSocket. */
export function webSocketSession (options = {}) {
  const limits = internals.limitsOf(options)
  const socket = new FakeSocket()
  const carrier = new internals.WsCarrier(socket, limits.sendBuffer)
  const session = new internals.AnabranchSession({
    carrier, limits, transport: 'websocket', peerId: undefined, peerHasCredit: true
  })
  return { session, carrier, socket }
}

/** Everything that is due now has happened. */
export const settle = () => new Promise(resolve => { setImmediate(resolve) })

/** Timers without delay have run, and what they have started. */
export async function turn () {
  await new Promise(resolve => { setTimeout(resolve, 5) })
  await settle()
}

export async function until (condition) {
  for (let turns = 0; !condition(); turns++) {
    assert.ok(turns < 1_000, `never: ${condition}`)
    await turn()
  }
}

/** Opens a substream, and returns it with its channel. */
export async function open (fixture, options) {
  const opening = fixture.session.createBidirectionalStream(options)
  await settle()
  return { substream: await opening, channel: fixture.channels.at(-1) }
}

export const errorOf = promise => promise.then(() => assert.fail('no error'), error => error)
