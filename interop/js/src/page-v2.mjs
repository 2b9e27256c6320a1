// Runs in the browser page: webrtc-direct v2 without js-libp2p, up to the server's first Noise
// message on channel 0.

import './polyfill.mjs'
import { CODE_CERTHASH, CODE_IP4, CODE_IP6, CODE_UDP, multiaddr } from '@multiformats/multiaddr'
import { describe } from './errors.mjs'
import { answerSdp, serverCredential } from './v2-sdp.mjs'
import { STEP_MS, within } from './within.mjs'

const SHA2_256_HEADER = [0x12, 0x20]
const PAYLOAD_TAG = 0x12 // field 2, length-delimited
const NOISE_E_BYTES = 32 // the first message of XX: an ephemeral key, nothing else

function base64url (text) {
  const binary = atob(text.replaceAll('-', '+').replaceAll('_', '/'))
  return Uint8Array.from(binary, char => char.charCodeAt(0))
}

function fingerprintOf (certhash) {
  if (certhash[0] !== 'u') {
    throw new Error(`certhash ${certhash} is not base64url`)
  }
  const multihash = base64url(certhash.slice(1))
  if (multihash.length !== 34 || SHA2_256_HEADER.some((byte, i) => multihash[i] !== byte)) {
    throw new Error(`certhash ${certhash} is not a sha2-256 multihash`)
  }
  const hex = byte => byte.toString(16).padStart(2, '0').toUpperCase()
  return Array.from(multihash.subarray(2), hex).join(':')
}

function parseAddress (address) {
  const components = multiaddr(address).getComponents()
  const value = code => components.find(component => component.code === code)?.value
  const ip4 = value(CODE_IP4)
  return {
    family: ip4 != null ? 4 : 6,
    host: ip4 ?? value(CODE_IP6),
    port: value(CODE_UDP),
    fingerprint: fingerprintOf(value(CODE_CERTHASH))
  }
}

/** Reads a varint; undefined if the bytes end inside it. */
function readVarint (bytes, start) {
  let value = 0
  for (let i = start; i < bytes.length; i++) {
    value += (bytes[i] & 0x7f) * 2 ** (7 * (i - start))
    if (bytes[i] < 0x80) return { value, next: i + 1 }
  }
  return undefined
}

/** The payload of the first frame in `bytes`; undefined until the frame is complete. */
function firstPayload (bytes) {
  const prefix = readVarint(bytes, 0)
  if (prefix == null || bytes.length < prefix.next + prefix.value) return undefined
  const body = bytes.subarray(prefix.next, prefix.next + prefix.value)
  const length = readVarint(body, 1)
  if (body[0] !== PAYLOAD_TAG || length == null || body.length < length.next + length.value) {
    throw new Error(`first frame does not begin with a payload: ${body}`)
  }
  return body.subarray(length.next, length.next + length.value)
}

function checkNoiseMessage (payload) {
  const length = new DataView(payload.buffer, payload.byteOffset).getUint16(0)
  if (length !== NOISE_E_BYTES || payload.length !== 2 + NOISE_E_BYTES) {
    const has = payload.length - 2
    throw new Error(`first Noise message says ${length} bytes and has ${has}, not ${NOISE_E_BYTES}`)
  }
}

function firstNoiseMessage (channel) {
  return new Promise((resolve, reject) => {
    let received = new Uint8Array()
    channel.binaryType = 'arraybuffer'
    channel.onmessage = ({ data }) => {
      received = Uint8Array.of(...received, ...new Uint8Array(data))
      try {
        const payload = firstPayload(received)
        if (payload != null) resolve(payload)
      } catch (error) {
        reject(error)
      }
    }
    channel.onclose = () => reject(new Error('channel 0 closed before the first Noise message'))
  })
}

async function dialV2 (address) {
  const server = parseAddress(address)
  const connection = new RTCPeerConnection()
  try {
    const channel = connection.createDataChannel('', { negotiated: true, id: 0 })
    const noise = firstNoiseMessage(channel)
    await connection.setLocalDescription(await connection.createOffer())
    const credential = serverCredential(connection.localDescription.sdp)
    const sdp = answerSdp({ ...server, credential })
    await connection.setRemoteDescription({ type: 'answer', sdp })
    const states = () => `ICE ${connection.iceConnectionState}, ` +
      `connection ${connection.connectionState}, channel ${channel.readyState}`
    checkNoiseMessage(await within(STEP_MS, 'first Noise message', noise).catch(error => {
      throw new Error(`${describe(error)} (${states()})`)
    }))
  } finally {
    connection.close()
  }
}

window.run = async ({ address }) => {
  const start = performance.now()
  try {
    await dialV2(address)
    await window.report({ case: 'v2', ok: true, ms: Math.round(performance.now() - start) })
    return true
  } catch (error) {
    await window.report({ case: 'v2', ok: false, error: describe(error) })
    return false
  }
}
