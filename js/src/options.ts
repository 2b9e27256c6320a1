// The limits of a session, each with the need or the attack that it answers.

import { ConnectError } from './errors.js'

/** Limits and timeouts. Times are in milliseconds, sizes in bytes. */
export interface Limits {
  /** The whole dial, with authentication. Default: 10 000. */
  connectTimeout: number
  /** How long the peer may be silent before the session ends. Default: 15 000. */
  silenceTimeout: number
  /** How long a delivered FIN waits for FIN_ACK. Default: 10 000, as in go-libp2p. */
  finAckTimeout: number
  /** How long `close` waits for the peer to receive what was written. Default: 10 000. */
  closeTimeout: number
  /**
   * How long opens wait for a peer that has announced no limit of substreams, and inbound
   * substreams for the rest of the first frame. Default: 5 000.
   */
  openTimeout: number
  /**
   * How long an inbound substream waits to be taken from `incomingBidirectionalStreams`, before it
   * is reset. Default: 30 000. Answers applications that have stopped accepting.
   */
  acceptTimeout: number
  /**
   * What the peer may send on a substream before it is read. Default: 1 MiB. Doubles, up to
   * `maxReceiveWindow`, while the window is shorter than what the path holds.
   */
  receiveWindow: number
  /** Bound of the growth of `receiveWindow`. Default: 16 MiB. */
  maxReceiveWindow: number
  /**
   * Unread bytes at which a substream is reset whose peer does not support credit. Default: 4 MiB.
   */
  substreamCeiling: number
  /**
   * Unread and granted bytes of all substreams together, beyond 32 KiB each that any substream may
   * grant, also of those that have ended: the peer can not open further ones until these are read,
   * cancelled or dropped. Default: 32 MiB.
   */
  sessionCeiling: number
  /**
   * Bytes that wait in the browser to be sent, of all substreams together. Default: 1 MiB.
   * Chromium fails at 16 MiB, and Firefox takes any number of them.
   */
  sendBuffer: number
  /** Bytes that `writable` accepts before its writer should wait. Default: 64 KiB. */
  writableHighWaterMark: number
  /** Substreams of the peer that are open, or wait to be accepted. Default: 256. */
  maxInboundSubstreams: number
  /**
   * Inbound substreams within 10 s that the peer resets before anything was written to them, or
   * opens beyond its limit, and one in sixteen of those that are refused. Above it the session
   * ends. Default: 1 000. Answers "rapid reset".
   */
  maxUnusedSubstreams: number
  /**
   * Frames without effect on a substream within a second: above it the substream is reset; by four
   * times as many on the session, the session ends. Default: 1 000.
   */
  maxFramesWithoutEffect: number
}

const KIB = 1024
const MIB = 1024 * KIB

export const DEFAULTS: Readonly<Limits> = {
  connectTimeout: 10_000,
  silenceTimeout: 15_000,
  finAckTimeout: 10_000,
  closeTimeout: 10_000,
  openTimeout: 5_000,
  acceptTimeout: 30_000,
  receiveWindow: MIB,
  maxReceiveWindow: 16 * MIB,
  substreamCeiling: 4 * MIB,
  sessionCeiling: 32 * MIB,
  sendBuffer: MIB,
  writableHighWaterMark: 64 * KIB,
  maxInboundSubstreams: 256,
  maxUnusedSubstreams: 1_000,
  maxFramesWithoutEffect: 1_000
}

/** The smallest values with which a session works. */
const LEAST: Partial<Limits> = {
  receiveWindow: KIB,
  substreamCeiling: 16 * KIB,
  sessionCeiling: 64 * KIB,
  sendBuffer: 16 * KIB,
  maxInboundSubstreams: 0,
  maxFramesWithoutEffect: 16
}

/** The defaults with what `options` changes. Throws `ConnectError` for a value out of range. */
export function limitsOf (options: Partial<Limits>): Limits {
  const limits: Limits = { ...DEFAULTS }
  for (const name of Object.keys(DEFAULTS) as Array<keyof Limits>) {
    const value = options[name] ?? DEFAULTS[name]
    const least = LEAST[name] ?? 1
    if (!(value >= least && value < 2 ** 32)) {
      throw new ConnectError('invalid-option', `${name} is ${value}, not from ${least} to 2^32 - 1`)
    }
    limits[name] = value
  }
  limits.maxReceiveWindow = Math.max(limits.receiveWindow, limits.maxReceiveWindow)
  return limits
}
