// One data channel that carries frames.

import type { Channel } from '../carrier.js'
import { watchdog } from '../deferred.js'
import { FrameDecoder, FramingError, writer, type Frame } from '../frame.js'

/** How long the side that has not opened a channel waits for the other to close it. */
const LEFT_TO_PEER = 2_000

/** What a channel reports, to its carrier. */
export interface RtcChannelEvents {
  ready (channel: RtcChannel): void
  frame (channel: RtcChannel, frame: Frame): void
  badFraming (channel: RtcChannel): void
  /** Also of one that was finished. */
  closed (channel: RtcChannel): void
  /** Half of what waited in it is sent, or it has closed. */
  drained (channel: RtcChannel): void
  /** More of it waits to be sent. */
  busy (channel: RtcChannel): void
}

export class RtcChannel implements Channel {
  readonly #decoder = new FrameDecoder()
  #channel: RTCDataChannel | undefined
  #isBroken = false
  #isOver = false
  #closeTimer: ReturnType<typeof setTimeout> | undefined

  constructor (readonly events: RtcChannelEvents) {}

  /** Gives it its channel, now or later. Without one it closes, as soon as its opener knows it. */
  attach (channel?: RTCDataChannel): void {
    if (channel === undefined) {
      queueMicrotask(() => { this.#onClose() })
      return
    }
    this.#channel = channel
    channel.binaryType = 'arraybuffer'
    channel.onopen = () => { this.events.ready(this) }
    channel.onmessage = ({ data }) => { this.#onMessage(data) }
    channel.onclose = () => { this.#onClose() }
    channel.onbufferedamountlow = () => { this.events.drained(this) }
    if (this.#isOver) channel.close()
  }

  get isOpen (): boolean {
    return this.#channel?.readyState === 'open' && !this.#isOver
  }

  /** A channel that has closed with data keeps its amount. */
  get queued (): number {
    const channel = this.#channel
    return channel === undefined || channel.readyState === 'closed' ? 0 : channel.bufferedAmount
  }

  send (frame: Frame): void {
    this.#channel!.send(writer.encode(frame))
    this.events.busy(this)
  }

  /** Reports `drained` when half of the `queued` bytes is sent. */
  watch (queued: number): void {
    this.#channel!.bufferedAmountLowThreshold = queued >> 1
  }

  finish (isOpener: boolean): void {
    if (this.#isOver) return
    this.#isOver = true
    if (isOpener) this.#channel?.close()
    else this.#closeTimer = watchdog(() => { this.#channel?.close() }, LEFT_TO_PEER)
  }

  #onClose (): void {
    clearTimeout(this.#closeTimer)
    this.#isOver = true
    this.events.closed(this)
    // What waited in it waits no more, and the browser does not say so.
    this.events.drained(this)
  }

  #onMessage (data: unknown): void {
    if (this.#isBroken || this.#isOver) return
    try {
      if (!(data instanceof ArrayBuffer)) throw new FramingError('text')
      this.#decoder.push(new Uint8Array(data))
      for (;;) {
        const frame = this.#decoder.next()
        if (frame === undefined) return
        this.events.frame(this, frame)
        if (this.#isOver) return
      }
    } catch (error) {
      if (!(error instanceof FramingError)) throw error
      this.#isBroken = true
      this.events.badFraming(this)
    }
  }
}
