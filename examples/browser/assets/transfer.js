// A download or an upload whose connection is cut, and that goes on over the next one.

import { PayloadError, certificateHash, connectAny, receivePayload, sendPayload } from
  './anabranch.js'
import { Echo, addressesOf } from './connection.js'
import { elements } from './dom.js'
import * as format from './format.js'
import { Parts } from './parts.js'
import { uint64 } from './substreams.js'

/** Bytes in a second that a download takes at most, as uploads do: there is time to cut it. */
const RATE = 5e6
/** How long an echo may take, in milliseconds. The session itself would wait for 15 s. */
const SILENCE = 5_000
const ECHO_INTERVAL = 500
/** Attempts in a row that move nothing, after which it is given up. */
const MAX_FAILURES = 3
const PAUSE = 1_000
/** Where the size of an unfinished download, and the name of this browser, are kept. */
const SIZE = 'anabranch-download-size'
const VISITOR = 'anabranch-visitor'

const delay = ms => new Promise(resolve => { setTimeout(resolve, ms) })

/** Uploads of one name from two browsers are two. */
function visitor () {
  const known = localStorage.getItem(VISITOR)
  if (known !== null) return known
  // Unlike `randomUUID`, it exists on pages without TLS.
  const name = String(crypto.getRandomValues(new Uint32Array(2)))
  localStorage.setItem(VISITOR, name)
  return name
}

/** Passes no more than `RATE`. */
function paced () {
  let due = performance.now()
  return new TransformStream({
    transform: async (piece, controller) => {
      controller.enqueue(piece)
      due = Math.max(due, performance.now() - 100) + 1000 * piece.length / RATE
      if (due > performance.now()) await delay(due - performance.now())
    }
  })
}

/** A download of `total` bytes into `parts`. */
class Download {
  constructor (parts, total) {
    this.parts = parts
    this.total = total
    this.name = `river-${total / 1e6}.bin`
  }

  /** What is kept is the beginning of a download of this size. */
  async prepare () {
    if (Number(localStorage.getItem(SIZE)) === this.total) return
    await this.parts.clear()
    localStorage.setItem(SIZE, String(this.total))
  }

  async run (session, options) {
    const stream = await session.createBidirectionalStream({
      protocol: '/download', signal: options.signal
    })
    const writer = stream.writable.getWriter()
    await writer.write(uint64(this.total))
    writer.releaseLock()
    const payload = await receivePayload(stream, { ...options, maxTotal: this.total })
    const prefix = await this.parts.blob()
    const kept = await payload.resume(prefix)
    if (kept < prefix.size) await this.parts.clear()
    options.onProgress({ transferred: kept, resumedFrom: kept })
    const { readable, writable } = paced()
    // What has passed is stored before an error is reported.
    const stored = readable.pipeTo(this.parts.writable())
    try {
      await payload.copyTo(writable)
      await stored
    } catch (error) {
      await stored.catch(() => {})
      if (error.kind === 'hash-mismatch') await this.parts.clear()
      throw error
    }
    return 'they are here, and match their SHA-256'
  }
}

/** An upload of `file`, of which the program keeps the beginning. */
class Upload {
  constructor (file) {
    this.file = file
    this.total = file.size
    this.name = file.name
  }

  /** The program keeps what has arrived. */
  async prepare () {}

  async run (session, options) {
    const stream = await session.createBidirectionalStream({
      protocol: '/upload', signal: options.signal
    })
    const metadata = new TextEncoder().encode(`${visitor()}/${this.name}`)
    await sendPayload(stream, this.file, { ...options, metadata, resumable: true })
    return 'the program has them, and they match their SHA-256'
  }
}

/** Ends by an error when the peer answers no more. */
async function untilSilent (session) {
  const echo = await Echo.open(session)
  for (;;) {
    const late = delay(SILENCE).then(() => { throw new Error(`no answer within ${SILENCE} ms`) })
    // After an answer in time, nobody waits for it.
    late.catch(() => {})
    await Promise.race([echo.roundTrip(), late])
    await delay(ECHO_INTERVAL)
  }
}

/** Whether another connection can help. */
function isPassing (error) {
  return !(error instanceof PayloadError) || error.kind === 'substream'
}

/** The section with the buttons. */
export class Transfers {
  #elements
  #options
  #parts
  #abort
  #session
  #kept = 0
  /** The most so far. */
  #transferred = 0
  #connections = 0
  #link

  /** `options` returns how to connect. */
  constructor (options) {
    this.#options = options
    this.#elements = elements('transfer-size', 'download', 'upload-file', 'cut', 'transfer-stop',
      'discard', 'transfer-kept', 'transfer-done', 'kept', 'moved', 'connections', 'save',
      'transfer-status')
    const { download, cut, discard, 'transfer-size': size, 'transfer-stop': stop,
      'upload-file': file } = this.#elements
    download.addEventListener('click', () => { void this.#download(Number(size.value)) })
    file.addEventListener('change', () => {
      if (file.files.length > 0) void this.#run(new Upload(file.files[0]))
    })
    cut.addEventListener('click', () => { void this.#cut() })
    stop.addEventListener('click', () => { this.#abort?.abort(new Error('stopped')) })
    discard.addEventListener('click', () => { void this.#discard() })
    void this.#restore()
  }

  #say (words) {
    this.#elements['transfer-status'].textContent = words
  }

  /** What an earlier page has left. */
  async #restore () {
    const { download, discard, 'transfer-size': size } = this.#elements
    this.#parts = await Parts.open()
    const [blob, total] = [await this.#parts.blob(), Number(localStorage.getItem(SIZE))]
    download.disabled = false
    if (blob.size === 0 || total === 0) return
    size.value = String(total)
    discard.disabled = false
    this.#show({ total, kept: blob.size, transferred: blob.size })
    this.#say(`${format.bytes(blob.size)} of ${format.bytes(total)} are here from before, in ` +
      `${this.#parts.where}. The download goes on there.`)
  }

  async #download (total) {
    await this.#run(new Download(this.#parts, total))
  }

  /** A click on the other button, meanwhile, finds it disabled. */
  async #discard () {
    if (this.#abort !== undefined) return
    this.#abort = new AbortController()
    const { download, discard, save } = this.#elements
    download.disabled = discard.disabled = save.hidden = true
    try {
      await this.#parts.clear()
      localStorage.removeItem(SIZE)
      this.#show({ total: 1, kept: 0, transferred: 0 })
      this.#say('Nothing is kept.')
    } catch (error) {
      discard.disabled = false
      this.#say(`It is still kept: ${format.failure(error)}.`)
    } finally {
      this.#abort = undefined
      download.disabled = false
    }
  }

  #show ({ total, kept, transferred }) {
    const { 'transfer-kept': keptBar, 'transfer-done': doneBar } = this.#elements
    // A progress element has no maximum of 0.
    keptBar.max = doneBar.max = Math.max(total, 1)
    keptBar.value = kept
    doneBar.value = transferred
    this.#elements.kept.textContent = format.bytes(kept)
    this.#elements.moved.textContent = format.bytes(transferred - kept)
    this.#elements.connections.textContent = String(this.#connections)
  }

  /** Runs it over as many connections as it needs. */
  async #run (work) {
    if (this.#abort !== undefined) {
      this.#say('One transfer at a time: stop the other first.')
      return
    }
    const { total, name } = work
    // Before anything is awaited: a second click finds it.
    this.#abort = new AbortController()
    const { signal } = this.#abort
    const { download, cut, discard, save, 'transfer-stop': stop } = this.#elements
    download.disabled = discard.disabled = save.hidden = true
    stop.disabled = false
    this.#connections = this.#transferred = this.#kept = 0
    // Not the progress of the transfer before.
    this.#show({ total, kept: 0, transferred: 0 })
    this.#say(`${name}: connecting …`)
    const start = performance.now()
    try {
      await work.prepare()
      const verified = await this.#untilDone(work, signal)
      if (work instanceof Download) await this.#offer(work)
      const seconds = ((performance.now() - start) / 1000).toFixed(1)
      this.#show({ total, kept: this.#kept, transferred: total })
      this.#say(`${name}: all ${format.bytes(total)}, in ${seconds} s; ${verified}. ` +
        `${format.bytes(this.#kept)} were not sent again by the last connection.`)
    } catch (error) {
      const words = signal.aborted ? 'stopped' : format.failure(error)
      this.#say(`${name}: ${words}. What has arrived is kept.`)
    } finally {
      this.#session?.close()
      this.#session = this.#abort = undefined
      download.disabled = discard.disabled = false
      cut.disabled = stop.disabled = true
    }
  }

  /** Lets the visitor save it. */
  async #offer ({ name }) {
    const blob = await this.#parts.blob()
    const { save } = this.#elements
    if (this.#link !== undefined) URL.revokeObjectURL(this.#link)
    this.#link = URL.createObjectURL(blob)
    Object.assign(save, { href: this.#link, download: name, hidden: false })
  }

  async #untilDone (work, signal) {
    for (let failures = 0; ;) {
      const before = this.#transferred
      try {
        this.#session = await this.#connect(signal)
        this.#connections += 1
        this.#elements.cut.disabled = false
        return await this.#attempt(work, this.#session, signal)
      } catch (error) {
        failures = this.#transferred > before ? 0 : failures + 1
        this.#elements.cut.disabled = true
        this.#session?.close()
        if (signal.aborted || !isPassing(error) || failures >= MAX_FAILURES) throw error
        this.#say(`${work.name}: ${format.failure(error)}. Connecting again …`)
        await delay(failures * PAUSE)
      }
    }
  }

  async #attempt (work, session, signal) {
    const silence = new AbortController()
    untilSilent(session).catch(error => { silence.abort(error) })
    try {
      return await work.run(session, {
        signal: AbortSignal.any([signal, silence.signal]),
        onProgress: ({ transferred, resumedFrom }) => {
          this.#kept = resumedFrom
          this.#transferred = Math.max(this.#transferred, transferred)
          this.#show({ total: work.total, kept: resumedFrom, transferred })
          this.#moves(work)
        }
      })
    } catch (error) {
      // The reason, rather than what became of the payload by it.
      throw silence.signal.aborted ? silence.signal.reason : error
    }
  }

  #moves ({ name }) {
    const from = this.#kept === 0 ? 'from the beginning' : `goes on at ${format.bytes(this.#kept)}`
    const words = `${name}: connection ${this.#connections}, ${from}.`
    // Screen readers read every change.
    const { textContent } = this.#elements['transfer-status']
    if (textContent !== words && !this.#isCutting) this.#say(words)
  }

  #isCutting = false

  async #connect (signal) {
    this.#isCutting = false
    const { way, isBlocked, path } = this.#options()
    const through = path === 'direct' ? 'relayed' : path
    const { session } = await connectAny(await addressesOf({ way, isBlocked, path: through }), {
      security: certificateHash,
      plaintextWebSockets: location.protocol !== 'https:',
      // What has arrived before the cut is soon read.
      receiveWindow: 512 * 1024,
      maxReceiveWindow: 512 * 1024,
      signal
    })
    // What it fails with is that of the transfer.
    session.closed.catch(() => {})
    return session
  }

  /** The program drops whatever follows, and this page is told nothing. */
  async #cut () {
    this.#elements.cut.disabled = true
    this.#isCutting = true
    this.#say('Cut. Nothing arrives any more, and nobody says why.')
    try {
      const stream = await this.#session.createBidirectionalStream({ protocol: '/cut' })
      // Reset if the path can not be cut.
      stream.finished.catch(() => {})
      await stream.writable.getWriter().write(Uint8Array.of(1))
    } catch (error) {
      console.debug(error)
    }
  }
}

