// Payloads, to and from the listener.

import { receivePayload, sendPayload } from '../../dist/payload.js'
import {
  assert,
  assertEqual,
  errorOf,
  open,
  pattern,
  sameBytes,
  within,
  withSession
} from './tools.mjs'

const put = async (session, source, options) =>
  sendPayload(await open(session, '/put'), source, options)

const get = async (session, options) => receivePayload(await open(session, '/get'), options)

const text = value => new TextEncoder().encode(value)

/** A file goes there in every form, comes back, and is resumed where the prefix is right. */
export const payloads = parameters => withSession(parameters, {}, async session => {
  const content = pattern(3_000_000)
  const file = new File([content], 'river.png')
  const progress = []
  const sent = await put(session, file, {
    metadata: text(file.name),
    hashed: true,
    onProgress: ({ transferred, total }) => progress.push([transferred, total])
  })
  assertEqual(sent, { total: content.length, resumedFrom: 0 }, 'sent')
  assertEqual(progress.at(-1), [content.length, content.length], 'progress')

  const whole = await get(session, {})
  assertEqual(new TextDecoder().decode(whole.metadata), 'from-listener', 'metadata')
  assertEqual(
    [whole.total, whole.isHashed, whole.isResumable],
    [content.length, true, true],
    'header'
  )
  assert(sameBytes(await whole.bytes(content.length), content), 'other bytes')

  const prefix = new Blob([content.subarray(0, 1_000_000)])
  const rest = await get(session, {})
  assertEqual(await rest.resume(prefix), prefix.size, 'offset')
  const pieces = []
  const received = await rest.copyTo(new WritableStream({ write: piece => { pieces.push(piece) } }))
  assertEqual([received.total, received.resumedFrom], [content.length, prefix.size], 'received')
  const joined = new Uint8Array(await new Blob([prefix, ...pieces]).arrayBuffer())
  assert(sameBytes(joined, content), 'other bytes after the prefix')
  const digest = new Uint8Array(await crypto.subtle.digest('SHA-256', content))
  assert(sameBytes(received.hash, digest), 'another hash than that of WebCrypto')

  const other = await get(session, {})
  assertEqual(await other.resume(new Blob([new Uint8Array(1000)])), 0, 'offset of another prefix')
  assert(sameBytes(await other.bytes(content.length), content), 'other bytes')

  // The listener has all of it.
  const again = await put(session, file, { metadata: text('again'), resumable: true })
  assertEqual(again, { total: content.length, resumedFrom: content.length }, 'sent again')
  const stream = new Blob([content.subarray(0, 500_000)]).stream()
  assertEqual((await put(session, stream, { metadata: text('stream') })).total, 500_000, 'stream')
})

/** Limits, cancelling, and a source that fails. */
export const payloadsThatFail = parameters => withSession(parameters, {}, async session => {
  const content = pattern(3_000_000)
  await put(session, content, { metadata: text('stored') })
  const kindOf = async (promise, what) => (await within(10_000, what, errorOf(promise, what))).kind
  assertEqual(
    await kindOf(put(session, content, { maxTotal: 1000 }), 'maxTotal'),
    'too-large',
    'put'
  )
  assertEqual(await kindOf(get(session, { maxTotal: 1000 }), 'maxTotal'), 'too-large', 'get')
  const limited = await get(session, {})
  assertEqual(await kindOf(limited.bytes(1000), 'limit'), 'too-large', 'bytes')

  const failing = await get(session, {})
  const target = new WritableStream({ write () { throw new Error('disk') } })
  assertEqual(await kindOf(failing.copyTo(target), 'target'), 'local-failure', 'target')

  const controller = new AbortController()
  const endless = new ReadableStream({ pull: source => source.enqueue(pattern(100_000)) })
  const cancelled = kindOf(put(session, endless, { signal: controller.signal }), 'cancel')
  controller.abort()
  assertEqual(await cancelled, 'cancelled', 'cancel')

  const broken = new ReadableStream({ pull: source => source.error(new Error('disk')) })
  assertEqual(await kindOf(put(session, broken), 'source'), 'local-failure', 'source')
})
