// One substream: the states of its two halves, and its streams.
//
//   write half:  open -> closing -> fin-sent -> done
//                  `------- STOP_SENDING ------'
//   read half:   open -> fin            (FIN has arrived; the rest is still read)
//                  `---> stopped -> fin (cancelled: what arrives is dropped)
//   both:        RESET_STREAM, a violation, or the end of the channel or session

import type { BidirectionalStream } from './api.js'
import type { Channel } from './carrier.js'
import { deferred, type Deferred } from './deferred.js'
import { ResetCode, codeOf, SubstreamError, type SubstreamErrorKind } from './errors.js'
import { Flag, MAX_FRAME, maxPayload, type Frame } from './frame.js'
import type { Limits } from './options.js'
import { INITIAL_CREDIT, ReceiveBuffer, type Pool } from './receive.js'

/** What a substream needs of its session. */
export interface Siblings {
  readonly limits: Limits
  readonly pool: Pool
  /** Bytes that the carrier adds to a frame. */
  readonly overhead: number
  /** Whether the peer supports credit; undefined while that is not known. */
  readonly peerHasCredit: boolean | undefined
  /** There is data to send. */
  schedule (substream: Substream): void
  /** It has data no more, or another priority. */
  unschedule (substream: Substream): void
  /** Whether replies and credit have to wait, until `grant` is called again. */
  mustWait (): boolean
  /** It takes no part any more. `isReset`: it was reset, by either side. */
  forget (substream: Substream, isReset: boolean): void
  sent (payload: number): void
  /** The peer has broken the rules. */
  violated (): void
}

/** The longest frame to a peer that has not shown credit: go-libp2p reads no longer ones. */
const MAX_FRAME_WITHOUT_CREDIT = 4096

/** The field `max_data`: its key, and a value below 2^49. */
const MAX_DATA_LENGTH = 2 + 7

/** How often to look whether the browser has sent FIN, after which the wait for FIN_ACK begins. */
const DELIVERY_CHECK = 500

interface Write {
  bytes: Uint8Array<ArrayBuffer>
  done: Deferred<void>
}

export class Substream implements BidirectionalStream {
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>
  readonly writable: WritableStream<BufferSource>
  readonly receive: ReceiveBuffer
  /** The priority with which it is scheduled. */
  scheduledAs: number | undefined
  /** Something was written to it. */
  isUsed = false
  /** Frames without effect in the present second. */
  ineffective = 0

  #writeState: 'open' | 'closing' | 'fin-sent' | 'done' = 'open'
  #readState: 'open' | 'stopped' | 'fin' = 'open'
  #error: SubstreamError | undefined
  #isForgotten = false
  /** Unread data was dropped: the reader must not take what it has for everything. */
  #isCut = false
  #priority: number

  #reader!: ReadableByteStreamController
  #isReaderWaiting = false
  #isReaderDone = false
  #writer!: WritableStreamDefaultController
  #isWriterDone = false
  #write: Write | undefined
  #closing: Deferred<void> | undefined
  readonly #finished = deferred<void>()

  /** Chunks that `writable` has accepted, and of these the ones that it has handed over. */
  #accepted = 0
  #taken = 0
  /** The session closes: why, and how many chunks were accepted until then. */
  #cut: SubstreamError | undefined
  #cutAfter = Infinity

  /** Flags that are sent once the channel is open. */
  #owesFinAck = false
  #owedStop: number | undefined
  #owedReset: number | undefined

  #sent = 0
  #maxData: number | undefined
  #timer: ReturnType<typeof setTimeout> | undefined

  constructor (
    readonly channel: Channel,
    readonly protocol: string,
    readonly isLocal: boolean,
    readonly siblings: Siblings,
    priority: number
  ) {
    const { limits, pool } = siblings
    this.#priority = priority
    this.receive = new ReceiveBuffer(limits.receiveWindow, limits.maxReceiveWindow, pool)
    this.readable = new ReadableStream({
      type: 'bytes',
      start: controller => { this.#reader = controller },
      pull: () => { this.#deliver(true) },
      cancel: reason => { this.#stop(codeOf(reason)) }
    }, { highWaterMark: 0 })
    this.writable = new WritableStream<BufferSource>({
      start: controller => {
        this.#writer = controller
        // `abort` of the sink would wait for the write that it is to interrupt.
        controller.signal.addEventListener('abort', () => {
          // It is failing already, with the reason of the caller.
          this.#isWriterDone = true
          this.reset('aborted', 'reset by this side', codeOf(controller.signal.reason))
        })
      },
      write: chunk => this.#onWrite(chunk),
      close: () => this.#onClose()
    }, {
      highWaterMark: limits.writableHighWaterMark,
      // Called for each write at once; `write` waits for those before.
      size: chunk => {
        this.#accepted += 1
        return chunk?.byteLength ?? 0
      }
    })
  }

  get finished (): Promise<void> {
    return this.#finished.promise
  }

  get priority (): number {
    return this.#priority
  }

  set priority (priority: number) {
    this.#priority = priority
    if (this.scheduledAs !== undefined) {
      this.siblings.unschedule(this)
      this.siblings.schedule(this)
    }
  }

  /** Whether the peer has sent credit on it. */
  get hasPeerCredit (): boolean {
    return this.#maxData !== undefined
  }

  /** Whether there is data that may be sent now. */
  get isSendable (): boolean {
    return this.#write !== undefined && this.channel.isOpen && this.#credit() > 0
  }

  /** FIN is still to be sent. */
  get #isWriting (): boolean {
    return this.#writeState === 'open' || this.#writeState === 'closing'
  }

  /** Whether data waits for the first credit of a peer that has not shown it yet. */
  get waitsForFirstCredit (): boolean {
    return this.#write !== undefined && this.#maxData === undefined && this.#credit() <= 0
  }

  /** Sends one frame of data. Returns its length, 0 if there is none to send. */
  sendData (): number {
    const write = this.#write
    if (write === undefined || !this.isSendable) return 0
    // The first payload shows the peer that this side supports credit.
    const maxData = this.receive.hasGranted ? undefined : this.receive.creditOffer(true)
    const limit = this.siblings.peerHasCredit ? MAX_FRAME : MAX_FRAME_WITHOUT_CREDIT
    const others = this.siblings.overhead + (maxData === undefined ? 0 : MAX_DATA_LENGTH)
    const length = Math.min(write.bytes.length, this.#credit(), maxPayload(limit, others))
    const frame: Frame = { payload: write.bytes.subarray(0, length) }
    if (maxData !== undefined) frame.maxData = maxData
    if (!this.#send(frame)) return 0
    if (maxData !== undefined) this.receive.granted(maxData)
    this.#sent += length
    this.siblings.sent(length)
    write.bytes = write.bytes.subarray(length)
    if (write.bytes.length === 0) {
      this.#write = undefined
      write.done.resolve()
      this.#resetIfCut()
    }
    return length
  }

  /** Sends everything but data that is due. */
  service (): void {
    if (!this.channel.isOpen || this.#isForgotten) return
    if (this.#owedReset !== undefined) {
      this.#send({ flag: Flag.ResetStream, errorCode: this.#owedReset })
      this.#forget()
      return
    }
    if (this.#owesFinAck) {
      this.#owesFinAck = false
      this.#send({ flag: Flag.FinAck })
    }
    if (this.isSendable) this.siblings.schedule(this)
    this.grant()
    if (this.#writeState === 'closing' && this.#write === undefined) {
      this.#writeState = 'fin-sent'
      this.#send({ flag: Flag.Fin })
      this.#awaitFinAck()
    }
    // A peer that fails by it, such as an echo, drops what it has not read: at a close it waits
    // until FIN, or a reset, has followed the data.
    if (this.#owedStop !== undefined && !(this.#cut && this.#isWriting)) {
      this.#send({ flag: Flag.StopSending, errorCode: this.#owedStop })
      this.#owedStop = undefined
    }
    this.#forgetIfComplete()
  }

  /** Sends the credit that is due. It waits for no data, which may have to wait for other data. */
  grant (): void {
    if (!this.siblings.peerHasCredit || !this.channel.isOpen) return
    const maxData = this.#error === undefined ? this.receive.creditOffer() : undefined
    if (maxData === undefined || this.siblings.mustWait()) return
    if (this.#send({ maxData })) this.receive.granted(maxData)
  }

  /** Applies a frame of the peer. Returns whether it had an effect. */
  onFrame (frame: Frame): boolean {
    if (this.#error) return true
    let hasEffect = false
    if (frame.maxData !== undefined && frame.maxData > (this.#maxData ?? -1)) {
      this.#maxData = frame.maxData
      hasEffect = true
      if (this.isSendable) this.siblings.schedule(this)
    }
    if (frame.payload !== undefined) {
      // Data after FIN is dropped.
      hasEffect ||= this.#readState !== 'fin'
      if (!this.#onPayload(frame.payload, frame.owned === true)) return true
    }
    switch (frame.flag) {
      case undefined: return hasEffect
      case Flag.Fin: return this.#onFin() || hasEffect
      case Flag.FinAck: return this.#onFinAck() || hasEffect
      case Flag.StopSending: return this.#onStop(frame.errorCode) || hasEffect
      case Flag.ResetStream: this.#onReset(frame.errorCode); return true
      default: return hasEffect
    }
  }

  /** The channel was closed. */
  onClosed (): void {
    const isComplete = this.#readState === 'fin' && this.#writeState === 'done'
    if (this.#error || isComplete) {
      this.#forget()
      return
    }
    this.#fail(new SubstreamError('closed', 'closed without FIN'), false)
    this.#forget()
  }

  /** Ends both directions and sends RESET_STREAM. What has arrived is dropped, unless `keep`. */
  reset (kind: SubstreamErrorKind, message: string, code: number, keep = false): void {
    if (this.#error || this.#isForgotten) return
    if (kind === 'protocol' || kind === 'flow-control') this.siblings.violated()
    this.#fail(new SubstreamError(kind, message, code), !keep)
    this.#owedReset = code
    this.service()
  }

  /** Nobody has accepted it. */
  refuse (): void {
    this.reset('limit', 'not accepted', ResetCode.ResourceLimit)
    this.receive.discard()
  }

  /**
   * The session closes. What was written leaves, and then FIN if the writer has closed; otherwise a
   * reset, since FIN would make a part look complete. Nobody waits for what the peer has not ended.
   */
  cutOff (cause: unknown, stopCode: number): void {
    if (this.#error || this.#isForgotten) return
    const message = 'the session has ended'
    this.#cut = new SubstreamError('session', message, ResetCode.Shutdown, { cause })
    this.#cutAfter = this.#accepted
    this.#resetIfDrained()
    if (this.#error || this.#readState !== 'open') return
    this.#finished.reject(this.#cut)
    if (!this.#isReaderDone) this.#reader.error(this.#cut)
    this.#stop(stopCode)
  }

  #resetIfDrained (): void {
    if (this.#taken < this.#cutAfter || this.#write || this.#writeState !== 'open') return
    this.#fail(this.#cut!, false)
    this.#owedReset = ResetCode.Shutdown
    this.service()
  }

  /** A chunk is done. `writable` hands over the next one, or its close, in a later microtask. */
  #resetIfCut (): void {
    if (this.#cut) setTimeout(() => { this.#resetIfDrained() })
  }

  /** The session has ended. */
  sessionEnded (cause: unknown): void {
    if (!this.#isForgotten && this.#error === undefined) {
      this.#fail(
        new SubstreamError('session', 'the session has ended', undefined, { cause }),
        false
      )
    }
    this.#forget()
  }

  #credit (): number {
    if (this.#maxData !== undefined) return this.#maxData - this.#sent
    return this.siblings.peerHasCredit === false ? Infinity : INITIAL_CREDIT - this.#sent
  }

  /** False if the channel has failed meanwhile, which an event reports. */
  #send (frame: Frame): boolean {
    try {
      this.channel.send(frame)
      return true
    } catch {
      return false
    }
  }

  #onWrite (chunk: BufferSource): Promise<void> | undefined {
    this.isUsed = true
    this.#taken += 1
    // Written after the close.
    if (this.#taken > this.#cutAfter) this.#resetIfDrained()
    const bytes = ArrayBuffer.isView(chunk)
      ? new Uint8Array(chunk.buffer as ArrayBuffer, chunk.byteOffset, chunk.byteLength)
      : chunk instanceof ArrayBuffer ? new Uint8Array(chunk) : undefined
    if (bytes === undefined) {
      this.reset('aborted', 'no buffer', ResetCode.Abandoned)
      throw new TypeError('no buffer')
    }
    if (this.#error) throw this.#error
    if (bytes.length === 0) {
      this.#resetIfCut()
      return undefined
    }
    const done = deferred<void>()
    this.#write = { bytes, done }
    if (this.isSendable) this.siblings.schedule(this)
    return done.promise
  }

  #onClose (): Promise<void> | undefined {
    this.isUsed = true
    this.#isWriterDone = true
    if (this.#error) throw this.#error
    this.#closing = deferred<void>()
    this.#writeState = 'closing'
    const { promise } = this.#closing
    this.service()
    return promise
  }

  /** The wait begins when the browser has sent FIN: a slow link is no silent peer. */
  #awaitFinAck (): void {
    const { finAckTimeout } = this.siblings.limits
    const isQueued = this.channel.queued > 0
    this.#timer = setTimeout(() => {
      if (this.#writeState !== 'fin-sent') return
      if (isQueued) {
        this.#awaitFinAck()
        return
      }
      // The read half lives on; RESET_STREAM would let the peer drop what it has not read.
      this.#endWriting(new SubstreamError('timed-out', `no FIN_ACK within ${finAckTimeout} ms`))
      this.#forgetIfComplete()
    }, isQueued ? DELIVERY_CHECK : finAckTimeout)
  }

  #stop (code: number): void {
    this.#isReaderDone = true
    this.isUsed = true
    this.receive.discard()
    if (this.#error || this.#readState !== 'open') return
    this.#readState = 'stopped'
    this.#owedStop = code
    this.service()
  }

  #onPayload (payload: Uint8Array<ArrayBuffer>, owned: boolean): boolean {
    if (this.#readState === 'fin') return true
    // A peer without a grant is not bounded by it, even if it supports credit.
    const isBounded = this.hasPeerCredit && this.receive.hasGranted
    if (!this.receive.push(payload, owned, this.#readState === 'open', isBounded)) {
      this.reset('flow-control', 'more than was granted', ResetCode.FlowControl)
      return false
    }
    const { limits, pool } = this.siblings
    const isTooMuch = this.receive.unread > limits.substreamCeiling ||
      pool.committed > pool.ceiling + limits.substreamCeiling
    if (!isBounded && isTooMuch) {
      this.reset('limit', 'too much is unread', ResetCode.ResourceLimit)
      return false
    }
    this.#deliver(false)
    if (this.#readState === 'stopped') this.grant()
    return true
  }

  #onFin (): boolean {
    if (this.#readState === 'fin') return false
    this.#readState = 'fin'
    this.receive.complete()
    this.#owesFinAck = true
    this.#owedStop = undefined
    this.#deliver(false)
    this.service()
    return true
  }

  #onFinAck (): boolean {
    if (this.#writeState === 'done') return false
    if (this.#writeState !== 'fin-sent') {
      this.reset('protocol', 'FIN_ACK before FIN', ResetCode.ProtocolViolation, true)
      return true
    }
    this.#endWriting(undefined)
    this.#forgetIfComplete()
    return true
  }

  #onStop (code: number | undefined): boolean {
    if (this.#writeState === 'done') return false
    const error = new SubstreamError('stopped', 'stopped by the peer', code)
    const mustSendFin = this.#isWriting
    this.#endWriting(error)
    this.siblings.unschedule(this)
    if (mustSendFin) this.#send({ flag: Flag.Fin })
    this.service()
    return true
  }

  #onReset (code: number | undefined): void {
    const isKept = this.#readState === 'fin' || code === ResetCode.Shutdown
    this.#fail(new SubstreamError('reset', 'reset by the peer', code), !isKept)
    this.#forget()
  }

  #endWriting (error: SubstreamError | undefined): void {
    clearTimeout(this.#timer)
    this.#writeState = 'done'
    if (error === undefined) {
      this.#closing?.resolve()
      return
    }
    this.#finished.reject(error)
    this.#write?.done.reject(error)
    this.#write = undefined
    this.#closing?.reject(error)
    if (!this.#isWriterDone) {
      this.#isWriterDone = true
      this.#writer.error(error)
    }
  }

  /** Ends both directions with an error. */
  #fail (error: SubstreamError, drop: boolean): void {
    this.#error = error
    this.siblings.unschedule(this)
    if (this.#writeState !== 'done') this.#endWriting(error)
    this.#finished.reject(error)
    if (drop) {
      this.#isCut = this.receive.unread > 0
      this.receive.discard()
    }
    this.receive.complete()
    this.#deliver(false)
  }

  /** Hands what has arrived to the reader, if it waits for that. */
  #deliver (isPull: boolean): void {
    this.#isReaderWaiting ||= isPull
    if (this.#isReaderDone) return
    if (this.#isReaderWaiting && this.receive.unread > 0) {
      this.#isReaderWaiting = false
      // Before the controller is told: it pulls again at once.
      const request = this.#reader.byobRequest
      if (request !== null) {
        const view = request.view as Uint8Array<ArrayBuffer>
        const length = this.receive.readInto(
          new Uint8Array(view.buffer, view.byteOffset, view.byteLength)
        )
        this.grant()
        request.respond(length)
      } else {
        const bytes = this.receive.take()
        this.grant()
        if (bytes !== undefined) this.#reader.enqueue(bytes)
      }
      if (!isPull) return
    }
    if (this.receive.unread > 0 || this.#isReaderDone) return
    if (this.#readState === 'fin' && !this.#isCut) {
      this.#isReaderDone = true
      this.#closeReader()
    } else if (this.#error) {
      this.#isReaderDone = true
      this.#reader.error(this.#error)
    }
  }

  #closeReader (): void {
    try {
      this.#reader.close()
      this.#reader.byobRequest?.respond(0)
    } catch (error) {
      // The stream ends within an element of the reader's view.
      this.#reader.error(error)
    }
  }

  #forgetIfComplete (): void {
    if (this.#writeState === 'done' && this.#readState === 'fin' && !this.#owesFinAck) {
      this.#finished.resolve()
      this.#forget()
    }
  }

  #forget (): void {
    if (this.#isForgotten) return
    this.#isForgotten = true
    clearTimeout(this.#timer)
    this.receive.end()
    this.siblings.unschedule(this)
    this.siblings.forget(this, this.#error !== undefined)
  }
}
