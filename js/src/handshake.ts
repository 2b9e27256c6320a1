// Runs the handshake of a security over frames outside of any substream.

import { ConnectError } from './errors.js'
import { Flag, type Frame } from './frame.js'
import type { HandshakeContext, HandshakeIo, Peer, Security } from './security.js'

/** What waits for the handshake; a peer sends one message at a time. */
const MAX_WAITING = 16 * 1024

/** Bytes of the peer for a handshake, from the payloads of its frames. */
export class HandshakeFrames implements HandshakeIo {
  #waiting: Array<Uint8Array<ArrayBuffer>> = []
  #length = 0
  #reply: { resolve (bytes: Uint8Array<ArrayBuffer>): void, reject (error: unknown): void } | undefined
  #error: unknown

  constructor (readonly send: (bytes: Uint8Array<ArrayBuffer>) => void) {}

  receive (): Promise<Uint8Array<ArrayBuffer>> {
    return new Promise((resolve, reject) => {
      const bytes = this.#waiting.shift()
      if (bytes !== undefined) {
        this.#length -= bytes.length
        resolve(bytes)
      } else if (this.#error !== undefined) {
        reject(this.#error)
      } else {
        this.#reply = { resolve, reject }
      }
    })
  }

  /** The payload counts before the flag of the same frame. */
  onFrame (frame: Frame): void {
    if (frame.payload !== undefined) this.#push(frame.payload.slice())
    if (frame.flag === Flag.Fin || frame.flag === Flag.ResetStream) {
      this.fail(new ConnectError('handshake-failed', 'the peer ended the handshake'))
    }
  }

  fail (error: unknown): void {
    this.#error ??= error
    this.#reply?.reject(this.#error)
    this.#reply = undefined
  }

  #push (bytes: Uint8Array<ArrayBuffer>): void {
    if (this.#reply !== undefined) {
      this.#reply.resolve(bytes)
      this.#reply = undefined
      return
    }
    this.#length += bytes.length
    if (this.#length > MAX_WAITING) {
      this.fail(new ConnectError('handshake-failed', 'the peer sent too much before Noise was done'))
      return
    }
    this.#waiting.push(bytes)
  }
}

/** The peer; undefined without a handshake. */
export async function authenticate (
  security: Security,
  frames: HandshakeFrames,
  context: HandshakeContext
): Promise<Peer | undefined> {
  return security.handshake?.(frames, context)
}
