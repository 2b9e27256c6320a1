// The entry `/multistream`: multistream-select 1.0, for libp2p peers that do not take the label of
// a channel for its protocol. Listeners of this library take labels, unless they are told not to.
//
//   opener                                        responder
//     /multistream/1.0.0, and a protocol   --->
//                                          <---   /multistream/1.0.0, and the protocol, or na

import type {
  BidirectionalStream,
  CloseInfo,
  OpenOptions,
  Session,
  SessionStats
} from './api.js'
import { deferred } from './deferred.js'
import { Code, SubstreamError } from './errors.js'

export interface MultistreamOptions {
  /** The protocols for which the peer may open substreams. Default: none. */
  protocols?: readonly string[]
  /** How long the negotiation of a substream may take, in milliseconds. Default: 10 000. */
  negotiationTimeout?: number
}

/**
 * The same session, whose substreams negotiate their protocol. `createBidirectionalStream` rejects
 * with a `SubstreamError` whose code is `Code.NEGOTIATION_FAILED` if the peer does not have the
 * protocol. Up to 16 substreams of the peer are negotiated before they are accepted; those for
 * other protocols are reset. The session must not be used beside it.
 */
export function multistream (session: Session, options: MultistreamOptions = {}): Session {
  return new NegotiatingSession(session, options)
}

const HEADER = '/multistream/1.0.0'
const REFUSED = 'na'

/** Longest message, with its newline. Answers peers that announce long ones. */
const MAX_MESSAGE = 1024
/** Proposals for one substream. Answers peers that guess without end. */
const MAX_PROPOSALS = 16
/** Substreams of the peer that are negotiated, or wait to be accepted after that. */
const MAX_AHEAD = 16

class NegotiatingSession implements Session {
  readonly incomingBidirectionalStreams: ReadableStream<BidirectionalStream>
  readonly #protocols: ReadonlySet<string>
  readonly #timeout: number
  readonly #incoming: ReadableStreamDefaultReader<BidirectionalStream>
  #acceptor!: ReadableStreamDefaultController<BidirectionalStream>
  readonly #agreed: BidirectionalStream[] = []
  #negotiating = 0
  #isAccepting = false
  #isReading = false
  /** Nothing more arrives. */
  #isOver = false
  #isCancelled = false

  constructor (readonly session: Session, options: MultistreamOptions) {
    this.#protocols = new Set(options.protocols)
    this.#timeout = options.negotiationTimeout ?? 10_000
    this.#incoming = session.incomingBidirectionalStreams.getReader()
    this.incomingBidirectionalStreams = new ReadableStream<BidirectionalStream>({
      start: controller => { this.#acceptor = controller },
      pull: () => {
        this.#isAccepting = true
        this.#accept()
      },
      cancel: async reason => {
        this.#isCancelled = this.#isOver = true
        for (const stream of this.#agreed.splice(0)) refuse(stream)
        await this.#incoming.cancel(reason)
      }
    }, { highWaterMark: 0 })
  }

  get ready (): Promise<void> { return this.session.ready }
  get closed (): Promise<Required<CloseInfo>> { return this.session.closed }
  get draining (): Promise<void> { return this.session.draining }
  get peerId (): string | undefined { return this.session.peerId }
  get transport (): 'webrtc' | 'websocket' { return this.session.transport }

  getStats (): Promise<SessionStats> {
    return this.session.getStats()
  }

  close (info?: CloseInfo): void {
    this.session.close(info)
  }

  [Symbol.asyncDispose] (): PromiseLike<void> {
    return this.session[Symbol.asyncDispose]()
  }

  async createBidirectionalStream (options: OpenOptions = {}): Promise<BidirectionalStream> {
    const { protocol = '', ...others } = options
    if (new TextEncoder().encode(protocol).length >= MAX_MESSAGE || protocol.includes('\n')) {
      throw new TypeError('the name of the protocol')
    }
    const stream = await this.session.createBidirectionalStream(others)
    try {
      return await negotiate(stream, this.#timeout, async io => {
        await io.send(HEADER, protocol)
        await io.expectHeader()
        const answer = await io.receive()
        if (answer !== protocol) {
          throw failed(answer === REFUSED ? `the peer has no ${protocol}` : `answer ${answer}`)
        }
        return protocol
      })
    } catch (error) {
      options.signal?.throwIfAborted()
      throw error
    }
  }

  #accept (): void {
    if (this.#isAccepting && this.#agreed.length > 0) {
      this.#isAccepting = false
      // Which may ask for the next one at once.
      this.#acceptor.enqueue(this.#agreed.shift()!)
    }
    if (this.#isOver) {
      if (!this.#isCancelled && this.#negotiating + this.#agreed.length === 0) this.#close()
      return
    }
    if (this.#isReading || this.#negotiating + this.#agreed.length >= MAX_AHEAD) return
    this.#isReading = true
    this.#incoming.read().then(({ value, done }) => {
      this.#isReading = false
      if (done) this.#isOver = true
      else void this.#respond(value)
      this.#accept()
    }, (error: unknown) => {
      this.#isCancelled = this.#isOver = true
      this.#acceptor.error(error)
    })
  }

  #close (): void {
    this.#isCancelled = true
    this.#acceptor.close()
  }

  async #respond (stream: BidirectionalStream): Promise<void> {
    this.#negotiating += 1
    try {
      // A label that is not empty is the protocol.
      const agreed = stream.protocol !== ''
        ? stream
        : await negotiate(stream, this.#timeout, io => this.#choose(io))
      if (this.#isCancelled) refuse(agreed)
      else this.#agreed.push(agreed)
    } catch {
      // It was reset.
    }
    this.#negotiating -= 1
    this.#accept()
  }

  async #choose (io: Messages): Promise<string> {
    await io.expectHeader()
    await io.send(HEADER)
    for (let proposals = 0; proposals < MAX_PROPOSALS; proposals++) {
      const protocol = await io.receive()
      if (this.#protocols.has(protocol)) {
        await io.send(protocol)
        return protocol
      }
      await io.send(REFUSED)
    }
    throw failed('too many proposals')
  }
}

const failed = (message: string): SubstreamError =>
  new SubstreamError('protocol', `multistream-select: ${message}`, Code.NEGOTIATION_FAILED)

/** Nobody accepts it any more. */
function refuse (stream: BidirectionalStream): void {
  stream.writable.abort(Code.RESOURCE_LIMIT).catch(() => {})
  // After STOP_SENDING of the peer `abort` has no effect.
  stream.readable.cancel(Code.RESOURCE_LIMIT).catch(() => {})
}

/**
 * Runs a negotiation, which decides on the protocol of `stream`. What follows it stays in the
 * stream. An error resets that.
 */
async function negotiate (
  stream: BidirectionalStream,
  timeout: number,
  decide: (io: Messages) => Promise<string>
): Promise<BidirectionalStream> {
  const io = new Messages(stream)
  const late = deferred<never>()
  const timer = setTimeout(() => {
    late.reject(failed(`not agreed within ${timeout} ms`))
  }, timeout)
  try {
    const value = await Promise.race([decide(io), late.promise])
    Object.defineProperty(stream, 'protocol', { value })
    return stream
  } catch (error) {
    io.abort()
    throw error
  } finally {
    clearTimeout(timer)
    io.release()
  }
}

/** The messages of a negotiation: a length, and a line of text. */
class Messages {
  readonly #reader: ReadableStreamBYOBReader
  readonly #writer: WritableStreamDefaultWriter<BufferSource>

  constructor (stream: BidirectionalStream) {
    this.#reader = stream.readable.getReader({ mode: 'byob' })
    this.#writer = stream.writable.getWriter()
    // It is reported by what is written or read.
    this.#writer.closed.catch(() => {})
    this.#reader.closed.catch(() => {})
  }

  async send (...lines: string[]): Promise<void> {
    const bytes = lines.flatMap(line => {
      const body = new TextEncoder().encode(`${line}\n`)
      const { length } = body
      return [...length < 128 ? [length] : [length & 127 | 128, length >> 7], ...body]
    })
    await this.#writer.write(Uint8Array.from(bytes))
  }

  async receive (): Promise<string> {
    let length = 0
    for (let shift = 0; ; shift += 7) {
      const [byte] = await this.#exactly(1)
      length += (byte! & 127) << shift
      // Checked before a byte of the message is read.
      if (length > MAX_MESSAGE || shift > 7) throw failed('a long message')
      if (byte! < 128) break
    }
    const line = new TextDecoder().decode(await this.#exactly(length))
    if (!line.endsWith('\n')) throw failed('no line')
    return line.slice(0, -1)
  }

  async expectHeader (): Promise<void> {
    const header = await this.receive()
    if (header !== HEADER) throw failed(`header ${header}`)
  }

  abort (): void {
    this.#writer.abort(Code.NEGOTIATION_FAILED).catch(() => {})
    // After STOP_SENDING of the peer `abort` has no effect.
    this.#reader.cancel(Code.NEGOTIATION_FAILED).catch(() => {})
  }

  release (): void {
    this.#reader.releaseLock()
    this.#writer.releaseLock()
  }

  /** No byte more: what follows is the application's. */
  async #exactly (length: number): Promise<Uint8Array> {
    const all = new Uint8Array(length)
    for (let at = 0; at < length;) {
      const { value, done } = await this.#reader.read(new Uint8Array(length - at))
      if (done) throw failed('the end')
      all.set(value, at)
      at += value.length
    }
    return all
  }
}
