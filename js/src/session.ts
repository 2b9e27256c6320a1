// A session: its substreams, who of them sends next, and how it ends.

import type { BidirectionalStream, CloseInfo, OpenOptions, Session, SessionStats } from './api.js'
import type { Carrier, CarrierEvents, Channel } from './carrier.js'
import { atMost, deferred, delay, watchdog, type Deferred } from './deferred.js'
import { ResetCode, SessionError } from './errors.js'
import { Flag, type Frame } from './frame.js'
import { SubstreamLimits } from './opening.js'
import type { Limits } from './options.js'
import { Pool } from './receive.js'
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

/** Time for a peer that is disconnected for abuse to learn the cause. */
const ABUSE_TIMEOUT = 1_000
/** Refused substreams that count as one unused: the lack of room is not the peer's fault. */
const REFUSED_PER_UNUSED = 16

/** Bytes beyond `sendBuffer` at which a peer that reads nothing gets neither credit nor limits. */
const MAX_BACKLOG = 256 * 1024

const UNUSED_WINDOW = 10_000
/** In UTF-16, which is at most three times as much in a frame. */
const MAX_REASON = 256

interface Opening {
  readonly options: OpenOptions
  readonly reply: Deferred<BidirectionalStream>
}

export class AnabranchSession implements Session, Siblings, CarrierEvents {
  readonly ready = Promise.resolve()
  readonly incomingBidirectionalStreams: ReadableStream<BidirectionalStream>
  readonly peerId: string | undefined
  readonly transport: 'webrtc' | 'websocket'
  readonly limits: Limits
  readonly pool: Pool
  readonly overhead: number

  readonly #carrier: Carrier
  readonly #closed = deferred<Required<CloseInfo>>()
  readonly #draining = deferred<void>()
  readonly #substreams = new Map<Channel, Substream>()
  readonly #schedule = new Schedule()
  readonly #openings: SubstreamLimits
  readonly #counters = {
    bytesSent: 0, bytesReceived: 0, substreamsAccepted: 0, violations: 0
  }
  #waiting: Opening[] = []
  #silence: ReturnType<typeof setTimeout> | undefined

  #state: 'open' | 'closing' | 'ended' = 'open'
  #isPeerDraining = false
  /** What the peer has said about its close. */
  #goodbye: { closeCode: number | undefined, reason: string } | undefined
  /** Why the session has ended. */
  #end: SessionError | undefined
  #emptied: Deferred<void> | undefined

  /** Inbound substreams that wait to be accepted. */
  readonly #unaccepted = new Map<Substream, ReturnType<typeof setTimeout>>()
  #acceptor!: ReadableStreamDefaultController<BidirectionalStream>
  #isAccepting = false
  /** Substreams of the peer that are open, or wait to be accepted. */
  #inbound = 0
  #refused = 0
  /** Credit, limits and opens wait until the peer reads. */
  #isHeld = false

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
    this.pool = new Pool(limits.sessionCeiling, () => { this.#announceLimit() })
    this.overhead = carrier.overhead
    this.#openings = new SubstreamLimits()
    if (start.peerHasCredit || carrier.knowsCredit) this.#openings.peerHasCredit = true
    this.incomingBidirectionalStreams = new ReadableStream<BidirectionalStream>({
      start: controller => { this.#acceptor = controller },
      pull: () => {
        this.#isAccepting = true
        this.#accept()
      },
      cancel: () => {
        this.#isAccepting = false
        this.#refuseUnaccepted()
      }
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
      substreamsOpened: this.#openings.opened,
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

  mustWait (): boolean {
    if (this.#carrier.room() > -MAX_BACKLOG) return false
    this.#isHeld = true
    this.#carrier.awaitRoom()
    return true
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
      if (isReset && !substream.isUsed) this.#countUnused()
      // There is nothing to accept, or to be read.
      if (isReset && this.#unaccepted.has(substream)) this.#unlist(substream)
      else this.#free(substream)
    }
    if (this.#substreams.size === 0) this.#emptied?.resolve()
  }

  // What the carrier reports.

  opened (channel: Channel, label: string): void {
    if (this.#state === 'ended') return
    if (this.#openings.onOpened()) this.#countUnused()
    const isFull = this.#inbound >= this.limits.maxInboundSubstreams ||
      (this.pool.isFull && !this.#openings.isPromised)
    if (this.#state !== 'open' || isFull) {
      const errorCode = isFull ? ResetCode.ResourceLimit : ResetCode.Shutdown
      try {
        channel.send({ flag: Flag.ResetStream, errorCode })
      } catch {
        // It has closed meanwhile.
      }
      channel.finish(false)
      this.#refused += 1
      if (this.#refused % REFUSED_PER_UNUSED === 0) this.#countUnused()
      this.#announceLimit()
      return
    }
    const substream = new Substream(channel, label, false, this, 0)
    this.#inbound += 1
    this.#counters.substreamsAccepted += 1
    this.#substreams.set(channel, substream)
    this.#unaccepted.set(substream, watchdog(() => {
      this.#refuse(substream)
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
    const message = 'no frames'
    this.#substreams.get(channel)?.reset('protocol', message, ResetCode.ProtocolViolation, true)
  }

  closedByPeer (channel: Channel): void {
    this.#substreams.get(channel)?.onClosed()
  }

  writable (): void {
    if (this.#isHeld) this.#onCreditKnown()
    else this.#pump()
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
      this.#goodbye = { closeCode: frame.errorCode, reason: frame.reason }
      this.#draining.resolve()
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
    const goodbye = this.#goodbye
    // A WebSocket has a close frame, and the announced close may have failed.
    const isAnnounced = goodbye !== undefined && this.transport === 'webrtc'
    if (error.kind === 'closed-by-peer' || isAnnounced) {
      const closeCode = goodbye?.closeCode ?? error.closeCode ?? 0
      const reason = goodbye?.reason || error.reason
      this.#finish(new SessionError('closed-by-peer', 'closed by the peer', closeCode, reason))
      this.#closed.resolve({ closeCode, reason })
    } else {
      this.#fail(error)
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
      if (this.mustWait()) return
      const { options, reply } = this.#waiting.shift()!
      reply.resolve(this.#open(options))
    }
  }

  #open ({ protocol = '', priority = 0, signal }: OpenOptions): BidirectionalStream {
    const channel = this.#carrier.open(protocol)
    const substream = new Substream(channel, protocol, true, this, priority)
    this.#openings.opened += 1
    this.#substreams.set(channel, substream)
    if (signal !== undefined) {
      const reset = (): void => {
        substream.reset('aborted', 'aborted by this side', ResetCode.Abandoned)
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
    if (this.#state !== 'open') return new SessionError('closed', 'the session has ended')
    if (this.#goodbye !== undefined) {
      return new SessionError('closed-by-peer', 'closed by the peer')
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

  /** What is known of the peer's credit has changed, or it reads again. */
  #onCreditKnown (): void {
    this.#isHeld = false
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
    for (const substream of this.#unaccepted.keys()) {
      this.#isAccepting = false
      // Before it is handed over: the reader pulls the next one at once.
      this.#unlist(substream)
      this.#acceptor.enqueue(substream)
      this.#endAccepting()
      return
    }
  }

  #refuse (substream: Substream): void {
    this.#unlist(substream)
    substream.refuse()
    this.#endAccepting()
  }

  #refuseUnaccepted (): void {
    for (const substream of this.#unaccepted.keys()) this.#refuse(substream)
  }

  /** It waits to be accepted no longer. */
  #unlist (substream: Substream): void {
    clearTimeout(this.#unaccepted.get(substream))
    this.#unaccepted.delete(substream)
    this.#free(substream)
  }

  /** It has ended, or does not wait to be accepted any longer: after both its place is free. */
  #free (substream: Substream): void {
    if (this.#substreams.has(substream.channel) || this.#unaccepted.has(substream)) return
    this.#inbound -= 1
    this.#announceLimit()
  }

  /** After the end of the session, once everything that has arrived whole is accepted. */
  #endAccepting (): void {
    if (this.#end === undefined || this.#unaccepted.size > 0) return
    try {
      if (this.#end.kind.startsWith('closed')) this.#acceptor.close()
      else this.#acceptor.error(this.#end)
    } catch {
      // It was cancelled.
    }
  }

  #announceLimit (): void {
    if (this.#state !== 'open' || this.pool.isFull || this.mustWait()) return
    const maxSubstreams = this.#openings.due(this.#inbound, this.limits.maxInboundSubstreams)
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
      else substream.reset('aborted', 'not sendable', ResetCode.Abandoned)
    }
    this.#isPumping = false
  }

  // Abuse.

  #onIneffective (substream: Substream): void {
    this.ineffective()
    substream.ineffective += 1
    this.#ineffectiveOn.add(substream)
    if (substream.ineffective > this.limits.maxFramesWithoutEffect) {
      substream.reset('limit', 'frames without effect', ResetCode.RateLimited, true)
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
    const errorCode = ResetCode.ResourceLimit
    this.#carrier.sendNotice({ flag: Flag.Fin, errorCode, reason: message })
    this.#fail(error)
    void this.#carrier.end(error, ABUSE_TIMEOUT)
  }

  // The end.

  async #close (closeCode: number, reason: string): Promise<void> {
    if (this.#state !== 'open') return
    this.#state = 'closing'
    const until = performance.now() + this.limits.closeTimeout
    const cause = new SessionError('closed', 'closed by this side', closeCode, reason)
    this.#failWaiting(cause)
    this.#refuseUnaccepted()
    this.#carrier.sendNotice({ flag: Flag.Fin, errorCode: closeCode, reason })
    // The close of a writer reaches its substream in a later microtask.
    await delay()
    const stopCode = closeCode || reason ? closeCode : ResetCode.Shutdown
    for (const substream of [...this.#substreams.values()]) substream.cutOff(cause, stopCode)
    if (this.#substreams.size > 0) {
      this.#emptied = deferred()
      await atMost(until - performance.now(), this.#emptied.promise)
    }
    if (this.#state !== 'closing') return
    this.#finish(cause)
    await this.#carrier.end(cause, until - performance.now())
    this.#closed.resolve({ closeCode, reason })
  }

  #fail (error: SessionError): void {
    this.#finish(error)
    this.#closed.reject(error)
  }

  #finish (cause: SessionError): void {
    this.#state = 'ended'
    this.#end = cause
    clearTimeout(this.#silence)
    this.#failWaiting(cause)
    for (const substream of [...this.#substreams.values()]) substream.sessionEnded(cause)
    this.#emptied?.resolve()
    this.#endAccepting()
  }
}
