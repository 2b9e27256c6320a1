import './polyfill.mjs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { ping } from '@libp2p/ping'
import { webRTCDirect } from '@libp2p/webrtc'
import { createLibp2p } from 'libp2p'

/** js-libp2p as in an application, without the settings that obstruct a test. */
export function createNode (listen = []) {
  return createLibp2p({
    addresses: { listen },
    // The default asks public STUN servers, which tests neither need nor reach.
    transports: [webRTCDirect({ rtcConfiguration: { iceServers: [] } })],
    connectionEncrypters: [noise()],
    services: { identify: identify(), ping: ping() },
    // In a browser the default refuses to dial private addresses.
    connectionGater: { denyDialMultiaddr: () => false },
    // The default is five per second from one host; all our dials come from one host.
    connectionManager: { inboundConnectionThreshold: 10_000 }
  })
}
