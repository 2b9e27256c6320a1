// The messages of the handshake in the frames of the peer, each after its length.

import { ConnectError } from '../errors.js'
import { Flag } from '../frame.js'
import type { HandshakeFrame, HandshakeIo } from '../security.js'

type Bytes = Uint8Array<ArrayBuffer>

/** With RSA of 4096 bits a message has about 1 200 bytes. */
const MAX_MESSAGE = 4096

export class HandshakeMessages {
  #rest: number[] = []
  readonly #messages: Bytes[] = []
  #reply: { resolve (message: Bytes): void, reject (error: unknown): void } | undefined
  #error: unknown

  /** `expected` messages of the peer belong to the handshake. What follows is left to others. */
  constructor (readonly io: HandshakeIo, private expected: number) {
    io.onFrame = frame => { this.#onFrame(frame) }
    io.onEnd = error => { this.#fail(failed(error.message)) }
  }

  send (message: Bytes): void {
    this.io.send(Uint8Array.of(message.length >> 8, message.length & 255, ...message))
  }

  next (): Promise<Bytes> {
    return new Promise((resolve, reject) => {
      this.#reply = { resolve, reject }
      this.#answer()
    })
  }

  /** The payload counts before the flag of the same frame. */
  #onFrame ({ payload = new Uint8Array(), flag }: HandshakeFrame): void {
    this.#rest.push(...payload)
    while (this.expected > 0 && this.#rest.length >= 2) {
      const length = this.#rest[0]! * 256 + this.#rest[1]!
      if (length > MAX_MESSAGE) this.#fail(failed(`a message of ${length} bytes`))
      if (this.#error !== undefined || this.#rest.length < 2 + length) break
      this.#messages.push(Uint8Array.from(this.#rest.splice(0, 2 + length).slice(2)))
      this.expected -= 1
    }
    if (this.expected === 0) delete this.io.onFrame
    else if (flag === Flag.Fin || flag === Flag.ResetStream) this.#fail(failed('the peer ended it'))
    this.#answer()
  }

  #fail (error: unknown): void {
    this.#error ??= error
    this.#answer()
  }

  #answer (): void {
    const message = this.#messages[0]
    if (this.#reply === undefined) return
    if (message !== undefined) {
      this.#messages.shift()
      this.#reply.resolve(message)
      this.#reply = undefined
    } else if (this.#error !== undefined) {
      this.#reply.reject(this.#error)
      this.#reply = undefined
    }
  }
}

export const failed = (message: string): ConnectError =>
  new ConnectError('handshake-failed', `Noise: ${message}`)
