// The addresses of listeners: multiaddrs and the URLs of WebSockets.

import { ConnectError } from './errors.js'

export interface WebRtcAddress {
  readonly kind: 'webrtc'
  readonly text: string
  readonly family: 4 | 6
  readonly host: string
  readonly port: number
  /** SHA-256 of the certificates that the listener may have. */
  readonly certhashes: ReadonlyArray<Uint8Array<ArrayBuffer>>
  readonly peerId: string | undefined
}

export interface WebSocketAddress {
  readonly kind: 'websocket'
  readonly text: string
  readonly url: string
  readonly isTls: boolean
  readonly peerId: string | undefined
}

export type Address = WebRtcAddress | WebSocketAddress

/** Longer ones name no address: the longest has less than 300 characters. */
const MAX_LENGTH = 1024

/** Multihash of SHA2-256: its code, and its length. */
const SHA2_256 = [0x12, 0x20] as const

const invalid = (text: string, why: string): ConnectError =>
  new ConnectError('invalid-address', `${why}: ${text.slice(0, MAX_LENGTH)}`)

/** Parses an address. Throws `ConnectError` for one that can not be dialled. */
export function parseAddress (text: string): Address {
  if (typeof text !== 'string' || text.length > MAX_LENGTH) {
    throw invalid(String(text), 'too long, or no text')
  }
  return text.startsWith('/') ? parseMultiaddr(text) : parseUrl(text)
}

function parseMultiaddr (text: string): Address {
  const [, family = '', host = '', transport = '', port = '', ...rest] = text.split('/')
  const number = /^\d{1,5}$/.test(port) ? Number(port) : 0
  if (number < 1 || number > 65_535) throw invalid(text, 'no port')
  if (transport === 'udp') return parseWebRtc(text, family, host, number, rest)
  if (transport === 'tcp') return parseWebSocket(text, family, host, number, rest)
  throw invalid(text, 'neither udp nor tcp')
}

function parseWebRtc (
  text: string,
  family: string,
  host: string,
  port: number,
  [protocol, ...rest]: string[]
): WebRtcAddress {
  if (protocol !== 'webrtc-direct') throw invalid(text, 'no webrtc-direct')
  const ip = ipOf(text, family, host)
  const certhashes: Array<Uint8Array<ArrayBuffer>> = []
  while (rest[0] === 'certhash') {
    certhashes.push(certhashOf(text, rest[1] ?? ''))
    rest = rest.slice(2)
  }
  const peerId = peerIdOf(text, rest)
  if (certhashes.length === 0) {
    throw new ConnectError('missing-certhash', `no certificate hash: ${text}`)
  }
  return { kind: 'webrtc', text, family: family === 'ip4' ? 4 : 6, host: ip, port, certhashes, peerId }
}

function parseWebSocket (
  text: string,
  family: string,
  host: string,
  port: number,
  rest: string[]
): WebSocketAddress {
  const isTls = rest[0] === 'wss' || (rest[0] === 'tls' && rest[1] === 'ws')
  if (!isTls && rest[0] !== 'ws') throw invalid(text, 'no ws or wss')
  const peerId = peerIdOf(text, rest.slice(rest[0] === 'tls' ? 2 : 1))
  const isName = /^dns[46]?$/.test(family) && /^[\w.-]+$/.test(host)
  const name = isName ? host : family === 'ip6' ? `[${ipOf(text, family, host)}]` : ipOf(text, family, host)
  return { kind: 'websocket', text, url: `${isTls ? 'wss' : 'ws'}://${name}:${port}/`, isTls, peerId }
}

function parseUrl (text: string): WebSocketAddress {
  let url
  try {
    url = new URL(text)
  } catch {
    throw invalid(text, 'neither a multiaddr nor a URL')
  }
  const isTls = url.protocol === 'wss:'
  if (!isTls && url.protocol !== 'ws:') throw invalid(text, 'no ws or wss')
  if (url.hash !== '' || url.username !== '') throw invalid(text, 'a fragment or a user')
  return { kind: 'websocket', text, url: url.href, isTls, peerId: undefined }
}

/** The address in its shortest form. Nothing else may get into SDP. */
function ipOf (text: string, family: string, host: string): string {
  if (family === 'ip4') {
    const parts = host.split('.')
    const isPart = (part: string): boolean => /^\d{1,3}$/.test(part) && Number(part) < 256
    if (parts.length === 4 && parts.every(isPart)) return host
  } else if (family === 'ip6' && /^[\da-fA-F:.]+$/.test(host)) {
    try {
      return new URL(`http://[${host}]`).hostname.slice(1, -1)
    } catch {
      // Reported below.
    }
  }
  throw invalid(text, 'no IP address')
}

function certhashOf (text: string, certhash: string): Uint8Array<ArrayBuffer> {
  try {
    if (certhash[0] === 'u') {
      const base64 = certhash.slice(1).replaceAll('-', '+').replaceAll('_', '/')
      const bytes = Uint8Array.from(atob(base64), char => char.charCodeAt(0))
      const isSha256 = SHA2_256.every((byte, index) => bytes[index] === byte)
      if (bytes.length === 34 && isSha256) return bytes.slice(2)
    }
  } catch {
    // Reported below.
  }
  throw invalid(text, 'the certificate hash is no sha2-256 in base64url')
}

function peerIdOf (text: string, rest: string[]): string | undefined {
  if (rest.length === 0) return undefined
  if (rest.length !== 2 || rest[0] !== 'p2p' || !/^[a-zA-Z0-9]{10,80}$/.test(rest[1]!)) {
    throw invalid(text, `unexpected /${rest.join('/')}`)
  }
  return rest[1]
}

/** The permission that a page needs for an address: Local Network Access. */
export function localNetworkOf (host: string): 'loopback-network' | 'local-network' | undefined {
  if (/^127\.|^::1$/.test(host)) return 'loopback-network'
  const isLocal = /^10\.|^192\.168\.|^169\.254\.|^172\.(1[6-9]|2\d|3[01])\.|^f[cd]|^fe[89ab]/.test(host)
  return isLocal ? 'local-network' : undefined
}
