import { errorOfStatus, unfinished } from './errors.mjs'
import { PatternCheck, patternPieces } from './pattern.mjs'
import { STEP_MS, step, within } from './within.mjs'

/**
 * A js-libp2p stream, read by pulling.
 *
 * js-libp2p's own async iterator ends silently when the stream was reset before the iteration
 * began, and when the channel was closed without FIN. This one listens from the start and
 * distinguishes a clean end from the others. Its buffer has no limit: no case here tests a slow
 * reader.
 */
export class Substream {
  #stream
  #chunks = []
  #ended = false
  #error
  #writing = true
  #wake = () => {}

  constructor (stream) {
    this.#stream = stream
    stream.addEventListener('message', event => {
      this.#chunks.push(event.data.subarray())
      this.#wake()
    })
    // js-libp2p sets the status after 'end' but in the same task.
    stream.addEventListener('end', () => queueMicrotask(() => this.#end()))
    if (stream.readableEnded) {
      this.#end()
    }
  }

  #end () {
    const { status } = this.#stream
    // After a FIN the stream stays open for as long as our own half is open.
    const closedEarly = status === 'closed' && this.#writing
    this.#ended = true
    this.#error = errorOfStatus(status) ?? (closedEarly ? unfinished(this) : undefined)
    this.#wake()
  }

  /** The next bytes, or null at a clean end. A reset or abort throws after the bytes before it. */
  async read () {
    while (this.#chunks.length === 0) {
      if (this.#error != null) throw this.#error
      if (this.#ended) return null
      const { promise, resolve } = Promise.withResolvers()
      this.#wake = resolve
      await within(STEP_MS, `data or end on ${this}`, promise)
    }
    return this.#chunks.shift()
  }

  async readExactly (length) {
    const out = new Uint8Array(length)
    let filled = 0
    while (filled < length) {
      const chunk = await this.read()
      if (chunk == null) {
        throw new Error(`${this} ended after ${filled} of ${length} bytes`)
      }
      const taken = chunk.subarray(0, length - filled)
      out.set(taken, filled)
      filled += taken.length
      if (taken.length < chunk.length) {
        this.#chunks.unshift(chunk.subarray(taken.length))
      }
    }
    return out
  }

  async * chunks () {
    for (let chunk = await this.read(); chunk != null; chunk = await this.read()) {
      yield chunk
    }
  }

  async readToEnd () {
    const chunks = []
    for await (const chunk of this.chunks()) chunks.push(chunk)
    const out = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0))
    chunks.reduce((offset, chunk) => { out.set(chunk, offset); return offset + chunk.length }, 0)
    return out
  }

  async readPatternToEnd (total) {
    const check = new PatternCheck()
    for await (const chunk of this.chunks()) check.update(chunk)
    check.expectTotal(total)
  }

  async write (bytes) {
    if (!this.#stream.send(bytes)) {
      await this.#drained()
    }
  }

  async writePattern (total) {
    for (const piece of patternPieces(total)) await this.write(piece)
  }

  // Not stream.onDrain(): that one's promise stays resolved after the first drain.
  async #drained () {
    const { promise, resolve, reject } = Promise.withResolvers()
    const onDrain = () => resolve()
    const onClose = event => reject(event.error ?? new Error(`${this} closed while writing`))
    this.#stream.addEventListener('drain', onDrain)
    this.#stream.addEventListener('close', onClose)
    try {
      if (this.#stream.writableNeedsDrain) {
        await within(STEP_MS, `room to write on ${this}`, promise)
      }
    } finally {
      this.#stream.removeEventListener('drain', onDrain)
      this.#stream.removeEventListener('close', onClose)
    }
  }

  /** Sends FIN and waits for FIN_ACK. */
  async closeWrite () {
    this.#writing = false
    await step(`closing the write half of ${this} (FIN, FIN_ACK)`, () => this.#stream.close())
  }

  /** Waits until both halves are finished and the stream has closed without an error. */
  async closed () {
    const { promise, resolve } = Promise.withResolvers()
    this.#stream.addEventListener('close', resolve)
    if (this.#stream.status === 'open' || this.#stream.status === 'closing') {
      await within(STEP_MS, `close of ${this} (${halves(this.#stream)})`, promise)
    }
    if (this.#stream.status !== 'closed') {
      throw new Error(`${this} is ${this.#stream.status}, not closed`)
    }
  }

  abort (error) {
    this.#stream.abort(error)
  }

  toString () {
    return `${this.#stream.protocol} (substream ${this.#stream.id})`
  }
}

function halves (stream) {
  return `reading: ${stream.readStatus}, writing: ${stream.writeStatus}, ` +
    `remote reading: ${stream.remoteReadStatus}, remote writing: ${stream.remoteWriteStatus}`
}
