// Why a payload has failed.

import { SubstreamError } from '../errors.js'

/** Codes of RESET_STREAM that end a payload, by the kind of the error. */
export const PAYLOAD_CODES = {
  /** It is longer than the receiver accepts. */
  'too-large': 0x2101,
  /** The receiver has its maximum of open payloads. */
  'too-many': 0x2102,
  /** There was no progress for `idleTimeout`. */
  expired: 0x2103,
  /** The header, or another message around the bytes, is invalid. */
  'bad-message': 0x2104,
  /** There are more bytes than the header announces. */
  overflow: 0x2105,
  /** There are fewer. */
  truncated: 0x2106,
  /** The bytes do not match the hash. */
  'hash-mismatch': 0x2107,
  /** One side has cancelled it. */
  cancelled: 0x2108,
  /** What is sent could not be read, or what is received not be written. */
  'local-failure': 0x2109
} as const

export type PayloadErrorKind =
  | keyof typeof PAYLOAD_CODES
  /** The substream, or its session, has failed otherwise: see `cause`. */
  | 'substream'

export class PayloadError extends Error {
  override readonly name = 'PayloadError'

  constructor (
    readonly kind: PayloadErrorKind,
    message: string,
    /** The other side has ended it. */
    readonly isRemote = false,
    options?: ErrorOptions
  ) {
    super(message, options)
  }
}

/** The error of a payload for one of its substream. */
export function payloadErrorOf (cause: unknown): PayloadError {
  if (cause instanceof PayloadError) return cause
  if (!(cause instanceof SubstreamError)) {
    return new PayloadError('local-failure', String(cause), false, { cause })
  }
  const code = cause.streamErrorCode
  const isRemote = cause.kind === 'reset' || cause.kind === 'stopped'
  for (const [kind, number] of Object.entries(PAYLOAD_CODES)) {
    if (code === number) {
      const message = isRemote ? `the other side: ${kind}` : kind
      return new PayloadError(kind as PayloadErrorKind, message, isRemote, { cause })
    }
  }
  return new PayloadError('substream', cause.message, isRemote, { cause })
}
