// The carrier over data channels, wherever those are made.

import type { PathStats } from '../api.js'
import type { Carrier, CarrierEvents } from '../carrier.js'
import { atMost, deferred, delay } from '../deferred.js'
import { EarlyEvents, EVENT_COST } from '../early.js'
import { SessionError } from '../errors.js'
import type { Frame } from '../frame.js'
import type { HandshakeIo } from '../security.js'
import { RtcChannel, type RtcChannelEvents } from './channel.js'

/** What makes the channels: a connection on this page, or the page of this worker. */
export interface ChannelSource {
  /** Gives `channel` its data channel, now or later, or fails it later. */
  open (channel: RtcChannel, label: string): void
  /** A channel has closed: there may be room for another. */
  reopen (): void
  stats (): Promise<PathStats>
  close (): void
}

/** How often a close looks whether the browser has sent everything. */
const FLUSH_CHECK = 10

export class RtcCarrier implements Carrier, RtcChannelEvents {
  readonly knowsCredit = false
  readonly overhead = 0
  /** Frames on channel 0, until the session begins. */
  readonly handshake: HandshakeIo = { send: payload => { this.sendNotice({ payload }) } }
  readonly #events = new EarlyEvents()
  #isEnded = false
  /** Channels of which something waits to be sent, and how much when that was last read. */
  readonly #busy = new Map<RtcChannel, number>()
  /** The sum: work for a frame must not grow with the number of channels. */
  #queued = 0
  #isAwaited = false
  readonly #zero: RtcChannel
  readonly #zeroClosed = deferred<void>()

  constructor (readonly source: ChannelSource, zero: RTCDataChannel, readonly limit: number) {
    this.#zero = new RtcChannel(this)
    this.#zero.attach(zero)
  }

  start (events: CarrierEvents): void {
    this.#events.start(events)
  }

  open (label: string): RtcChannel {
    const channel = new RtcChannel(this)
    this.source.open(channel, label)
    return channel
  }

  /** The peer has opened a channel. */
  onDataChannel (dataChannel: RTCDataChannel): void {
    const { ordered, maxRetransmits, maxPacketLifeTime, label } = dataChannel
    if (!ordered || maxRetransmits !== null || maxPacketLifeTime !== null) {
      dataChannel.close()
      return
    }
    const channel = new RtcChannel(this)
    channel.attach(dataChannel)
    this.#report(events => { events.opened(channel, label) })
  }

  room (): number {
    return this.limit - this.#queued
  }

  awaitRoom (): void {
    this.#isAwaited = true
  }

  sendNotice (frame: Frame): void {
    try {
      if (this.#zero.isOpen) this.#zero.send(frame)
    } catch {
      // The connection is ending, which is reported.
    }
  }

  async end (_: SessionError, ms: number): Promise<void> {
    this.#isEnded = true
    const until = performance.now() + ms
    for (;;) {
      for (const channel of this.#busy.keys()) this.busy(channel)
      if (this.#queued === 0 || performance.now() >= until) break
      await delay(FLUSH_CHECK)
    }
    // The browser repeats nothing after its close. The peer performs the reset of a stream when it
    // has everything that was sent before (RFC 6525 section 5.2.2), and its answer is the event.
    this.#zero.finish(true)
    await atMost(until - performance.now(), this.#zeroClosed.promise)
    this.source.close()
  }

  stats (): Promise<PathStats> {
    return this.source.stats()
  }

  /** The connection has ended. */
  fail (error: SessionError): void {
    this.#zeroClosed.resolve()
    if (this.#isEnded) return
    this.#isEnded = true
    this.handshake.onEnd?.(error)
    this.#events.report(events => { events.ended(error) })
    // It would go on to send checks, which the listener takes for another dial.
    this.source.close()
  }

  // What channels report.

  ready (channel: RtcChannel): void {
    if (channel !== this.#zero) this.#report(events => { events.channelOpen(channel) })
  }

  frame (channel: RtcChannel, frame: Frame): void {
    if (this.#isEnded) return
    if (channel !== this.#zero) {
      const cost = EVENT_COST + (frame.payload?.length ?? 0)
      this.#report(events => { events.frame(channel, frame) }, cost)
    } else if (this.handshake.onFrame !== undefined) {
      this.handshake.onFrame(frame)
    } else {
      this.#report(events => { events.notice(frame) })
    }
  }

  badFraming (channel: RtcChannel): void {
    this.#report(events => {
      if (channel === this.#zero) events.ineffective()
      else events.badFraming(channel)
    })
  }

  closed (channel: RtcChannel): void {
    this.source.reopen()
    if (channel === this.#zero) {
      this.fail(new SessionError('closed-by-peer', 'closed by the peer'))
    } else {
      this.#report(events => { events.closedByPeer(channel) })
    }
  }

  busy (channel: RtcChannel): void {
    const { queued } = channel
    this.#queued += queued - (this.#busy.get(channel) ?? 0)
    if (queued > 0) {
      this.#busy.set(channel, queued)
      channel.watch(queued)
    } else {
      this.#busy.delete(channel)
    }
  }

  drained (channel: RtcChannel): void {
    this.busy(channel)
    if (!this.#isAwaited) return
    this.#isAwaited = false
    this.#report(events => { events.writable() })
  }

  #report (report: (events: CarrierEvents) => void, cost?: number): void {
    if (this.#events.report(report, cost)) return
    this.fail(new SessionError('protocol', 'too much before authentication'))
  }
}
