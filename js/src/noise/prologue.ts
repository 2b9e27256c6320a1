// What both sides have to agree on, so that nobody between them can relay the handshake.

import { ConnectError } from '../errors.js'
import type { HandshakeContext } from '../security.js'

type Bytes = Uint8Array<ArrayBuffer>

const SHA2_256 = [0x12, 0x20]

/** The certificates of both sides; over a WebSocket nothing, since a page can not see its TLS. */
export function prologueOf ({ offer, certhash }: HandshakeContext): Bytes {
  const text = (value: string): Bytes => new TextEncoder().encode(value)
  if (offer === undefined || certhash === undefined) return text('anabranch-websocket-noise:')
  return Uint8Array.of(
    ...text('libp2p-webrtc-noise:'), ...SHA2_256, ...fingerprintOf(offer), ...SHA2_256, ...certhash
  )
}

/** SHA-256 of our certificate. */
function fingerprintOf (offer: string): Bytes {
  const hex = offer.match(/^a=fingerprint:sha-256 ([\da-f:]+)/im)?.[1] ?? ''
  const bytes = Uint8Array.from(hex.split(':'), byte => Number.parseInt(byte, 16))
  if (bytes.length !== 32) {
    throw new ConnectError('unsupported', 'the browser has no certificate with SHA-256')
  }
  return bytes
}
