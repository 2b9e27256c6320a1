export type {
  BidirectionalStream,
  CloseInfo,
  OpenOptions,
  PathStats,
  Session,
  SessionStats
} from './api.js'
export { connectAny, type ConnectAnyOptions, type Reached } from './any.js'
export { connect, type ConnectOptions } from './connect.js'
export {
  Code,
  ConnectError,
  SessionError,
  SubstreamError,
  type Attempt,
  type ConnectErrorKind,
  type SessionErrorKind,
  type SubstreamErrorKind
} from './errors.js'
export { DEFAULTS, type Limits } from './options.js'
export {
  certificateHash,
  type HandshakeContext,
  type HandshakeFrame,
  type HandshakeIo,
  type Peer,
  type Security
} from './security.js'
export type { WebRtcVersion } from './webrtc/version.js'
