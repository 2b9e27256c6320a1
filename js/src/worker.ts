// The entry `/worker`: WebRTC for a dedicated worker, which has none of its own. The page makes the
// connections, and their channels move to the worker before anything arrives on them.
//
//   worker                                     page
//     Request, and a port of its own  --->     makes a connection
//     Notice.zero                     <---     channel 0
//     Notice.offer                    <---     our offer
//     Call.started                    --->     watches a session instead of a dial
//     Call.open                       --->
//     Notice.opened                   <---     its channel
//     Call.reopen                      --->     a channel has closed: opens what waits for a number
//     Notice.incoming                 <---     a channel that the peer has opened
//     Notice.ended                    <---     the connection has failed

import type { WebRtcAddress } from './address.js'
import type { PathStats } from './api.js'
import { deferred, type Deferred } from './deferred.js'
import {
  ConnectError,
  SessionError,
  type ConnectErrorKind,
  type SessionErrorKind
} from './errors.js'
import { RtcCarrier, type ChannelSource } from './webrtc/carrier.js'
import type { RtcChannel } from './webrtc/channel.js'
import { statsOf, type RtcDialler } from './webrtc/dial.js'
import { establish, type RtcAttempt } from './webrtc/establish.js'
import { opener } from './webrtc/opener.js'
import { version2 } from './webrtc/version.js'
import { watchDial, watchSession } from './webrtc/watch.js'

interface Request {
  readonly address: WebRtcAddress
  /** The worker holds it for as long as it lives and needs the connection. */
  readonly lock: string | undefined
  readonly connectTimeout: number
  readonly silenceTimeout: number
}

/** What the worker asks of the page. */
type Call =
  | { type: 'started' }
  | { type: 'open', number: number, label: string }
  | { type: 'reopen' }
  | { type: 'stats', number: number }
  | { type: 'close' }

/** What the page reports. */
type Notice =
  | { type: 'zero', channel: RTCDataChannel }
  | { type: 'offer', offer: string }
  | { type: 'incoming', channel: RTCDataChannel }
  /** Without a channel: there can be none. */
  | { type: 'opened', number: number, channel?: RTCDataChannel }
  | { type: 'stats', number: number, stats: PathStats }
  | { type: 'failed', kind: ConnectErrorKind, message: string }
  | { type: 'ended', kind: SessionErrorKind, message: string }

/**
 * On the page: a port for `webRtcFrom` in a worker, to be sent there with
 * `postMessage(port, [port])`. Connections of the worker end with the page.
 */
export function webRtcPort (): MessagePort {
  const { port1, port2 } = new MessageChannel()
  port1.onmessage = ({ data, ports }) => { serve(data as Request, ports[0]!) }
  return port2
}

/** In the worker: makes the connections of `connect`, as its option `webRtc`. Version 2 only. */
export function webRtcFrom (page: MessagePort): RtcDialler {
  return async (address, dial) => {
    const { port1: port, port2 } = new MessageChannel()
    const { limits: { connectTimeout, silenceTimeout, sendBuffer }, signal } = dial
    signal.throwIfAborted()
    const source = new PortSource(port)
    const begun = deferred<RtcAttempt>()
    const abort = (): void => { begun.reject(signal.reason) }
    signal.addEventListener('abort', abort)
    let carrier: RtcCarrier | undefined
    let attempt: RtcAttempt | undefined
    let error: ConnectError
    port.onmessage = ({ data }: MessageEvent<Notice>) => {
      switch (data.type) {
        case 'zero':
          carrier = new RtcCarrier(source, data.channel, sendBuffer)
          attempt = establish(carrier, data.channel, address, dial)
          begun.resolve(attempt)
          break
        case 'offer': attempt?.onOffer(data.offer); break
        case 'failed':
          error = new ConnectError(data.kind, data.message)
          begun.reject(error)
          attempt?.fail(error)
          break
        case 'ended': carrier?.fail(new SessionError(data.kind, data.message)); break
        case 'incoming': carrier?.onDataChannel(data.channel); break
        case 'opened': source.opened(data.number, data.channel); break
        case 'stats': source.measured(data.number, data.stats)
      }
    }
    const late = setTimeout(() => {
      begun.reject(new ConnectError('timed-out', 'the page does not answer'))
    }, connectTimeout)
    try {
      const lock = await holdLock(source.closed.promise)
      page.postMessage({ address, lock, connectTimeout, silenceTimeout } satisfies Request, [port2])
      const start = await (await begun.promise).start
      source.call({ type: 'started' })
      return start
    } catch (error) {
      source.close()
      throw error
    } finally {
      clearTimeout(late)
      signal.removeEventListener('abort', abort)
    }
  }
}

/**
 * Takes a lock until `end`, and returns its name. The page that waits for it learns of a worker
 * that was terminated, which not every browser reports on a port. Locks need a secure context.
 */
async function holdLock (end: Promise<void>): Promise<string | undefined> {
  try {
    const name = `@anabranch/browser ${crypto.randomUUID()}`
    await new Promise<void>((resolve, reject) => {
      navigator.locks.request(name, () => {
        resolve()
        return end
      }).catch(reject)
    })
    return name
  } catch {
    return undefined
  }
}

/** The channels of a connection on the page. */
class PortSource implements ChannelSource {
  #next = 0
  readonly #opening = new Map<number, RtcChannel>()
  readonly #measuring = new Map<number, Deferred<PathStats>>()
  readonly closed = deferred<void>()
  #isClosed = false

  constructor (readonly port: MessagePort) {}

  call (call: Call): void {
    this.port.postMessage(call)
  }

  open (channel: RtcChannel, label: string): void {
    if (this.#isClosed) {
      channel.attach()
      return
    }
    const number = this.#next++
    this.#opening.set(number, channel)
    this.call({ type: 'open', number, label })
  }

  reopen (): void {
    if (this.#opening.size > 0 && !this.#isClosed) this.call({ type: 'reopen' })
  }

  opened (number: number, channel: RTCDataChannel | undefined): void {
    const opening = this.#opening.get(number)
    this.#opening.delete(number)
    opening?.attach(channel)
  }

  async stats (): Promise<PathStats> {
    if (this.#isClosed) return {}
    const number = this.#next++
    const measured = deferred<PathStats>()
    this.#measuring.set(number, measured)
    this.call({ type: 'stats', number })
    return measured.promise
  }

  measured (number: number, stats: PathStats): void {
    this.#measuring.get(number)?.resolve(stats)
    this.#measuring.delete(number)
  }

  close (): void {
    if (this.#isClosed) return
    this.#isClosed = true
    this.closed.resolve()
    for (const measured of this.#measuring.values()) measured.resolve({})
    for (const opening of this.#opening.values()) opening.attach()
    this.#opening.clear()
    this.call({ type: 'close' })
    this.port.close()
  }
}

/** Makes a connection for the worker. */
function serve (request: Request, port: MessagePort): void {
  const { address, lock, connectTimeout, silenceTimeout } = request
  const notify = (notice: Notice, ...channels: RTCDataChannel[]): void => {
    port.postMessage(notice, channels)
  }
  let connection: RTCPeerConnection | undefined
  let kind: ConnectErrorKind = 'unsupported'
  try {
    connection = new RTCPeerConnection()
    const zero = connection.createDataChannel('', { negotiated: true, id: 0 })
    kind = 'unsupported-in-worker'
    // At once: a channel that has opened can not move. Firefox 140 can not move any.
    notify({ type: 'zero', channel: zero }, zero)
  } catch (error) {
    connection?.close()
    notify({ type: 'failed', kind, message: String(error) })
    port.close()
    return
  }
  connection.ondatachannel = ({ channel }) => { notify({ type: 'incoming', channel }, channel) }
  const fail = (error: ConnectError): void => {
    notify({ type: 'failed', kind: error.kind, message: error.message })
    connection.close()
  }
  const unwatch = watchDial(connection, address, connectTimeout, fail)
  const close = (): void => {
    unwatch()
    connection.close()
    port.close()
  }
  const { open, reopen } = opener<number>(connection, (number, channel) => {
    if (channel) notify({ type: 'opened', number, channel }, channel)
    else notify({ type: 'opened', number })
  })
  port.onmessage = ({ data }: MessageEvent<Call>) => {
    switch (data.type) {
      case 'started':
        unwatch()
        watchSession(connection, silenceTimeout, ({ kind, message }) => {
          notify({ type: 'ended', kind, message })
        })
        break
      case 'open': open(data.number, data.label); break
      case 'reopen': reopen(); break
      case 'stats':
        void statsOf(connection).then(stats => {
          notify({ type: 'stats', number: data.number, stats })
        })
        break
      case 'close': close()
    }
  }
  // The worker was terminated.
  port.addEventListener('close', close)
  if (lock !== undefined) navigator.locks.request(lock, close).catch(close)
  const onOffer = (offer: string): void => { notify({ type: 'offer', offer }) }
  version2.negotiate(connection, address, onOffer).catch((error: unknown) => {
    fail(error instanceof ConnectError ? error : new ConnectError('unsupported', String(error)))
  })
}
