// One session at a time, and what it counts.

import { ConnectError, certificateHash, connectAny } from './anabranch.js'
import { failure } from './format.js'

/** Discard: nobody listens there. */
const DEAD_PORT = '/udp/9/'
/** `connectAny` takes no more. */
const MAX_ADDRESSES = 16

const carrierOf = address => address.includes('/webrtc-direct/') ? 'WebRTC' : 'WebSocket'

/**
 * Where the program that has served this page listens, by `path`: `direct`, `relayed` or `lossy`.
 * Its certificate changes when it starts.
 */
export async function addressesOf ({ way, isBlocked, path }) {
  if (path === 'lossy' && way === 'websocket') {
    throw new Error('the lossy path is one of UDP: connect by WebRTC')
  }
  const response = await fetch('addresses')
  if (!response.ok) throw new Error(`no addresses: status ${response.status}`)
  const addresses = await response.json()
  const url = new URL(addresses.websocket, location.href)
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
  const byUdp = addresses[path].slice(0, MAX_ADDRESSES - 1)
    .map(address => isBlocked ? address.replace(/\/udp\/\d+\//, DEAD_PORT) : address)
  // A WebSocket would win, and lose nothing.
  const any = path === 'lossy' ? byUdp : [...byUdp, url.href]
  return { any, webrtc: byUdp, websocket: [url.href] }[way]
}

/** Why an address has not won. */
function outcomeOf ({ address, error }, winner, wonMs) {
  if (error !== undefined) return failure(error)
  return carrierOf(address) === 'WebRTC' && carrierOf(winner) === 'WebSocket'
    ? `no answer after ${wonMs} ms, when the WebSocket was connected`
    : 'not needed: the other was first'
}

/** Dispatches `change` when it is connected, and when it is not any more. */
export class Connection extends EventTarget {
  /** `idle`, `connecting` or `connected`. */
  state = 'idle'
  status = 'Not connected.'
  /** Carrier, address and outcome of each. */
  attempts = []
  /** Bytes that the page has read, of all substreams. */
  consumed = 0
  /** In milliseconds, of the latest echo. */
  roundTrip = undefined
  /** What it runs over, in words. */
  path = undefined

  #session
  #dialling
  #abort
  #options = { way: 'any', isBlocked: false, path: 'direct' }

  get session () {
    return this.#session
  }

  /** Returns the session, and dials if there is none. */
  async ensure (options = this.#options) {
    this.#options = options
    this.#dialling ??= this.#dial(options).finally(() => { this.#dialling = undefined })
    return this.#session ?? this.#dialling
  }

  disconnect () {
    this.#abort?.abort(new Error('cancelled'))
    this.#session?.close({ reason: 'the page has disconnected' })
  }

  async #dial (options) {
    if (this.#session !== undefined) return this.#session
    this.#abort = new AbortController()
    this.#change('connecting', 'Connecting …', [])
    const start = performance.now()
    try {
      const reached = await connectAny(await addressesOf(options), {
        security: certificateHash,
        // The page itself has come over the same connection.
        plaintextWebSockets: location.protocol !== 'https:',
        signal: this.#abort.signal
      })
      const ms = Math.round(performance.now() - start)
      await this.#begin(reached, ms)
      return reached.session
    } catch (error) {
      this.#session?.close()
      this.#session = undefined
      const attempts = (error instanceof ConnectError ? error.attempts : []).map(attempt => [
        carrierOf(attempt.address), attempt.address, failure(attempt.error)
      ])
      this.#change('idle', `Not connected: ${failure(error)}.`, attempts)
      throw error
    }
  }

  async #begin ({ session, address, lost }, ms) {
    this.consumed = 0
    this.roundTrip = undefined
    this.#session = session
    session.closed.then(
      ({ reason }) => {
        this.#end(session, reason === '' ? 'Disconnected.' : `Disconnected: ${reason}.`)
      },
      error => { this.#end(session, `The connection has ended: ${failure(error)}.`) }
    )
    const echo = await Echo.open(session, reader => this.read(reader))
    this.roundTrip = await echo.roundTrip()
    const carrier = carrierOf(address)
    this.path = this.#options.path === 'lossy' ? 'Lossy path' : `Direct, ${carrier}`
    const lossy = this.#options.path === 'lossy' ? ' on the lossy path' : ''
    const echoed = `an echo takes ${this.roundTrip.toFixed(1)} ms`
    this.#change('connected', `Connected over ${carrier}${lossy} in ${ms} ms; ${echoed}.`, [
      [carrier, address, `connected after ${ms} ms`],
      ...lost.map(attempt =>
        [carrierOf(attempt.address), attempt.address, outcomeOf(attempt, address, ms)])
    ])
    void this.#measure(echo)
  }

  async #measure (echo) {
    try {
      for (;;) {
        await new Promise(resolve => { setTimeout(resolve, 500) })
        this.roundTrip = await echo.roundTrip()
      }
    } catch {
      // The session has ended, which `closed` reports.
    }
  }

  #end (session, status) {
    if (this.#session !== session) return
    this.#session = undefined
    this.roundTrip = undefined
    this.#change('idle', status, this.attempts)
  }

  #change (state, status, attempts) {
    Object.assign(this, { state, status, attempts })
    this.dispatchEvent(new Event('change'))
  }

  /** The next chunk of a substream, counted. */
  async read (reader) {
    const result = await reader.read()
    this.consumed += result.value?.length ?? 0
    return result
  }
}

/** A substream that carries one byte back and forth. */
export class Echo {
  #read
  #writer
  #reader

  static async open (session, read = reader => reader.read()) {
    const { readable, writable } =
      await session.createBidirectionalStream({ protocol: '/echo', priority: 1 })
    const echo = new Echo()
    echo.#read = read
    echo.#writer = writable.getWriter()
    echo.#reader = readable.getReader()
    return echo
  }

  async roundTrip () {
    const start = performance.now()
    await this.#writer.write(Uint8Array.of(1))
    const { done } = await this.#read(this.#reader)
    if (done) throw new Error('the echo has ended')
    return performance.now() - start
  }
}
