// The addresses of listeners: multiaddrs and the URLs of WebSockets.

import { ConnectError } from './errors.js'

export interface WebRtcAddress {
  readonly kind: 'webrtc'
  readonly text: string
  readonly host: string
  readonly port: string
  /** SHA-256 of the certificates that the listener may have. */
  readonly certhashes: ReadonlyArray<Uint8Array<ArrayBuffer>>
  readonly peerId: string | undefined
}

export interface WebSocketAddress {
  readonly kind: 'websocket'
  readonly text: string
  readonly url: string
  readonly peerId: string | undefined
}

export type Address = WebRtcAddress | WebSocketAddress

/** Longer ones name no address: the longest has less than 300 characters. */
const MAX_LENGTH = 1024

/** Family, host, protocol, port, transport, certificate hashes, and peer id. */
const MULTIADDR = new RegExp('^/(ip[46]|dns[46]?)/([\\w.:-]+)/(udp|tcp)/([1-9]\\d{0,4})' +
  '/(webrtc-direct|wss?|tls/ws)((?:/certhash/[\\w-]+)*)(?:/p2p/(\\w{10,80}))?$')

/** Parses an address. Throws `ConnectError` for one that can not be dialled. */
export function parseAddress (text: string): Address {
  const refuse = (why: string): never => {
    throw new ConnectError('invalid-address', `${why}: ${String(text).slice(0, MAX_LENGTH)}`)
  }
  const isText = typeof text === 'string' && text.length <= MAX_LENGTH
  const parts = isText && MULTIADDR.exec(text)
  const [, family, host, protocol, port, transport, hashes, peerId] = parts || []
  const name = family === 'ip6' ? `[${host}]` : host
  const isWebRtc = transport === 'webrtc-direct'
  const scheme = isWebRtc ? 'http' : transport === 'ws' ? 'ws' : 'wss'
  let url
  try {
    url = new URL(transport === undefined ? text : `${scheme}://${name}:${port}/`)
  } catch {
    return refuse('no address')
  }
  // A URL accepts other forms of an IPv4 address, and names.
  if (family === 'ip4' && url.hostname !== host) return refuse('no IP address')
  if (!isWebRtc) {
    const isUrl = /^wss?:$/.test(url.protocol) && url.hash + url.username === ''
    if (!isUrl || protocol === 'udp' || hashes) return refuse('no WebSocket')
    return { kind: 'websocket', text, url: url.href, peerId }
  }
  if (family![0] === 'd' || protocol === 'tcp') return refuse('no IP address')
  const certhashes = hashes!.split('/certhash/').slice(1).map(hash => {
    return certhashOf(hash) ?? refuse('no sha2-256 certhash')
  })
  if (certhashes.length === 0) {
    throw new ConnectError('missing-certhash', `no certhash: ${text}`)
  }
  // In the shortest form, and without brackets.
  return {
    kind: 'webrtc',
    text,
    host: url.hostname.replace(/[[\]]/g, ''),
    port: port!,
    certhashes,
    peerId
  }
}

/** The hash in a multihash of SHA2-256, in base64url with its prefix `u`. */
function certhashOf (text: string): Uint8Array<ArrayBuffer> | undefined {
  // 34 bytes, of which the first two say that 32 bytes of SHA2-256 follow.
  if (!/^uEi[\w-]{44}$/.test(text)) return undefined
  const bytes = atob(text.slice(1).replaceAll('-', '+').replaceAll('_', '/'))
  return bytes[1] === ' ' ? Uint8Array.from(bytes.slice(2), char => char.charCodeAt(0)) : undefined
}
