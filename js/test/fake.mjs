// A session over data channels of this test, which plays the peer.

import { load } from './modules.mjs'

const internals = await load(`
  export { decodeBody, encodeFrame, Flag, FrameDecoder } from './frame.js'
  export { limitsOf } from './options.js'
  export { AnabranchSession } from './session.js'
  export { RtcCarrier } from './webrtc/carrier.js'
`)

export const { encodeFrame } = internals
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

/** Everything that is due now has happened. */
export const settle = () => new Promise(resolve => { setImmediate(resolve) })
