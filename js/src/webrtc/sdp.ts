// The SDP of webrtc-direct. The answer is derived from the address: docs/wire.md section 4.

import { ConnectError } from '../errors.js'
import type { WebRtcAddress } from '../address.js'

const V2_PREFIX = 'libp2p+webrtc+v2/'

/** The ufrag and password of the listener for an unchanged offer: it reads ours out of them. */
export function credentialOfV2 (offer: string): string {
  const password = offer.match(/^a=ice-pwd:(\S+)/m)?.[1]
  if (password === undefined) throw new ConnectError('unsupported', 'no password')
  return V2_PREFIX + password
}

/** An offer with the same credential as the listener's, which version 1 needs. */
export function mungedOffer (offer: string, credential: string): string {
  return offer
    .replace(/^a=ice-ufrag:.*$/m, `a=ice-ufrag:${credential}`)
    .replace(/^a=ice-pwd:.*$/m, `a=ice-pwd:${credential}`)
}

export const candidateOf = ({ host, port }: WebRtcAddress): string =>
  `candidate:1467250027 1 UDP 1467250027 ${host} ${port} typ host`

/** The answer of the listener, with its candidate unless that is added later. */
export function answerOf (
  address: WebRtcAddress,
  credential: string,
  withCandidate: boolean
): string {
  const { host, port, certhashes } = address
  const family = host.includes(':') ? 6 : 4
  const hex = (hash: Uint8Array): string =>
    Array.from(hash, byte => (byte + 256).toString(16).slice(1).toUpperCase()).join(':')
  return [
    'v=0',
    `o=- 0 0 IN IP${family} ${host}`,
    's=-',
    't=0 0',
    'a=ice-lite',
    `m=application ${port} UDP/DTLS/SCTP webrtc-datachannel`,
    `c=IN IP${family} ${host}`,
    'a=mid:0',
    'a=ice-options:ice2',
    `a=ice-ufrag:${credential}`,
    `a=ice-pwd:${credential}`,
    ...certhashes.map(hash => `a=fingerprint:sha-256 ${hex(hash)}`),
    'a=setup:passive',
    'a=sctp-port:5000',
    'a=max-message-size:16384',
    ...withCandidate ? [`a=${candidateOf(address)}`, 'a=end-of-candidates'] : [],
    ''
  ].join('\r\n')
}
