// The carrier over data channels, wherever those are made.

import type { PathStats } from '../api.js'
import type { Carrier, CarrierEvents } from '../carrier.js'
import { EarlyEvents, EVENT_COST } from '../early.js'
import { SessionError } from '../errors.js'
import type { Frame } from '../frame.js'
import type { HandshakeIo } from '../security.js'
import { RtcChannel, type RtcChannelEvents } from './channel.js'

/** What makes the channels: a connection on this page, or the page of this worker. */
export interface ChannelSource {
  /** Gives `channel` its data channel, now or later. Throws if there is none. */
  open (channel: RtcChannel, label: string): void
  stats (): Promise<PathStats>
  close (): void
}

/** How long a close waits until the browser has sent everything. */
const FLUSH_TIMEOUT = 1_000
const FLUSH_CHECK = 10

/** What a busy machine takes to send what the browser has queued, beside two round trips. */
const LINGER = 100

const delay = (ms: number): Promise<void> => new Promise(resolve => { setTimeout(resolve, ms) })

export class RtcCarrier implements Carrier, RtcChannelEvents {
  readonly knowsCredit = false
  readonly overhead = 0
  /** Frames on channel 0, until the session begins. */
  readonly handshake: HandshakeIo = { send: payload => { this.sendNotice({ payload }) } }
  readonly #events = new EarlyEvents()
  #isEnded = false
  /** Channels of which something waits to be sent. */
  readonly #busy = new Set<RtcChannel>()
  #isAwaited = false
  readonly #zero: RtcChannel

  constructor (readonly source: ChannelSource, zero: RTCDataChannel, readonly limit: number) {
    this.#zero = new RtcChannel(this)
    this.#zero.attach(zero)
  }

  start (events: CarrierEvents): void {
    this.#events.start(events)
  }

  open (label: string): RtcChannel {
    const channel = new RtcChannel(this)
    try {
      this.source.open(channel, label)
    } catch (cause) {
      const error = new SessionError('lost', 'no more channels')
      error.cause = cause
      throw error
    }
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
    let queued = 0
    for (const channel of this.#busy) {
      if (channel.queued === 0) this.#busy.delete(channel)
      else queued += channel.queued
    }
    return this.limit - queued
  }

  awaitRoom (): void {
    this.#isAwaited = true
    for (const channel of this.#busy) channel.watch()
  }

  sendNotice (frame: Frame): void {
    try {
      if (this.#zero.isOpen) this.#zero.send(frame)
    } catch {
      // The connection is ending, which is reported.
    }
  }

  async end (): Promise<void> {
    this.#isEnded = true
    let waited = 0
    for (; waited < FLUSH_TIMEOUT && this.room() < this.limit; waited += FLUSH_CHECK) {
      await delay(FLUSH_CHECK)
    }
    // The last packets are on their way, and would not be repeated.
    const { roundTripTime } = await this.stats().catch((): PathStats => ({}))
    await delay(Math.min(FLUSH_TIMEOUT, 2 * (roundTripTime ?? 0) + LINGER))
    this.source.close()
  }

  stats (): Promise<PathStats> {
    return this.source.stats()
  }

  /** The connection has ended. */
  fail (error: SessionError): void {
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
    this.#busy.delete(channel)
    if (channel === this.#zero) {
      this.fail(new SessionError('closed-by-peer', 'the connection was closed'))
    } else {
      this.#report(events => { events.closedByPeer(channel) })
    }
  }

  busy (channel: RtcChannel): void {
    this.#busy.add(channel)
  }

  low (): void {
    if (!this.#isAwaited) return
    this.#isAwaited = false
    this.#report(events => { events.writable() })
  }

  #report (report: (events: CarrierEvents) => void, cost?: number): void {
    if (this.#events.report(report, cost)) return
    this.fail(new SessionError('protocol', 'too much before authentication'))
  }
}
