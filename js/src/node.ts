// The entry `/node`: WebRTC for Node, which has none of its own, by the package @roamhq/wrtc. It is
// an optional peer dependency, loaded by the first dial. WebSockets are part of Node 22.

import { ConnectError } from './errors.js'
import { dialWebRtc, type RtcDialler } from './webrtc/dial.js'

/** How often the states of a connection are read, in milliseconds. */
const POLL = 100
/** How long a channel stays open that was closed, in milliseconds. */
const CLOSE_DELAY = 100
/** Channels that stay open like this: it has numbers for 512, and 256 substreams may be open. */
const MAX_CLOSING = 64

/**
 * Makes the WebRTC connections of `connect` in Node, as its option `webRtc`. Rejects with
 * `ConnectError`, of kind `unsupported` if `@roamhq/wrtc` is not installed, or has no binary for
 * this platform.
 */
export const webRtc: RtcDialler = async (address, dial) => {
  const { default: wrtc } = await load().catch((cause: unknown) => {
    throw new ConnectError('unsupported', '@roamhq/wrtc can not be loaded', { cause })
  })
  return dialWebRtc(address, dial, connectionOf(wrtc.RTCPeerConnection))
}

/** The types of that package do not compile. They are those of the browser, it says. */
const load = (): Promise<{ default: { RTCPeerConnection: typeof RTCPeerConnection } }> =>
  import('@roamhq/wrtc' as string)

/** The connection of wrtc with what it lacks. */
function connectionOf (Base: typeof RTCPeerConnection): typeof RTCPeerConnection {
  return class extends Base {
    #states = ''
    /** The channels that are about to close, oldest first. */
    readonly #closing = new Map<RTCDataChannel, () => void>()
    /** Some of its events are lost: the last of several that follow each other. */
    readonly #poll = setInterval(() => {
      const states = `${this.connectionState} ${this.iceConnectionState}`
      if (states === this.#states) return
      this.#states = states
      this.onconnectionstatechange?.(new Event('connectionstatechange'))
    }, POLL)

    /** It reports by this, also what arrives from the network. */
    override dispatchEvent (event: Event): boolean {
      if (event.type === 'datachannel') {
        const { channel } = event as RTCDataChannelEvent
        // It has 65 535 for those that are not limited.
        for (const name of ['maxRetransmits', 'maxPacketLifeTime'] as const) {
          const value = channel[name] === 65_535 ? null : channel[name]
          Object.defineProperty(channel, name, { value })
        }
      }
      return super.dispatchEvent(event)
    }

    override createDataChannel (label: string, options?: RTCDataChannelInit): RTCDataChannel {
      const channel = super.createDataChannel(label, options)
      const close = channel.close.bind(channel)
      // What was sent just before is lost now and then: the listener misses a FIN_ACK.
      const value = (): void => {
        if (this.#closing.has(channel)) return
        const timer = setTimeout(() => this.#close(channel), CLOSE_DELAY)
        this.#closing.set(channel, () => {
          clearTimeout(timer)
          close()
        })
        const [oldest] = this.#closing.keys()
        if (this.#closing.size > MAX_CLOSING) this.#close(oldest!)
      }
      Object.defineProperty(channel, 'close', { value })
      return channel
    }

    #close (channel: RTCDataChannel): void {
      this.#closing.get(channel)?.()
      this.#closing.delete(channel)
    }

    /** It does not make the description. */
    override async setLocalDescription (): Promise<void> {
      await super.setLocalDescription(await this.createOffer())
    }

    override close (): void {
      clearInterval(this.#poll)
      super.close()
    }
  }
}
