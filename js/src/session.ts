// A session: its substreams, who of them sends next, and how it ends.

import type { BidirectionalStream, CloseInfo, OpenOptions, Session, SessionStats } from './api.js'
import type { Carrier, CarrierEvents, Channel } from './carrier.js'
import { deferred, type Deferred } from './deferred.js'
import { Code, SessionError } from './errors.js'
import { Flag, type Frame } from './frame.js'
import { SubstreamLimits } from './opening.js'
import type { Limits } from './options.js'
import { Schedule } from './schedule.js'
import { Substream, type Siblings } from './substream.js'

/** What is known of a session when it begins. */
export interface SessionStart {
  readonly carrier: Carrier
  readonly limits: Limits
  readonly transport: 'webrtc' | 'websocket'
  readonly peerId: string | undefined
  /** The peer is known to run this protocol with credit. */
  readonly peerHasCredit: boolean
}

const UNUSED_WINDOW = 10_000
/** In UTF-16, which is at most three times as much in a frame. */
const MAX_REASON = 256

interface Opening {
  readonly options: OpenOptions
  readonly reply: Deferred<BidirectionalStream>
}

class Counters {
  bytesSent = 0
  bytesReceived = 0
  substreamsOpened = 0
  substreamsAccepted = 0
  violations = 0
}

export class AnabranchSession implements Session, Siblings, CarrierEvents {
  readonly ready = Promise.resolve()
  readonly incomingBidirectionalStreams: ReadableStream<BidirectionalStream>
  readonly peerId: string | undefined
  readonly transport: 'webrtc' | 'websocket'
  readonly limits: Limits
  readonly pool: { committed: number, readonly ceiling: number }
  readonly overhead: number

  readonly #carrier: Carrier
  readonly #closed = deferred<Required<CloseInfo>>()
  readonly #draining = deferred<void>()
  readonly #substreams = new Map<Channel, Substream>()
  readonly #schedule = new Schedule()
  readonly #openings: SubstreamLimits
  readonly #counters = new Counters()
  #waiting: Opening[] = []
  #silence: ReturnType<typeof setTimeout> | undefined

  #state: 'open' | 'closing' | 'ended' = 'open'
  #isPeerDraining = false
  /** What the peer has said about its close. */
  #goodbye: Required<CloseInfo> | undefined
  #emptied: Deferred<void> | undefined

  /** Inbound substreams that wait to be accepted. */
  readonly #unaccepted = new Map<Substream, ReturnType<typeof setTimeout>>()
  #acceptor!: ReadableStreamDefaultController<BidirectionalStream>
  #isAccepting = false
  #inbound = 0

  #isPumping = false
  #unused = 0
  #unusedSince = 0
  #ineffective = 0
  #ineffectiveSince = 0
  #ineffectiveOn = new Set<Substream>()

  constructor (start: SessionStart) {
    const { carrier, limits } = start
    this.#carrier = carrier
    this.limits = limits
    this.transport = start.transport
    this.peerId = start.peerId
    this.pool = { committed: 0, ceiling: limits.sessionCeiling }
    this.overhead = carrier.overhead
    this.#openings = new SubstreamLimits()
    if (start.peerHasCredit || carrier.knowsCredit) this.#openings.peerHasCredit = true
    this.incomingBidirectionalStreams = new ReadableStream<BidirectionalStream>({
      start: controller => { this.#acceptor = controller },
      pull: () => {
        this.#isAccepting = true
        this.#accept()
      },
      cancel: () => { this.#refuseUnaccepted() }
    }, { highWaterMark: 0 })
    carrier.start(this)
    this.#announceLimit()
  }

  get closed (): Promise<Required<CloseInfo>> {
    return this.#closed.promise
  }

  get draining (): Promise<void> {
    return this.#draining.promise
  }

  get peerHasCredit (): boolean | undefined {
    return this.#openings.peerHasCredit
  }

  async createBidirectionalStream (options: OpenOptions = {}): Promise<BidirectionalStream> {
    const { signal } = options
    signal?.throwIfAborted()
    const opening = { options, reply: deferred<BidirectionalStream>() }
    const giveUp = (): void => {
      this.#waiting = this.#waiting.filter(other => other !== opening)
      opening.reply.reject(signal?.reason)
    }
    signal?.addEventListener('abort', giveUp)
    this.#waiting.push(opening)
    this.#openWaiting()
    try {
      return await opening.reply.promise
    } finally {
      signal?.removeEventListener('abort', giveUp)
    }
  }

  async getStats (): Promise<SessionStats> {
    return {
      ...await this.#carrier.stats(),
      ...this.#counters,
      substreams: this.#substreams.size,
      committed: this.pool.committed
    }
  }

  close (info: CloseInfo = {}): void {
    // Undefined is 0 there.
    void this.#close(info.closeCode! >>> 0, (info.reason ?? '').slice(0, MAX_REASON))
  }

  async [Symbol.asyncDispose] (): Promise<void> {
    this.close()
    await this.closed.catch(() => {})
  }

  // What substreams report.

  schedule (substream: Substream): void {
    this.#schedule.add(substream)
    this.#pump()
  }

  unschedule (substream: Substream): void {
    this.#schedule.remove(substream)
  }

  sent (payload: number): void {
    this.#counters.bytesSent += payload
  }

  violated (): void {
    this.#counters.violations += 1
  }

  forget (substream: Substream, isReset: boolean): void {
    if (!this.#substreams.delete(substream.channel)) return
    this.#ineffectiveOn.delete(substream)
    substream.channel.finish(substream.isLocal)
    if (!substream.isLocal) {
      this.#inbound -= 1
      if (isReset) {
        // There is nothing to accept, or to be read.
        clearTimeout(this.#unaccepted.get(substream))
        this.#unaccepted.delete(substream)
        if (!substream.isUsed) this.#countUnused()
      }
      this.#announceLimit()
    }
    if (this.#substreams.size === 0) this.#emptied?.resolve()
  }

  // What the carrier reports.

  opened (channel: Channel, label: string): void {
    if (this.#state === 'ended') return
    if (this.#openings.onOpened()) this.#countUnused()
    const { maxInboundSubstreams } = this.limits
    const waiting = this.#unaccepted.size
    const isFull = this.#inbound >= maxInboundSubstreams || waiting >= maxInboundSubstreams
    if (this.#state !== 'open' || isFull) {
      const errorCode = isFull ? Code.RESOURCE_LIMIT : Code.SHUTDOWN
      try {
        channel.send({ flag: Flag.ResetStream, errorCode })
      } catch {
        // It has closed meanwhile.
      }
      channel.finish(false)
      this.#announceLimit()
      return
    }
    const substream = new Substream(channel, label, false, this, 0)
    this.#inbound += 1
    this.#counters.substreamsAccepted += 1
    this.#substreams.set(channel, substream)
    this.#unaccepted.set(substream, setTimeout(() => {
      this.#unaccepted.delete(substream)
      substream.reset('limit', 'not accepted', Code.RESOURCE_LIMIT)
    }, this.limits.acceptTimeout))
    substream.grant()
    this.#accept()
  }

  channelOpen (channel: Channel): void {
    this.#substreams.get(channel)?.service()
  }

  frame (channel: Channel, frame: Frame): void {
    const substream = this.#substreams.get(channel)
    if (substream === undefined) return
    const before = this.peerHasCredit
    if (frame.maxData !== undefined) this.#openings.peerHasCredit = true
    if (frame.payload !== undefined) {
      this.#counters.bytesReceived += frame.payload.length
      if (frame.maxData === undefined && !substream.hasPeerCredit) {
        this.#openings.onPayloadWithoutCredit()
      }
    }
    if (!substream.onFrame(frame)) this.#onIneffective(substream)
    if (this.peerHasCredit !== before) this.#onCreditKnown()
  }

  badFraming (channel: Channel): void {
    const message = 'no frames have arrived'
    this.#substreams.get(channel)?.reset('protocol', message, Code.PROTOCOL_VIOLATION, true)
  }

  closedByPeer (channel: Channel): void {
    this.#substreams.get(channel)?.onClosed()
  }

  writable (): void {
    this.#pump()
  }

  notice (frame: Frame): void {
    let isNews = false
    if (frame.maxSubstreams !== undefined && this.#openings.onPeerLimit(frame.maxSubstreams)) {
      isNews = true
      this.#onCreditKnown()
    }
    if (frame.draining === true && !this.#isPeerDraining) {
      isNews = this.#isPeerDraining = true
      this.#openings.peerHasCredit = true
      this.#carrier.sendNotice({ opened: this.#openings.opened })
      this.#draining.resolve()
      this.#openWaiting()
    }
    // Other stacks end channel 0 after Noise: only a reason makes FIN a goodbye.
    if (frame.flag === Flag.Fin && frame.reason !== undefined && this.#goodbye === undefined) {
      isNews = true
      this.#goodbye = { closeCode: frame.errorCode ?? 0, reason: frame.reason }
      this.#openWaiting()
    }
    if (!isNews) this.ineffective()
  }

  ineffective (): void {
    const now = performance.now()
    if (now - this.#ineffectiveSince > 1000) {
      this.#ineffectiveSince = now
      this.#ineffective = 0
      for (const substream of this.#ineffectiveOn) substream.ineffective = 0
      this.#ineffectiveOn.clear()
    }
    this.#ineffective += 1
    if (this.#ineffective > 4 * this.limits.maxFramesWithoutEffect) {
      this.#violated('frames without effect')
    }
  }

  ended (error: SessionError): void {
    if (this.#state === 'ended') return
    const isOrderly = error.kind === 'closed-by-peer' || this.#goodbye !== undefined
    if (isOrderly) {
      const { closeCode, reason } = this.#goodbye ??
        { closeCode: error.closeCode ?? 0, reason: error.reason }
      const cause = new SessionError('closed-by-peer', 'closed by the peer', closeCode, reason)
      this.#finish(cause)
      this.#closed.resolve({ closeCode, reason })
    } else {
      this.#finish(error)
      this.#closed.reject(error)
    }
  }

  // Opening.

  #openWaiting (): void {
    while (this.#waiting.length > 0) {
      const refusal = this.#refusal()
      if (refusal !== undefined) {
        this.#failWaiting(refusal)
        return
      }
      if (!this.#openings.mayOpen) {
        this.#awaitLimit()
        return
      }
      const { options, reply } = this.#waiting.shift()!
      try {
        reply.resolve(this.#open(options))
      } catch (error) {
        reply.reject(error)
      }
    }
  }

  #open ({ protocol = '', priority = 0, signal }: OpenOptions): BidirectionalStream {
    const channel = this.#carrier.open(protocol)
    const substream = new Substream(channel, protocol, true, this, priority)
    this.#openings.opened += 1
    this.#counters.substreamsOpened += 1
    this.#substreams.set(channel, substream)
    if (signal !== undefined) {
      const reset = (): void => {
        substream.reset('aborted', 'aborted by its signal', Code.ABANDONED)
      }
      signal.addEventListener('abort', reset)
      const release = (): void => { signal.removeEventListener('abort', reset) }
      substream.finished.then(release, release)
    }
    // A channel that is open already reports nothing.
    queueMicrotask(() => { substream.service() })
    return substream
  }

  #refusal (): SessionError | undefined {
    if (this.#state !== 'open') return new SessionError('closed', 'the session is closed')
    if (this.#goodbye !== undefined) {
      return new SessionError('closed-by-peer', 'the peer closes the session')
    }
    if (this.#isPeerDraining) {
      return new SessionError('draining', 'the peer drains')
    }
    return undefined
  }

  #failWaiting (error: SessionError): void {
    for (const { reply } of this.#waiting.splice(0)) reply.reject(error)
  }

  /** Bounds the time that opens wait for the limit of a silent peer. */
  #awaitLimit (): void {
    if (!this.#openings.awaitsLimit) return
    this.#silence ??= setTimeout(() => {
      this.#openings.onSilence()
      this.#onCreditKnown()
    }, this.limits.openTimeout)
  }

  /** What is known of the peer's credit has changed. */
  #onCreditKnown (): void {
    this.#announceLimit()
    for (const substream of this.#substreams.values()) {
      if (substream.isSendable) this.#schedule.add(substream)
      substream.grant()
    }
    this.#openWaiting()
    this.#pump()
  }

  // Accepting.

  #accept (): void {
    if (!this.#isAccepting) return
    for (const [substream, timer] of this.#unaccepted) {
      clearTimeout(timer)
      this.#unaccepted.delete(substream)
      this.#isAccepting = false
      this.#announceLimit()
      this.#acceptor.enqueue(substream)
      return
    }
  }

  #refuseUnaccepted (): void {
    for (const [substream, timer] of this.#unaccepted) {
      clearTimeout(timer)
      substream.reset('limit', 'not accepted', Code.RESOURCE_LIMIT)
    }
    this.#unaccepted.clear()
  }

  #announceLimit (): void {
    if (this.#state !== 'open') return
    const waiting = [...this.#unaccepted.keys()]
    const ended = waiting.filter(({ channel }) => !this.#substreams.has(channel))
    const live = this.#inbound + ended.length
    const maxSubstreams = this.#openings.due(live, this.limits.maxInboundSubstreams)
    if (maxSubstreams !== undefined) this.#carrier.sendNotice({ maxSubstreams })
  }

  // Sending.

  /** Sends data, one frame a turn, until the browser has enough. */
  #pump (): void {
    if (this.#isPumping) return
    this.#isPumping = true
    let room = this.#carrier.room()
    for (;;) {
      const substream = this.#schedule.next()
      if (substream === undefined) break
      if (room <= 0) {
        this.#schedule.add(substream)
        this.#carrier.awaitRoom()
        break
      }
      let sent = 0
      try {
        sent = substream.sendData()
      } catch {
        // The application has transferred the buffer.
      }
      room -= sent
      if (!substream.isSendable) {
        if (substream.waitsForFirstCredit) this.#awaitLimit()
      } else if (sent > 0) this.#schedule.add(substream)
      else substream.reset('aborted', 'can not be sent', Code.ABANDONED)
    }
    this.#isPumping = false
  }

  // Abuse.

  #onIneffective (substream: Substream): void {
    this.ineffective()
    substream.ineffective += 1
    this.#ineffectiveOn.add(substream)
    if (substream.ineffective > this.limits.maxFramesWithoutEffect) {
      substream.reset('limit', 'frames without effect', Code.RATE_LIMITED, true)
    }
  }

  #countUnused (): void {
    const now = performance.now()
    if (now - this.#unusedSince > UNUSED_WINDOW) {
      this.#unusedSince = now
      this.#unused = 0
    }
    this.#unused += 1
    if (this.#unused > this.limits.maxUnusedSubstreams) this.#violated('unused substreams')
  }

  #violated (message: string): void {
    if (this.#state === 'ended') return
    const error = new SessionError('protocol', message)
    this.ended(error)
    void this.#carrier.end(0, message)
  }

  // The end.

  async #close (closeCode: number, reason: string): Promise<void> {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    const cause = new SessionError('closed', 'closed by this side', closeCode, reason)
    this.#failWaiting(cause)
    this.#refuseUnaccepted()
    for (const substream of [...this.#substreams.values()]) substream.cutOff(cause)
    const goodbye = { errorCode: closeCode, reason }
    this.#carrier.sendNotice({ flag: Flag.Fin, ...goodbye })
    if (this.#substreams.size > 0) {
      this.#emptied = deferred()
      const timer = setTimeout(() => { this.#emptied?.resolve() }, this.limits.closeTimeout)
      await this.#emptied.promise
      clearTimeout(timer)
    }
    if (this.#state !== 'closing') return
    this.#finish(cause)
    await this.#carrier.end(closeCode, reason)
    this.#closed.resolve({ closeCode, reason })
  }

  #finish (cause: SessionError): void {
    this.#state = 'ended'
    clearTimeout(this.#silence)
    this.#failWaiting(cause)
    for (const substream of [...this.#substreams.values()]) substream.lost(cause)
    // What has arrived whole may still be accepted; nothing else follows.
    for (const timer of this.#unaccepted.values()) clearTimeout(timer)
    this.#unaccepted.clear()
    this.#emptied?.resolve()
    try {
      if (cause.kind === 'closed' || cause.kind === 'closed-by-peer') this.#acceptor.close()
      else this.#acceptor.error(cause)
    } catch {
      // It was cancelled.
    }
  }
}
