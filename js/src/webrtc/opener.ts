// Makes data channels in the order in which they are asked for.

import { isFirefox } from './watch.js'

/** Firefox negotiates 2048 streams. */
const MAX_ID = 2047

export interface Opener<Key> {
  open (key: Key, label: string): void
  /** A channel has closed. */
  reopen (): void
}

/**
 * A browser has numbers for so many channels at once, Firefox for 1024: further ones wait until one
 * closes. `made` gets no channel if its label is too long.
 */
export function opener<Key> (
  connection: RTCPeerConnection,
  made: (key: Key, channel?: RTCDataChannel) => void
): Opener<Key> {
  const waiting = new Map<Key, string>()
  const reopen = (): void => {
    for (const [key, label] of waiting) {
      let channel: RTCDataChannel | undefined
      try {
        channel = connection.createDataChannel(label)
        // Firefox 153 gives out one number too many, and that channel never opens.
        if (isFirefox() && channel.id! > MAX_ID) throw channel.close()
      } catch (error) {
        if (!(error instanceof TypeError)) return
      }
      waiting.delete(key)
      made(key, channel)
    }
  }
  return {
    open (key, label) {
      waiting.set(key, label)
      reopen()
    },
    reopen
  }
}
