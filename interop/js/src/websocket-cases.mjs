// The carrier over a foreign WebSocket. Runs on `ws` in Node and on the browser's own WebSocket.

import { describe } from './errors.mjs'
import { FLAG, concat, decode, encode } from './websocket-frames.mjs'
import { sleep, within } from './within.mjs'

const STEP_MS = 20_000
const PROTOCOL = 'anabranch.v1'

const closeOf = socket => within(STEP_MS, 'close', new Promise(resolve => {
  socket.addEventListener('close', event => resolve(event))
  // A browser reports no more than that.
  socket.addEventListener('error', () => {})
}))

const opened = socket => within(STEP_MS, 'opening', new Promise((resolve, reject) => {
  socket.addEventListener('open', () => resolve())
  socket.addEventListener('close', ({ code, reason }) => {
    reject(new Error(`closed with ${code} ${reason}`))
  })
  socket.addEventListener('error', () => {})
}))

/** Opens a socket whose frames are read with `next`. */
async function open (WebSocket, url, options) {
  const socket = options == null
    ? new WebSocket(url, PROTOCOL)
    : new WebSocket(url, PROTOCOL, options)
  socket.binaryType = 'arraybuffer'
  const frames = []
  let wake = () => {}
  socket.addEventListener('message', ({ data }) => {
    frames.push(...decode(new Uint8Array(data)))
    wake()
  })
  await opened(socket)
  if (socket.protocol !== PROTOCOL) throw new Error(`subprotocol ${socket.protocol}`)
  const next = () => within(STEP_MS, 'frame', (async () => {
    while (frames.length === 0) await new Promise(resolve => { wake = resolve })
    return frames.shift()
  })())
  return { socket, next }
}

/** Opens substream `stream`, sends `count` frames and the end, expects the echo and FIN_ACK. */
async function echo ({ socket, next }, stream, count) {
  const sent = Array.from({ length: 1000 }, (_, i) => (i + stream) % 251)
  const first = encode({ stream, label: '', message: sent, maxData: 1 << 20 })
  const more = Array.from({ length: count - 1 }, () => encode({ stream, message: sent }))
  // Everything in one message, and the end in a message of its own.
  socket.send(concat(first, ...more))
  socket.send(encode({ stream, flag: FLAG.FIN }))
  const got = []
  let [fin, finAck, credit] = [false, false, false]
  while (!fin || !finAck) {
    const frame = await next()
    // The limit of open substreams, which belongs to the connection and to no substream.
    if (frame.stream === 0 && frame.maxSubstreams >= 256) continue
    if (frame.stream !== stream) throw new Error(`a frame of substream ${frame.stream}`)
    if (frame.message != null) got.push(...frame.message)
    if (frame.maxData != null) credit = true
    if (frame.flag === FLAG.FIN) fin = true
    if (frame.flag === FLAG.FIN_ACK) finAck = true
    if (frame.flag === FLAG.RESET_STREAM) throw new Error(`reset with ${frame.errorCode}`)
  }
  socket.send(encode({ stream, flag: FLAG.FIN_ACK }))
  const wanted = Array.from({ length: count }, () => sent).flat()
  if (got.length !== wanted.length || got.some((byte, i) => byte !== wanted[i])) {
    throw new Error(`${got.length} bytes came back, of ${wanted.length}, or others`)
  }
  if (!credit) throw new Error('no credit was shown')
}

async function closed (socket, code) {
  const closing = closeOf(socket)
  if (code == null) socket.close(1000)
  const event = await closing
  const wanted = code ?? 1000
  if (event.code !== wanted) {
    throw new Error(`closed with ${event.code} ${event.reason}, not ${wanted}`)
  }
}

const CASES = {
  'refused without the subprotocol': async (WebSocket, url) => {
    const socket = new WebSocket(url)
    let isOpen = false
    socket.addEventListener('open', () => { isOpen = true })
    const { code } = await closeOf(socket)
    if (isOpen || code !== 1006) throw new Error(`open: ${isOpen}, closed with ${code}`)
  },
  'refused with another subprotocol': async (WebSocket, url) => {
    const socket = new WebSocket(url, ['chat', 'anabranch.v9'])
    const { code } = await closeOf(socket)
    if (code !== 1006) throw new Error(`closed with ${code}`)
  },
  'substreams are echoed': async (WebSocket, url) => {
    const connection = await open(WebSocket, url)
    for (const [stream, count] of [[2, 1], [4, 50], [10, 3]]) await echo(connection, stream, count)
    await closed(connection.socket)
  },
  'pings are answered, and an idle connection lives': async (WebSocket, url, idleMs) => {
    const connection = await open(WebSocket, url)
    await sleep(2 * idleMs)
    await echo(connection, 2, 1)
    await closed(connection.socket)
  },
  'text is closed with 1003': async (WebSocket, url) => {
    const { socket } = await open(WebSocket, url)
    const closing = closed(socket, 1003)
    socket.send('hello')
    await closing
  },
  'a number that is not above the last is closed with 1002': async (WebSocket, url) => {
    const { socket } = await open(WebSocket, url)
    const closing = closed(socket, 1002)
    socket.send(encode({ stream: 8, label: '' }))
    socket.send(encode({ stream: 6, label: '' }))
    await closing
  }
}

// Only with `ws`, which can hold back the pong.
const CASES_WITHOUT_PONG = {
  'who answers no ping is left with 1011': async (WebSocket, url) => {
    const { socket } = await open(WebSocket, url, { autoPong: false })
    await closed(socket, 1011)
  }
}

/** Runs all cases; true if all passed. */
export async function runWebSocketCases ({ WebSocket, url, idleMs, holdsPongs, report }) {
  let passed = true
  const cases = holdsPongs ? { ...CASES, ...CASES_WITHOUT_PONG } : CASES
  for (const [name, run] of Object.entries(cases)) {
    try {
      await run(WebSocket, url, idleMs)
      await report({ case: name, ok: true })
    } catch (error) {
      passed = false
      await report({ case: name, ok: false, error: describe(error) })
    }
  }
  return passed
}
