// Brings the sections together, and shows their figures.

import { Connection } from './connection.js'
import { byId } from './dom.js'
import { FileEcho } from './file.js'
import * as format from './format.js'
import { Plot } from './plot.js'
import { Records } from './records.js'
import { Substreams } from './substreams.js'
import { Transfers } from './transfer.js'

/** Between two samples, in milliseconds. */
const INTERVAL = 500
/** Between two redraws for people who asked for less motion. */
const CALM_INTERVAL = 2_000

const connection = new Connection()
const plot = new Plot(byId('plot'))
const substreams = new Substreams(connection)
const records = new Records(connection)
new FileEcho(connection)

/** How to connect, as the form has it. */
function options () {
  const form = new FormData(byId('connect-form'))
  return { way: form.get('way'), path: form.get('path'), isBlocked: byId('blocked').checked }
}

new Transfers(options)

byId('connect-form').addEventListener('submit', event => {
  event.preventDefault()
  // What has failed is in the status.
  connection.ensure(options()).catch(() => {})
})
byId('disconnect').addEventListener('click', () => { connection.disconnect() })

connection.addEventListener('change', () => {
  byId('connect').disabled = connection.state !== 'idle'
  byId('disconnect').disabled = connection.state === 'idle'
  byId('connection-status').textContent = connection.status
  const table = byId('attempts')
  table.hidden = connection.attempts.length === 0
  table.tBodies[0].replaceChildren(...connection.attempts.map(([carrier, address, outcome]) => {
    const row = document.createElement('tr')
    const name = document.createElement('th')
    name.scope = 'row'
    const detail = document.createElement('small')
    detail.textContent = address
    name.append(carrier, detail)
    row.append(name)
    row.insertCell().textContent = outcome
    return row
  }))
})

byId('freeze').addEventListener('click', event => {
  const isFrozen = event.target.ariaPressed !== 'true'
  event.target.ariaPressed = String(isFrozen)
})

const reducedMotion = matchMedia('(prefers-reduced-motion: reduce)')
let lastDrawn = 0

function showPath (time) {
  if (byId('freeze').ariaPressed === 'true') return
  if (reducedMotion.matches && time - lastDrawn < CALM_INTERVAL) return
  lastDrawn = time
  plot.draw()
  const rows = byId('path-figures').tBodies[0].rows
  const { rate, milliseconds } = format
  const texts = [['received', rate], ['sent', rate], ['roundTrip', milliseconds]]
  for (const [index, [key, text]] of texts.entries()) {
    const cells = [...rows[index].cells].slice(1)
    for (const [at, value] of plot.figures(key).entries()) cells[at].textContent = text(value)
  }
}

/** What the session had counted at the sample before. */
let before

async function sample () {
  const { session } = connection
  const stats = await session?.getStats()
  const time = performance.now()
  const since = before?.session === session && session !== undefined ? before : undefined
  const rateOf = key => since === undefined
    ? undefined
    : 1000 * (stats[key] - since.stats[key]) / (time - since.time)
  plot.add({
    time,
    received: rateOf('bytesReceived'),
    sent: rateOf('bytesSent'),
    roundTrip: connection.roundTrip
  })
  before = { session, stats, time }
  substreams.sample(time)
  substreams.show()
  records.show()
  byId('unread').textContent =
    stats === undefined ? '–' : format.bytes(stats.bytesReceived - connection.consumed)
  byId('committed').textContent = stats === undefined ? '–' : format.bytes(stats.committed)
  showPath(time)
}

/** The next sample is taken after the one before, however long that took. */
async function sampleAgain () {
  try {
    await sample()
  } catch (error) {
    // The session has ended under the sample; the next has none.
    console.debug(error)
  }
  setTimeout(sampleAgain, INTERVAL)
}

void sampleAgain()
