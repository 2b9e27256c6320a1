// Sessions in a dedicated worker.

import { webRtcPort } from '../../dist/worker.js'
import { assert, assertEqual, within } from './tools.mjs'

const MIB = 1024 * 1024

/** Sends one command to a worker of its own, and returns its answer. */
async function inAWorker (message, limit, transfer = []) {
  const worker = new Worker('/worker.js', { type: 'module' })
  const answer = new Promise((resolve, reject) => {
    worker.onmessage = ({ data: { result, error } }) =>
      error === undefined ? resolve(result) : reject(new Error(error))
    worker.onerror = event => reject(new Error(event.message))
  })
  worker.postMessage(message, transfer)
  try {
    return await within(limit, 'the worker', answer)
  } finally {
    worker.terminate()
  }
}

/** A worker can not dial by itself. */
export async function dialInAWorker ({ address }) {
  const kind = await inAWorker({ command: 'dial', address }, 5_000)
  assertEqual(kind, 'unsupported-in-worker', 'kind')
}

function run (name, parameters, limit) {
  const port = webRtcPort()
  return inAWorker({ command: 'run', name, parameters, port }, limit, [port])
}

export const echoInAWorker = parameters => run('echoOfEverySize', parameters, 20_000)

export const openedByTheListenerInAWorker = parameters =>
  run('openedByTheListener', parameters, 10_000)

export const manySubstreamsInAWorker = parameters => run('manySubstreams', parameters, 20_000)

/** The page is busy for 2 s, and the transfer in the worker goes on. */
export async function pageIsBusy (parameters) {
  const length = 160 * MIB
  const transfer = run('downloadWithReports', { ...parameters, length }, 110_000)
  await new Promise(resolve => { setTimeout(resolve, 1_000) })
  const busyUntil = performance.now() + 2_000
  while (performance.now() < busyUntil);
  const result = await transfer
  assertEqual(result.length, length, 'bytes')
  assert(result.end - result.start > 3_000, 'it was done before the page was busy')
  assert(result.pause < 1_000, `nothing arrived for ${Math.round(result.pause)} ms`)
  return { 'longest-pause-ms': Math.round(result.pause) }
}
