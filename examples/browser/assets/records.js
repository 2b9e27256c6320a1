// Eight streams of records at a fixed rate: a substream for each, or all interleaved on one ordered
// channel. What a lost packet and a slow reader cost the others shows in when records arrive.

import { byId, element, elements, row } from './dom.js'
import * as format from './format.js'

const STREAMS = 8
const RECORD = 1000
/** A record is late by more, beyond the least delay, in milliseconds: a round trip when lossy. */
const LATE = 50
/** Over which the rows show figures, in milliseconds. */
const WINDOW = 5_000
/** Records that a stream holds for its reader when it shares a channel. */
const MAX_HELD = 64
const MAX_PAUSES = 64

const ARRANGEMENTS = { apart: 'a substream for each', together: 'one ordered channel' }

/** Records out of a stream of bytes. */
class RecordReader {
  #reader
  #held = new Uint8Array(0)

  constructor (reader) {
    this.#reader = reader
  }

  async next (read) {
    while (this.#held.length < RECORD) {
      const { value, done } = await read(this.#reader)
      if (done) throw new Error('the records have ended')
      const joined = new Uint8Array(this.#held.length + value.length)
      joined.set(this.#held)
      joined.set(value, this.#held.length)
      this.#held = joined
    }
    const view = new DataView(this.#held.buffer, this.#held.byteOffset, RECORD)
    this.#held = this.#held.subarray(RECORD)
    return { stream: view.getUint32(0), due: view.getFloat64(4) }
  }
}

/** One stream, and its row. */
class Feed {
  isPaused = false
  item
  /** Time and delay of each record of the window. */
  #records = []
  #cells
  #button
  #resumed = Promise.resolve()
  #resume = () => {}
  /** What a shared channel has brought, and who waits for room or for a record. */
  #held = []
  #onChange = () => {}

  constructor (number, onPause) {
    this.number = number
    this.#button = element('button', { type: 'button', className: 'quiet', onclick: () => {
      onPause(this)
    } })
    this.item = row(String(number + 1), '–', '–', '–', this.#button)
    this.#cells = [...this.item.cells].slice(1)
    this.show(performance.now(), 0)
  }

  pause () {
    this.isPaused = true
    this.#resumed = new Promise(resolve => { this.#resume = resolve })
  }

  resume () {
    this.isPaused = false
    this.#resume()
  }

  /** Its reader reads no further while it is paused. */
  get resumed () {
    return this.#resumed
  }

  take (time, delay) {
    this.#records.push([time, delay])
  }

  /** Waits until there is room: without a limit, a paused reader would fill the memory. */
  async hold (record) {
    while (this.#held.length >= MAX_HELD) await this.#changed()
    this.#held.push(record)
    this.#onChange()
  }

  async held () {
    while (this.#held.length === 0) await this.#changed()
    const record = this.#held.shift()
    this.#onChange()
    return record
  }

  #changed () {
    return new Promise(resolve => {
      const before = this.#onChange
      this.#onChange = () => {
        this.#onChange = () => {}
        before()
        resolve()
      }
    })
  }

  show (now, least) {
    this.#records = this.#records.filter(([time]) => time > now - WINDOW)
    const delays = this.#records.map(([, delay]) => delay - least).sort((a, b) => a - b)
    const [rate, typical, worst] = this.#cells
    rate.textContent = delays.length === 0
      ? this.isPaused ? 'paused' : 'none'
      : (1000 * delays.length / WINDOW).toFixed(0)
    typical.textContent = milliseconds(delays[Math.floor(delays.length / 2)])
    worst.textContent = milliseconds(delays.at(-1))
    this.item.className = this.isPaused ? 'paused' : ''
    const verb = this.isPaused ? 'Resume' : 'Pause'
    if (this.#button.textContent !== verb) {
      this.#button.textContent = verb
      this.#button.ariaLabel = `${verb} stream ${this.number + 1}`
    }
  }
}

const milliseconds = value => value === undefined ? '–' : `${Math.round(value)} ms`

/** What one path and arrangement have shown. */
class Tally {
  records = 0
  late = 0
  worst = 0
  ms = 0

  add (lateness) {
    this.records += 1
    if (lateness > LATE) this.late += 1
    this.worst = Math.max(this.worst, lateness)
  }
}

/** The section with the streams. */
export class Records {
  #connection
  #elements
  #feeds = []
  #arrangement
  #abort
  #least = Infinity
  #tallies = new Map()
  #shown = 0
  /** Which feed was paused, from when until its records are in time again. */
  #pauses = []

  constructor (connection) {
    this.#connection = connection
    this.#elements = elements('records-start', 'records-stop', 'records', 'tallies',
      'records-status')
    byId('records-form').addEventListener('submit', event => {
      event.preventDefault()
      void this.#run(new FormData(event.target).get('arrangement'))
    })
    this.#elements['records-stop'].addEventListener('click', () => { this.#abort?.abort() })
  }

  #say (words) {
    this.#elements['records-status'].textContent = words
  }

  async #run (arrangement) {
    const { 'records-start': start, 'records-stop': stop, records } = this.#elements
    start.disabled = true
    this.#abort = new AbortController()
    const { signal } = this.#abort
    try {
      const session = await this.#connection.ensure()
      this.#least = Infinity
      this.#shown = performance.now()
      this.#arrangement = arrangement
      this.#pauses = []
      this.#feeds = Array.from({ length: STREAMS }, (_, number) =>
        new Feed(number, feed => { this.#toggle(feed) }))
      records.hidden = false
      records.tBodies[0].replaceChildren(...this.#feeds.map(({ item }) => item))
      stop.disabled = false
      this.#say(`Eight streams run: ${ARRANGEMENTS[arrangement]}.`)
      if (arrangement === 'apart') await this.#apart(session, signal)
      else await this.#together(session, signal)
    } catch (error) {
      this.#say(signal.aborted ? 'Stopped.' : `Ended: ${format.failure(error)}.`)
    } finally {
      // The other streams end with one that fails.
      this.#abort.abort()
      for (const feed of this.#feeds) feed.resume()
      this.#feeds = []
      start.disabled = false
      stop.disabled = true
    }
  }

  /** A substream for `count` streams from `first` on. */
  async #open (session, signal, first, count) {
    // The signal also resets a substream that is opened after it.
    const { readable, writable } =
      await session.createBidirectionalStream({ protocol: '/records', signal })
    const reader = readable.getReader()
    const writer = writable.getWriter()
    await writer.write(Uint8Array.of(first, count))
    await writer.close()
    const records = new RecordReader(reader)
    return async () => {
      signal.throwIfAborted()
      return records.next(reader => this.#connection.read(reader))
    }
  }

  async #apart (session, signal) {
    await Promise.all(this.#feeds.map(async feed => {
      const next = await this.#open(session, signal, feed.number, 1)
      for (;;) {
        await feed.resumed
        this.#take(feed, await next())
      }
    }))
  }

  async #together (session, signal) {
    const next = await this.#open(session, signal, 0, STREAMS)
    const feeds = this.#feeds
    const share = async () => {
      for (;;) {
        const record = await next()
        await feeds[record.stream].hold(record)
      }
    }
    const consume = async feed => {
      for (;;) {
        await feed.resumed
        signal.throwIfAborted()
        this.#take(feed, await feed.held())
      }
    }
    const stopped = new Promise((resolve, reject) => {
      signal.addEventListener('abort', () => { reject(signal.reason) })
    })
    await Promise.race([stopped, Promise.all([share(), ...feeds.map(consume)])])
  }

  #take (feed, { due }) {
    const time = performance.now()
    const delay = time - due
    // The clocks of page and program are two: the least difference counts as none.
    this.#least = Math.min(this.#least, delay)
    feed.take(time, delay)
    const expected = due + this.#least
    const pauses = this.#pauses.filter(({ from, to }) => from <= expected && expected < to)
    // Of its own pause nobody complains.
    const own = pauses.find(pause => pause.feed === feed)
    if (own === undefined) this.#tally(pauses.length > 0).add(delay - this.#least)
    // It is over when what has waited has arrived.
    else if (!feed.isPaused && delay - this.#least <= LATE) own.to = expected
  }

  /** Of the path, the arrangement and whether a stream is paused. */
  #tally (isPaused) {
    const name = `${this.#connection.path}, ${ARRANGEMENTS[this.#arrangement]}` +
      (isPaused ? ', one paused' : '')
    if (!this.#tallies.has(name)) this.#tallies.set(name, new Tally())
    return this.#tallies.get(name)
  }

  #toggle (feed) {
    if (feed.isPaused) {
      feed.resume()
    } else {
      feed.pause()
      this.#pauses.push({ feed, from: performance.now(), to: Infinity })
      // Older ones than any record.
      if (this.#pauses.length > MAX_PAUSES) this.#pauses.shift()
    }
    this.#say(`Stream ${feed.number + 1} ${feed.isPaused ? 'is paused' : 'goes on'}.`)
  }

  show () {
    if (this.#feeds.length === 0) return
    const now = performance.now()
    for (const feed of this.#feeds) feed.show(now, this.#least)
    this.#tally(this.#pauses.some(({ to }) => to === Infinity)).ms += now - this.#shown
    this.#shown = now
    const { tallies } = this.#elements
    tallies.hidden = false
    tallies.tBodies[0].replaceChildren(...[...this.#tallies].map(([name, tally]) => {
      const { records, late, worst, ms } = tally
      const share = records === 0 ? '–' : `${(100 * late / records).toFixed(1)} %`
      return row(name, ms === 0 ? '–' : (1000 * records / ms).toFixed(0), share,
        records === 0 ? '–' : milliseconds(worst))
    }))
  }
}
