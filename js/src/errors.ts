// The errors of this package. Each has a `kind`, which is stable, beside its text.

/** The codes as constants, which are part of the code that uses them. */
export const enum ResetCode {
  NegotiationFailed = 0x1001,
  ResourceLimit = 0x1002,
  RateLimited = 0x1003,
  ProtocolViolation = 0x1004,
  Abandoned = 0x1006,
  Shutdown = 0x1007,
  FlowControl = 0x2001
}

/** Codes of RESET_STREAM and STOP_SENDING that this package sends: docs/wire.md section 2. */
export const Code = {
  NEGOTIATION_FAILED: ResetCode.NegotiationFailed,
  RESOURCE_LIMIT: ResetCode.ResourceLimit,
  RATE_LIMITED: ResetCode.RateLimited,
  PROTOCOL_VIOLATION: ResetCode.ProtocolViolation,
  ABANDONED: ResetCode.Abandoned,
  SHUTDOWN: ResetCode.Shutdown,
  FLOW_CONTROL: ResetCode.FlowControl
} as const

/** Why a connection could not be made. */
export type ConnectErrorKind =
  /** The address is not one of webrtc-direct or a WebSocket. Nothing was sent. */
  | 'invalid-address'
  /** The address of a webrtc-direct listener has no certificate hash. Nothing was sent. */
  | 'missing-certhash'
  /** An option is out of its range, or contradicts another. Nothing was sent. */
  | 'invalid-option'
  /** The browser, or this context, has no `RTCPeerConnection` or `WebSocket`. */
  | 'unsupported'
  /** Workers have no `RTCPeerConnection`: see `webRtcPort`. Or the browser moves no channels. */
  | 'unsupported-in-worker'
  /** The peer has another certificate or identity than the address or the options name. */
  | 'authentication'
  /** The browser refuses the SDP that version 1 of webrtc-direct needs. */
  | 'munging-refused'
  /** The user, or a policy, denies this page the local network. */
  | 'local-network-denied'
  /** No answer from the address, or the browser found no way to it. */
  | 'unreachable'
  /** The listener, or a server before it, has refused. */
  | 'refused'
  /** Not complete within `connectTimeout`. */
  | 'timed-out'
  /** The peer ended the handshake, or broke its rules. */
  | 'handshake-failed'
  /** No address was given, or every one of them failed: see `attempts`. */
  | 'all-failed'

/** A dial failed. */
export class ConnectError extends Error {
  override readonly name = 'ConnectError'

  constructor (
    readonly kind: ConnectErrorKind,
    message: string,
    options?: ErrorOptions & { attempts?: readonly Attempt[] }
  ) {
    super(message, options)
    this.attempts = options?.attempts ?? []
  }

  /** What became of each address, with the kind `all-failed`. */
  readonly attempts: readonly Attempt[]
}

/** A dial that took longer than its time limit. */
export const notWithin = (ms: number, detail = ''): ConnectError =>
  new ConnectError('timed-out', `not within ${ms} ms${detail}`)

/** One address of `connectAny` that has not won. */
export interface Attempt {
  readonly address: string
  /** A `ConnectError`; undefined if it was cancelled because another had won. */
  readonly error: unknown
}

/** Why a session has ended. */
export type SessionErrorKind =
  /** This side has closed it. */
  | 'closed'
  /** The peer has closed it. */
  | 'closed-by-peer'
  /** Nothing has arrived from the peer for `silenceTimeout`. */
  | 'timed-out'
  /** The connection broke. */
  | 'lost'
  /** The peer broke the rules of the protocol, or exceeded a limit. */
  | 'protocol'
  /** The peer wants no new substreams. The session goes on. */
  | 'draining'

/** A session has ended, or can not do what was asked of it. */
export class SessionError extends Error {
  override readonly name = 'SessionError'
  readonly source = 'session'

  constructor (
    readonly kind: SessionErrorKind,
    message: string,
    readonly closeCode: number | null = null,
    readonly reason = ''
  ) {
    super(message)
  }
}

/** Why a substream has failed. */
export type SubstreamErrorKind =
  /** The peer sent RESET_STREAM. */
  | 'reset'
  /** The peer sent STOP_SENDING: it reads no more. */
  | 'stopped'
  /** This side has reset it, through `abort` or a signal. */
  | 'aborted'
  /** The peer broke the framing, or the order of flags. */
  | 'protocol'
  /** The peer sent more than it was granted. */
  | 'flow-control'
  /** A limit of this side was reached. */
  | 'limit'
  /** The peer has not confirmed FIN within `finAckTimeout`. */
  | 'timed-out'
  /** The channel closed without FIN. */
  | 'closed'
  /** The session has ended: see `cause`. */
  | 'session'

/** A substream has failed; in the shape of `WebTransportError`. */
export class SubstreamError extends Error {
  override readonly name = 'SubstreamError'
  readonly source: 'stream' | 'session'

  constructor (
    readonly kind: SubstreamErrorKind,
    message: string,
    /** The code of RESET_STREAM or STOP_SENDING, of whichever side sent it. */
    readonly streamErrorCode: number | null = null,
    options?: ErrorOptions
  ) {
    super(message, options)
    this.source = kind === 'session' ? 'session' : 'stream'
  }
}

/**
 * The code for RESET_STREAM or STOP_SENDING in a reason that was given to `abort` or `cancel`: a
 * number, or an object with `streamErrorCode`, such as a `WebTransportError`. Otherwise 0.
 */
export function codeOf (reason: unknown): number {
  const code = typeof reason === 'object' && reason !== null && 'streamErrorCode' in reason
    ? reason.streamErrorCode
    : reason
  return typeof code === 'number' && Number.isInteger(code) && code >= 0 && code < 2 ** 32
    ? code
    : 0
}
