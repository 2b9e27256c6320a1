// The test protocols. README.md defines them for implementations of the other side.

export const ECHO = '/echo/1.0.0'
export const BENCH = '/bench/1.0.0'
export const HALF_CLOSE = '/half-close/1.0.0'
export const HALF_CLOSE_REMOTE = '/half-close-remote/1.0.0'
export const HALF_CLOSE_RESULT = '/half-close-result/1.0.0'
export const RESET_ME = '/reset-me/1.0.0'
export const RESET_RESULT = '/reset-result/1.0.0'
export const RESET_YOU = '/reset-you/1.0.0'

export const TEST_PROTOCOLS = [
  ECHO, BENCH, HALF_CLOSE, HALF_CLOSE_REMOTE, HALF_CLOSE_RESULT, RESET_ME, RESET_RESULT, RESET_YOU
]

/** The minimum that identify must list. */
export const SERVED_PROTOCOLS = [...TEST_PROTOCOLS, '/ipfs/id/1.0.0', '/ipfs/ping/1.0.0']

/** The default of js-libp2p is 32 inbound and 64 outbound streams per protocol. */
export const STREAM_LIMITS = { maxInboundStreams: 1024, maxOutboundStreams: 1024 }

export const HALF_CLOSE_BYTES = 64 * 1024
export const RESET_ME_BYTES = 1024

/** How long a result protocol waits for the substream of its report, and the report without one. */
export const RESULT_WAIT_MS = 2000
export const NO_RESULT = 0xffff_ffff_ffff_ffffn
