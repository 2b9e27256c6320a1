// The carrier over one WebSocket, whose frames name their substream: docs/wire.md section 5.

import type { PathStats } from '../api.js'
import type { Carrier, CarrierEvents, Channel } from '../carrier.js'
import { atMost, deferred } from '../deferred.js'
import { EarlyEvents, EVENT_COST } from '../early.js'
import { ResetCode, SessionError } from '../errors.js'
import { Flag, FrameDecoder, FramingError, MAX_FRAME, writer, type Frame } from '../frame.js'
import type { HandshakeIo } from '../security.js'

/** Frames that are sent together are one message of at most this length. */
const BATCH = 64 * 1024

/** How often to look for room: a WebSocket does not report it. Credit of the peer does too. */
const ROOM_CHECK = 4

/** Late substreams that are remembered as answered. */
const MAX_ANSWERED = 256

/** Replies that may wait beyond `sendBuffer`: a peer that causes more of them reads nothing. */
const MAX_BACKLOG = 1024 * 1024

const enum CloseCode {
  Normal = 1000,
  /** A page may send no other code below 3000: these are 1002 and 1008. */
  ProtocolError = 3002,
  PolicyViolation = 3008,
  /** Codes of applications are added to this one. */
  Private = 4000,
  PrivateLast = 4999
}

/** In bytes: a control frame has 125, of which the code takes two. */
const MAX_REASON = 123

const MAX_NUMBER = 2 ** 32 - 1

/** What both sides know of the end of a substream: bits of the flags that were sent or received. */
const enum Passed {
  /** How far the bits of received flags are above those of sent ones. */
  Received = 4,
  /** FIN and FIN_ACK, 1 << 0 and 1 << 3, in both directions. */
  AllFins = 0b1001_1001,
  /** RESET_STREAM, 1 << 2, in either direction. */
  AnyReset = 0b0100_0100
}

class WsChannel implements Channel {
  isOpen = true
  passed = 0
  /** Bytes that the carrier was given until the end of its last frame. */
  end = 0

  constructor (
    readonly carrier: WsCarrier,
    readonly number: number,
    /** Until its first frame is sent. */
    public label: string | undefined
  ) {}

  get queued (): number {
    return Math.max(0, this.end - this.carrier.left)
  }

  send (frame: Frame): void {
    this.carrier.send(this, frame)
    this.pass(frame.flag, 0)
  }

  pass (flag: number | undefined, shift: number): void {
    if (flag !== undefined && flag <= Flag.FinAck) this.passed |= 1 << flag + shift
  }

  finish (): void {
    if (!this.isOpen) return
    const isKnown = (this.passed & Passed.AnyReset) !== 0 ||
      (this.passed & Passed.AllFins) === Passed.AllFins
    if (!isKnown) this.carrier.send(this, { flag: Flag.ChannelClosed })
    this.isOpen = false
    this.carrier.remove(this)
  }
}

export class WsCarrier implements Carrier {
  readonly knowsCredit = true
  /** The field `stream`, and a length prefix that may grow by one. */
  readonly overhead = 8
  /** Frames on stream 0, until the session begins. */
  readonly handshake: HandshakeIo = { send: payload => { this.sendNotice({ payload }) } }
  readonly #events = new EarlyEvents()
  readonly #decoder = new FrameDecoder()
  readonly #channels = new Map<number, WsChannel>()
  #next = 2
  #highestOfPeer = 0
  readonly #answered = new Set<number>()
  #unannounced: WsChannel[] = []
  readonly #batch = new Uint8Array(BATCH + MAX_FRAME)
  #batched = 0
  /** Bytes of all frames. */
  #total = 0
  #isEnded = false
  #roomTimer: ReturnType<typeof setTimeout> | undefined
  readonly #closed = deferred<void>()

  constructor (readonly socket: WebSocket, readonly limit: number) {
    socket.binaryType = 'arraybuffer'
    socket.onmessage = ({ data }) => { this.#onMessage(data) }
    socket.onclose = event => {
      this.#closed.resolve()
      this.fail(this.#causeOf(event))
    }
  }

  start (events: CarrierEvents): void {
    this.#events.start(events)
  }

  get queued (): number {
    return this.socket.bufferedAmount + this.#batched
  }

  /** Bytes that have left this process. */
  get left (): number {
    return this.#total - this.queued
  }

  open (label: string): WsChannel {
    const channel = new WsChannel(this, this.#next, label)
    this.#next += 2
    this.#channels.set(channel.number, channel)
    this.#unannounced.push(channel)
    return channel
  }

  room (): number {
    return this.limit - this.queued
  }

  awaitRoom (): void {
    this.#roomTimer ??= setTimeout(() => {
      this.#roomTimer = undefined
      this.#report(events => { events.writable() })
    }, ROOM_CHECK)
  }

  sendNotice (frame: Frame): void {
    this.#queue({ ...frame, stream: 0 })
  }

  send (channel: WsChannel, frame: Frame): void {
    // Numbers are announced in their order.
    while (channel.label !== undefined && this.#unannounced[0] !== undefined) {
      const first = this.#unannounced.shift()!
      const label = first.label!
      first.label = undefined
      if (first === channel) frame = { ...frame, label }
      else this.#queue({ stream: first.number, label })
    }
    this.#queue({ ...frame, stream: channel.number })
    channel.end = this.#total
  }

  remove (channel: WsChannel): void {
    this.#channels.delete(channel.number)
  }

  async end ({ kind, message, closeCode, reason }: SessionError, ms: number): Promise<void> {
    this.#isEnded = true
    clearTimeout(this.#roomTimer)
    this.#flush()
    if (kind === 'protocol') {
      this.#close(CloseCode.PolicyViolation, message)
    } else {
      const code = Math.min(CloseCode.Private + closeCode!, CloseCode.PrivateLast)
      this.#close(closeCode || reason ? code : CloseCode.Normal, reason)
    }
    await atMost(ms, this.#closed.promise)
  }

  stats (): Promise<PathStats> {
    return Promise.resolve({})
  }

  fail (error: SessionError): void {
    if (this.#isEnded) return
    this.#isEnded = true
    clearTimeout(this.#roomTimer)
    this.handshake.onEnd?.(error)
    this.#events.report(events => { events.ended(error) })
  }

  #close (code: number, reason: string): void {
    let text = reason
    while (new TextEncoder().encode(text).length > MAX_REASON) text = text.slice(0, -1)
    this.socket.close(code, text)
  }

  #violated (message: string, code = CloseCode.ProtocolError): void {
    this.fail(new SessionError('protocol', message))
    this.#close(code, message)
  }

  #causeOf ({ code, reason, wasClean }: CloseEvent): SessionError {
    // 1001: the peer leaves; 1005: there was no code.
    if (!wasClean || !(code < 1002 || code === 1005 || code >= CloseCode.Private)) {
      return new SessionError('lost', `closed with ${code} ${reason}`, code, reason)
    }
    const closeCode = code < CloseCode.Private && reason === '' ? 0 : code
    return new SessionError('closed-by-peer', 'closed by the peer', closeCode, reason)
  }

  #queue (frame: Frame): void {
    const bytes = writer.encode(frame)
    if (this.#batched + bytes.length > BATCH) this.#flush()
    // Later in this task, with what follows.
    if (this.#batched === 0) queueMicrotask(() => { this.#flush() })
    this.#batch.set(bytes, this.#batched)
    this.#batched += bytes.length
    this.#total += bytes.length
  }

  #flush (): void {
    if (this.#batched === 0) return
    const message = this.#batch.subarray(0, this.#batched)
    this.#batched = 0
    // One that closes would drop it, and complain.
    if (this.socket.readyState === 1) this.socket.send(message)
  }

  #onMessage (data: unknown): void {
    if (this.#isEnded) return
    try {
      if (!(data instanceof ArrayBuffer)) throw new FramingError('text')
      this.#decoder.push(new Uint8Array(data))
      for (;;) {
        const frame = this.#decoder.next()
        if (frame === undefined) return
        this.#onFrame(frame)
        if (this.room() < -MAX_BACKLOG) this.#violated('too much is unread', CloseCode.PolicyViolation)
        if (this.#isEnded) return
      }
    } catch (error) {
      if (!(error instanceof FramingError)) throw error
      this.#violated(`no frames: ${error.message}`)
    }
  }

  #onFrame (frame: Frame): void {
    const { stream, label, payload, flag } = frame
    if (stream === undefined) {
      this.#violated('no stream')
    } else if (stream === 0) {
      this.#onZero(frame)
    } else if (this.handshake.onFrame !== undefined) {
      this.#violated('too much before authentication', CloseCode.PolicyViolation)
    } else {
      const channel = this.#channels.get(stream)
      if (channel !== undefined && label === undefined) this.#onKnown(channel, frame)
      else if (this.#opens(frame, stream)) this.#onOpened(frame, stream)
      else if (label !== undefined || this.#isUnknown(stream)) {
        this.#violated(`unexpected stream ${stream}`)
      } else if (payload !== undefined) {
        // Late payload is legitimate, in any number. It is answered once.
        this.#answerLate(stream)
      } else if (flag !== undefined || frame.maxData !== undefined) {
        this.#report(events => { events.ineffective() })
      }
    }
  }

  #onZero (frame: Frame): void {
    if (this.handshake.onFrame !== undefined) {
      this.handshake.onFrame(frame)
    } else if (frame.payload !== undefined || frame.label !== undefined) {
      this.#violated('payload on stream 0')
    } else {
      // The reason of a goodbye follows in the close frame.
      if (frame.flag === Flag.Fin) frame.reason ??= ''
      this.#report(events => { events.notice(frame) })
    }
  }

  #opens ({ label }: Frame, stream: number): boolean {
    const isOfPeer = stream % 2 === 1 && stream <= MAX_NUMBER
    return label !== undefined && isOfPeer && this.#isUnknown(stream)
  }

  /** Whether there has been no substream of this number; others are late. */
  #isUnknown (stream: number): boolean {
    return stream % 2 === 0 ? stream >= this.#next : stream > this.#highestOfPeer
  }

  #onOpened (frame: Frame, stream: number): void {
    const label = frame.label!
    const channel = new WsChannel(this, stream, undefined)
    this.#highestOfPeer = stream
    this.#channels.set(stream, channel)
    this.#report(events => { events.opened(channel, label) })
    if (channel.isOpen) this.#onKnown(channel, frame)
  }

  #onKnown (channel: WsChannel, frame: Frame): void {
    channel.pass(frame.flag, Passed.Received)
    if (frame.flag === Flag.ChannelClosed) {
      channel.isOpen = false
      this.remove(channel)
      this.#report(events => { events.closedByPeer(channel) })
    } else {
      const cost = EVENT_COST + (frame.payload?.length ?? 0)
      this.#report(events => { events.frame(channel, frame) }, cost)
    }
  }

  #answerLate (stream: number): void {
    if (this.#answered.has(stream)) return
    if (this.#answered.size === MAX_ANSWERED) this.#answered.clear()
    this.#answered.add(stream)
    this.#queue({ stream, flag: Flag.ResetStream, errorCode: ResetCode.Abandoned })
  }

  #report (report: (events: CarrierEvents) => void, cost?: number): void {
    if (this.#events.report(report, cost)) return
    this.#violated('too much before authentication', CloseCode.PolicyViolation)
  }
}
