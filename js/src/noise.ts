// The entry `/noise`, which programs without peer ids do not load.

import { ConnectError } from './errors.js'
import { handshake } from './noise/handshake.js'
import { canonicalPeerId, Identity, typed } from './noise/identity.js'
import type { Security } from './security.js'

export { Identity } from './noise/identity.js'

export interface NoiseOptions {
  /** The identity of this side. Default: a new one for each connection. */
  identity?: Identity
  /** The peer to expect. Default: the one that the address names, if it names one. */
  peerId?: string
}

/**
 * Noise with libp2p identities, as all libp2p peers use: both sides prove their peer ids. Over a
 * WebSocket it authenticates the peer, and TLS protects the data.
 */
export function noise (options: NoiseOptions = {}): Security {
  return {
    subprotocol: 'anabranch.noise.v1',
    async handshake (io, context) {
      const named = context.expectedPeer ?? options.peerId
      const expected = options.peerId ?? named
      if (named !== undefined && canonicalPeerId(named) !== canonicalPeerId(expected!)) {
        throw new ConnectError('invalid-option', `the address names ${named}, not ${expected}`)
      }
      return typed(handshake(io, { ...context, expectedPeer: expected }, options.identity))
    }
  }
}
