// A process of Node ends when its last session has: no timer keeps it alive.

import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer } from 'node:http'
import { after, before, test } from 'node:test'
import { encodeFrame, FakeChannel, Flag, session as start, settle } from './fake.mjs'
import { load } from './modules.mjs'

const { watchSession } = await load("export { watchSession } from './webrtc/watch.js'")

/** What RFC 6455 section 4.2.2 adds to the key of the client. */
const ACCEPT = '258EAFA5-E914-47DA-95CA-C5AB0DC85B11'
const BINARY = 0x82
const CLOSE = 0x88

/** Milliseconds from the end of the work to that of the process, on a busy machine too. */
const LIMIT = 1_500

const CERTHASH = `u${Buffer.from([0x12, 0x20, ...new Uint8Array(32)]).toString('base64url')}`

const message = (kind, payload) => Buffer.from([kind, payload.length, ...payload])

/** The opcodes of whole messages with less than 126 bytes, of which a client masks the payload. */
function kindsOf (bytes) {
  const kinds = []
  for (let at = 0; at < bytes.length; at += 6 + (bytes[at + 1] & 127)) kinds.push(bytes[at])
  return kinds
}

/** A WebSocket server that answers a close. At `/ends` it opens a substream, and closes itself. */
const server = createServer().on('upgrade', (request, socket) => {
  const hash = createHash('sha1').update(request.headers['sec-websocket-key'] + ACCEPT)
  socket.write([
    'HTTP/1.1 101 Switching Protocols', 'Upgrade: websocket', 'Connection: Upgrade',
    `Sec-WebSocket-Accept: ${hash.digest('base64')}`,
    `Sec-WebSocket-Protocol: ${request.headers['sec-websocket-protocol']}`, '', ''
  ].join('\r\n'))
  const end = () => { socket.end(message(CLOSE, [1000 >> 8, 1000 & 255])) }
  if (request.url === '/ends') {
    socket.write(message(BINARY, Buffer.concat([
      { stream: 1, label: '/whole' }, { stream: 1, payload: Uint8Array.of(1) },
      { stream: 1, flag: Flag.StopSending }, { stream: 1, flag: Flag.Fin }
    ].map(encodeFrame))))
    setTimeout(end, 100)
  }
  socket.on('data', bytes => { if (kindsOf(bytes).includes(CLOSE)) end() })
  socket.on('error', () => {})
})

before(async () => {
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
})

after(() => { server.close() })

/** How long a program with the exports of the package runs after its last line. */
async function lingers (code) {
  const entry = new URL('../dist/index.js', import.meta.url)
  const program = `import { certificateHash, connect, connectAny } from '${entry}'
    const url = 'ws://127.0.0.1:${server.address().port}'
    const options = { security: certificateHash, plaintextWebSockets: true }
    ${code}
    console.log('done')`
  // A later Node than 20 has a WebSocket without the option, and ignores it.
  const child = spawn(process.execPath, [
    '--experimental-websocket', '--input-type=module', '--eval', program
  ], { stdio: ['ignore', 'pipe', 'inherit'] })
  const exited = once(child, 'exit')
  const late = setTimeout(() => { child.kill('SIGKILL') }, 20_000)
  await Promise.race([once(child.stdout, 'data'), exited])
  const done = performance.now()
  const [status] = await exited
  clearTimeout(late)
  assert.equal(status, 0)
  return performance.now() - done
}

async function ends (code) {
  const ms = await lingers(code)
  assert.ok(ms < LIMIT, `after ${Math.round(ms)} ms`)
}

test('after a session that this side has closed', () => ends(`
  const session = await connect(url, options)
  await session.createBidirectionalStream({ protocol: '/x' })
  session.close()
  await session.closed`))

test('after a session that has ended with a substream to accept', () => ends(`
  const session = await connect(url + '/ends', options)
  await session.closed`))

test('after a race of addresses, however long the head start was', () => ends(`
  const webRtc = async () => { throw new Error('no path') }
  const addresses = ['/ip4/127.0.0.1/udp/9/webrtc-direct/certhash/${CERTHASH}', url]
  const { session } = await connectAny(addresses, {
    ...options, webRtc, webSocketHeadStart: 15_000, addressDelay: 15_000
  })
  session.close()
  await session.closed`))

test('of a session over WebRTC no timer outlives it', async () => {
  const timers = () => process.getActiveResourcesInfo().filter(name => name === 'Timeout').length
  const before = timers()
  const { session, carrier, zero } = start()
  watchSession(
    { iceConnectionState: 'disconnected', connectionState: 'connected' },
    15_000,
    error => { carrier.fail(error) }
  )
  // One to accept, and one that was refused, which its opener closes.
  carrier.onDataChannel(new FakeChannel('/one'))
  carrier.onDataChannel(new FakeChannel('/two'))
  await session.incomingBidirectionalStreams.cancel()
  zero.finishClose()
  await session.closed
  await settle()
  assert.equal(timers(), before)
})
