// Fifty substreams with a row for each, which can be paused.

import { byId, element, elements } from './dom.js'
import * as format from './format.js'

const COUNT = 50
/** What a write hands over at once. */
const CHUNK = 64 * 1024

export function uint64 (value) {
  const bytes = new Uint8Array(8)
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value))
  return bytes
}

/** One substream, and its row. */
class Row {
  /** `running`, `paused`, `done`, `stopped` or `failed`. */
  state = 'running'
  bytes = 0
  meter = new format.Meter()
  pausedAt = undefined
  item

  #connection
  #size
  #progress
  #bytesText
  #rateText
  #button
  #failure = ''
  #resume = () => {}
  #resumed = Promise.resolve()
  #abort = new AbortController()

  constructor (connection, number, size, onPause) {
    this.#connection = connection
    this.#size = size
    this.number = number
    const name = `Substream ${number}`
    this.#progress = element('progress', { max: size, value: 0, ariaLabel: `Progress of ${name}` })
    this.#bytesText = element('span', {})
    this.#rateText = element('span', {})
    const onclick = () => { onPause(this) }
    this.#button = element('button', { type: 'button', className: 'quiet', onclick })
    this.item = element('li', {},
      element('span', { textContent: String(number) }),
      element('div', {},
        this.#progress, element('div', { className: 'figure' }, this.#bytesText, this.#rateText)),
      this.#button)
    this.show()
  }

  get isOpen () {
    return this.state === 'running' || this.state === 'paused'
  }

  async run (session, direction) {
    try {
      await (direction === 'down' ? this.#receive(session) : this.#send(session))
      this.state = 'done'
    } catch (error) {
      if (this.#abort.signal.aborted) this.state = 'stopped'
      else {
        this.state = 'failed'
        this.#failure = format.failure(error)
      }
    }
    this.show()
  }

  pause (time) {
    this.state = 'paused'
    this.pausedAt = time
    this.#resumed = new Promise(resolve => { this.#resume = resolve })
    this.show()
  }

  resume () {
    this.state = 'running'
    this.pausedAt = undefined
    this.#resume()
    this.show()
  }

  stop () {
    this.#abort.abort()
    this.#resume()
  }

  /** Stop resets it, also when it comes before the substream is open. */
  #open (session, protocol) {
    return session.createBidirectionalStream({ protocol, signal: this.#abort.signal })
  }

  async #receive (session) {
    const { readable, writable } = await this.#open(session, '/source')
    const reader = readable.getReader()
    const writer = writable.getWriter()
    await writer.write(uint64(this.#size))
    await writer.close()
    for (;;) {
      // Whoever does not read grants no credit: that is the whole pause.
      await this.#resumed
      this.#abort.signal.throwIfAborted()
      const { value, done } = await this.#connection.read(reader)
      if (done) break
      this.bytes += value.length
    }
    this.#abort.signal.throwIfAborted()
    if (this.bytes !== this.#size) throw new Error(`the end after ${this.bytes} bytes`)
  }

  async #send (session) {
    const { readable, writable } = await this.#open(session, '/sink')
    const writer = writable.getWriter()
    const chunk = new Uint8Array(CHUNK)
    while (this.bytes < this.#size) {
      await this.#resumed
      this.#abort.signal.throwIfAborted()
      const part = chunk.subarray(0, Math.min(CHUNK, this.#size - this.bytes))
      await writer.write(part)
      this.bytes += part.length
    }
    const reader = readable.getReader()
    const [, count] = await Promise.all([writer.close(), this.#readCount(reader)])
    if (count !== this.#size) throw new Error(`the program has ${count} bytes`)
  }

  async #readCount (reader) {
    const bytes = []
    for (;;) {
      const { value, done } = await this.#connection.read(reader)
      if (done) break
      bytes.push(...value)
    }
    return Number(new DataView(Uint8Array.from(bytes).buffer).getBigUint64(0))
  }

  show () {
    const isPaused = this.state === 'paused'
    this.item.className = this.state
    this.#progress.value = this.bytes
    this.#bytesText.textContent = format.bytes(this.bytes)
    const rate = format.rate(this.meter.rate())
    this.#rateText.textContent = this.state === 'running' ? rate : this.#failure || this.state
    const verb = isPaused ? 'Resume' : 'Pause'
    if (this.#button.textContent !== verb) {
      this.#button.textContent = verb
      this.#button.ariaLabel = `${verb} substream ${this.number}`
    }
    this.#button.disabled = !this.isOpen
  }
}

/** The latest pause: which substreams are compared, and how fast they were before it. */
class Pause {
  isAnnounced = false

  constructor (row, rows, time) {
    this.row = row
    this.time = time
    this.others = rows.filter(other => other !== row && other.state === 'running')
    this.before = this.rate()
    this.bytes = row.bytes
  }

  rate (since) {
    return this.others.reduce((sum, { meter }) => sum + (meter.rate(since) ?? 0), 0)
  }
}

/** The section with the rows. */
export class Substreams {
  #connection
  #elements
  #rows = []
  #pause

  constructor (connection) {
    this.#connection = connection
    this.#elements = elements('open', 'stop', 'rows', 'direction', 'size', 'together', 'before',
      'now', 'substreams-status')
    byId('open-form').addEventListener('submit', event => {
      event.preventDefault()
      void this.#open()
    })
    this.#elements.stop.addEventListener('click', () => {
      for (const row of this.#rows) row.stop()
    })
  }

  async #open () {
    const { open, direction, size, rows } = this.#elements
    open.disabled = true
    this.#pause = undefined
    try {
      const session = await this.#connection.ensure()
      const onPause = row => { this.#toggle(row) }
      this.#rows = Array.from({ length: COUNT }, (_, index) =>
        new Row(this.#connection, index + 1, Number(size.value), onPause))
      rows.replaceChildren(...this.#rows.map(({ item }) => item))
      this.#say(`${COUNT} substreams are open.`)
      this.#elements.stop.disabled = false
      await Promise.all(this.#rows.map(row => row.run(session, direction.value)))
      this.#say(this.#summary())
    } catch (error) {
      this.#say(`No substream was opened: ${format.failure(error)}.`)
    } finally {
      open.disabled = false
      this.#elements.stop.disabled = true
    }
  }

  #summary () {
    const count = state => this.#rows.filter(row => row.state === state).length
    const states = ['done', 'stopped', 'failed'].map(state => [count(state), state])
    const words = states.filter(([count]) => count > 0).map(([count, state]) => `${count} ${state}`)
    return `All substreams have ended: ${words.join(', ')}.`
  }

  #toggle (row) {
    if (row.state === 'paused') {
      row.resume()
      if (this.#pause?.row === row) this.#pause = undefined
      this.#say(`Substream ${row.number} goes on.`)
      return
    }
    const time = performance.now()
    this.#pause = new Pause(row, this.#rows, time)
    row.pause(time)
    this.#say(`Substream ${row.number} is paused.`)
  }

  #say (words) {
    this.#elements['substreams-status'].textContent = words
  }

  sample (time) {
    for (const row of this.#rows) row.meter.add(time, row.bytes)
  }

  show () {
    for (const row of this.#rows) row.show()
    const { together, before, now } = this.#elements
    const running = this.#rows.filter(({ state }) => state === 'running')
    together.textContent = running.length === 0
      ? '–'
      : format.rate(running.reduce((sum, { meter }) => sum + (meter.rate() ?? 0), 0))
    const pause = this.#pause
    before.textContent = pause === undefined ? '–' : format.rate(pause.before)
    now.textContent = pause === undefined ? '–' : format.rate(pause.rate(pause.time))
    if (pause !== undefined) this.#announce(pause)
  }

  /** Once, when there is something to compare. */
  #announce (pause) {
    if (pause.isAnnounced || performance.now() < pause.time + format.Meter.WINDOW) return
    pause.isAnnounced = true
    const rest = pause.others.filter(({ state }) => state === 'running').length
    if (rest < pause.others.length || pause.before === 0) return
    const share = format.percent(pause.rate(pause.time) / pause.before)
    this.#say(`Substream ${pause.row.number} is paused. ` +
      `The other ${rest} run at ${share} of their rate before.`)
  }
}
