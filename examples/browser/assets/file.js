// Sends a file to the echo, and compares what comes back.

import * as format from './format.js'

/** The code with which a transfer is reset that is cancelled, or has failed. */
const CANCELLED = 2

/** The content of a file, read a second time beside what has come back. */
class Original {
  #reader
  #rest = new Uint8Array(0)
  #offset = 0

  constructor (file) {
    this.#reader = file.stream().getReader()
  }

  /** Throws at the first byte that differs. */
  async compare (bytes) {
    let at = 0
    while (at < bytes.length) {
      if (this.#rest.length === 0) {
        const { value, done } = await this.#reader.read()
        if (done) throw new Error(`more came back than the ${this.#offset} bytes of the file`)
        this.#rest = value
      }
      const length = Math.min(this.#rest.length, bytes.length - at)
      for (let index = 0; index < length; index++) {
        if (this.#rest[index] !== bytes[at + index]) {
          throw new Error(`byte ${this.#offset + index} has changed`)
        }
      }
      this.#rest = this.#rest.subarray(length)
      this.#offset += length
      at += length
    }
  }
}

async function send (file, writer, onSent) {
  const reader = file.stream().getReader()
  let sent = 0
  for (;;) {
    const { value, done } = await reader.read()
    if (done) break
    await writer.write(value)
    sent += value.length
    onSent(sent)
  }
  // Resolves when the program has confirmed all of it.
  await writer.close()
}

async function compare (file, read, onBack) {
  const original = new Original(file)
  let back = 0
  for (;;) {
    const { value, done } = await read()
    if (done) break
    await original.compare(value)
    back += value.length
    onBack(back)
  }
  if (back !== file.size) throw new Error(`only ${back} of ${file.size} bytes came back`)
}

/** The section with the drop zone. */
export class FileEcho {
  #connection
  #elements
  #abort

  constructor (connection) {
    this.#connection = connection
    const byId = id => document.getElementById(id)
    this.#elements = {
      drop: byId('drop'),
      input: byId('file'),
      sent: byId('file-sent'),
      back: byId('file-back'),
      cancel: byId('file-cancel'),
      status: byId('file-status')
    }
    const { drop, input, cancel } = this.#elements
    input.addEventListener('change', () => {
      if (input.files.length > 0) void this.#start(input.files[0])
    })
    cancel.addEventListener('click', () => { this.#abort?.abort(new Error('cancelled')) })
    for (const type of ['dragenter', 'dragover']) {
      drop.addEventListener(type, event => {
        event.preventDefault()
        drop.classList.add('over')
      })
    }
    drop.addEventListener('dragleave', event => {
      // Moves between the label and the input are no leave.
      if (!drop.contains(event.relatedTarget)) drop.classList.remove('over')
    })
    drop.addEventListener('drop', event => {
      event.preventDefault()
      drop.classList.remove('over')
      const [file] = event.dataTransfer.files
      if (file !== undefined) void this.#start(file)
    })
    // A file that misses the zone would replace the page.
    for (const type of ['dragover', 'drop']) {
      addEventListener(type, event => { event.preventDefault() })
    }
  }

  async #start (file) {
    const { sent, back, cancel, status } = this.#elements
    if (this.#abort !== undefined) {
      status.textContent = 'One file at a time: cancel the other first.'
      return
    }
    this.#abort = new AbortController()
    cancel.disabled = false
    // A progress element has no maximum of 0, and an empty file is sent as soon as it is begun.
    sent.max = back.max = Math.max(file.size, 1)
    sent.value = back.value = 0
    status.textContent = `Sending ${file.name} (${format.bytes(file.size)}).`
    const start = performance.now()
    try {
      await this.#transfer(file, this.#abort.signal)
      const seconds = (performance.now() - start) / 1000
      sent.value = back.value = sent.max
      const rate = format.rate(file.size / seconds)
      status.textContent = `${file.name} came back equal: ${format.bytes(file.size)}, ` +
        `all compared, in ${seconds.toFixed(1)} s (${rate} each way).`
    } catch (error) {
      status.textContent = `${file.name} did not come back: ${format.failure(error)}.`
    } finally {
      this.#abort = undefined
      cancel.disabled = true
    }
  }

  async #transfer (file, signal) {
    const { sent, back } = this.#elements
    const session = await this.#connection.ensure()
    const stream = await session.createBidirectionalStream({ protocol: '/echo', signal })
    const [writer, reader] = [stream.writable.getWriter(), stream.readable.getReader()]
    const reset = () => { writer.abort(CANCELLED).catch(() => {}) }
    signal.addEventListener('abort', reset)
    try {
      await Promise.all([
        send(file, writer, value => { sent.value = value }),
        compare(file, () => this.#connection.read(reader), value => { back.value = value })
      ])
    } catch (error) {
      reset()
      // The reason, rather than what became of the substream by it.
      signal.throwIfAborted()
      throw error
    }
  }
}
