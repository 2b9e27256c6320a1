// The SDP of webrtc-direct v2. The client's offer stays as the browser made it. The answer is
// derived from the address, with the client's password inside the server's ufrag, so that the
// server learns it from the first STUN request.

const V2_PREFIX = 'libp2p+webrtc+v2/'

export function clientPassword (offerSdp) {
  const password = offerSdp.match(/^a=ice-pwd:(\S+)/m)?.[1]
  if (password == null) {
    throw new Error('the offer has no ice-pwd')
  }
  return password
}

export function serverCredential (offerSdp) {
  return V2_PREFIX + clientPassword(offerSdp)
}

/** The answer of a server at `host` `port` whose certificate has this sha-256 fingerprint. */
export function answerSdp ({ family, host, port, fingerprint, credential }) {
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
    `a=fingerprint:sha-256 ${fingerprint}`,
    'a=setup:passive',
    'a=sctp-port:5000',
    'a=max-message-size:16384',
    `a=candidate:1467250027 1 UDP 1467250027 ${host} ${port} typ host`,
    'a=end-of-candidates',
    ''
  ].join('\r\n')
}
