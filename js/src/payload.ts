// The entry `/payload`: one large object on a substream, with length, metadata, progress, limits,
// hash and a confirmation; the counterpart of `anabranch::payload`.

export { PAYLOAD_CODES, PayloadError, type PayloadErrorKind } from './payload/errors.js'
export { Payload, receivePayload, type Received } from './payload/receive.js'
export { sendPayload, type SendOptions, type Sent } from './payload/send.js'
export type { PayloadOptions } from './payload/transfer.js'
