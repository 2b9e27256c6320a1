// Tries several addresses of one peer, and keeps the first that works.

import { parseAddress, type Address } from './address.js'
import type { Session } from './api.js'
import { connectTo, type ConnectOptions } from './connect.js'
import { deferred } from './deferred.js'
import { ConnectError, type Attempt } from './errors.js'
import { limitsOf } from './options.js'

const MAX_ADDRESSES = 16

export interface ConnectAnyOptions extends ConnectOptions {
  /**
   * How long WebRTC is tried before WebSockets are dialled too, in milliseconds. Default: 300,
   * longer than most handshakes take, and hardly noticed where UDP is blocked.
   */
  webSocketHeadStart?: number
  /** Delay between two addresses of one kind. Default: 100. */
  addressDelay?: number
}

/** The address that has won, and what became of the others. */
export interface Reached {
  readonly session: Session
  readonly address: string
  readonly lost: readonly Attempt[]
}

/**
 * Connects to one peer by the first of its addresses that works: WebRTC, and after a head start
 * WebSockets, for networks that block UDP. The others are cancelled.
 *
 * Rejects with a `ConnectError` before anything is sent if an address can not be dialled or names
 * another peer, and with the kind `all-failed` and the error of each address if none works.
 */
export async function connectAny (
  addresses: readonly string[],
  options: ConnectAnyOptions
): Promise<Reached> {
  const limits = limitsOf(options)
  const parsed = addresses.map(parseAddress)
  check(parsed)
  const race = new AbortController()
  const given = options.signal === undefined ? [] : [options.signal]
  const signal = AbortSignal.any([race.signal, ...given])
  const starts = new Starts(parsed, options, signal)
  const lost: Attempt[] = []
  const attempts = parsed.map(async (address, index) => {
    await starts.of(index)
    signal.throwIfAborted()
    const session = await connectTo(address, { ...options, signal }, limits)
    // Two may succeed at once; the second is not needed.
    if (signal.aborted) session.close()
    signal.throwIfAborted()
    race.abort()
    return { session, address: address.text }
  })
  for (const [index, attempt] of attempts.entries()) {
    attempt.catch((error: unknown) => {
      starts.failed(index)
      const isCancelled = race.signal.aborted && error === race.signal.reason
      lost.push({ address: parsed[index]!.text, error: isCancelled ? undefined : error })
    })
  }
  try {
    const won = await Promise.any(attempts)
    // Those that were cancelled report it at once.
    await Promise.allSettled(attempts)
    return { ...won, lost }
  } catch {
    options.signal?.throwIfAborted()
    throw new ConnectError(
      'all-failed',
      `none of ${parsed.length} addresses works`,
      { attempts: lost }
    )
  }
}

function check (addresses: readonly Address[]): void {
  if (addresses.length === 0 || addresses.length > MAX_ADDRESSES) {
    throw new ConnectError(
      'invalid-option',
      `${addresses.length} addresses, not 1 to ${MAX_ADDRESSES}`
    )
  }
  const peers = new Set(addresses.map(address => address.peerId).filter(peer => peer !== undefined))
  // Another peer in the list could win by being faster.
  if (peers.size > 1) throw new ConnectError('invalid-option', 'they name several peers')
}

/** When each address is dialled: by its place among those of its kind. At once after an abort. */
class Starts {
  readonly #begins: number[] = []
  readonly #webRtc = new Set<number>()
  readonly #webRtcFailed = new AbortController()
  readonly #headStart: Promise<void>

  constructor (
    addresses: readonly Address[],
    options: ConnectAnyOptions,
    readonly signal: AbortSignal
  ) {
    const { webSocketHeadStart = 300, addressDelay = 100 } = options
    const counts = { webrtc: 0, websocket: 0 }
    for (const [index, { kind }] of addresses.entries()) {
      this.#begins.push(addressDelay * counts[kind]++)
      if (kind === 'webrtc') this.#webRtc.add(index)
    }
    const isOver = AbortSignal.any([signal, this.#webRtcFailed.signal])
    this.#headStart = pause(this.#webRtc.size > 0 ? webSocketHeadStart : 0, isOver)
  }

  async of (index: number): Promise<void> {
    if (!this.#webRtc.has(index)) await this.#headStart
    await pause(this.#begins[index]!, this.signal)
  }

  /** Nothing is left to wait for once all WebRTC addresses have failed. */
  failed (index: number): void {
    this.#webRtc.delete(index)
    if (this.#webRtc.size === 0) this.#webRtcFailed.abort()
  }
}

/** Waits for `ms`, or until the signal. No timer is left, which would keep Node alive. */
async function pause (ms: number, signal: AbortSignal): Promise<void> {
  if (signal.aborted) return
  const { promise, resolve } = deferred<void>()
  const timer = setTimeout(resolve, ms)
  signal.addEventListener('abort', () => {
    clearTimeout(timer)
    resolve()
  }, { once: true })
  await promise
}
