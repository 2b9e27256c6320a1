// What a session needs of a transport: ordered, reliable channels that carry frames.

import type { PathStats } from './api.js'
import type { Frame } from './frame.js'
import type { SessionError } from './errors.js'

/** One channel. It drops what arrives after its end. */
export interface Channel {
  /** Whether `send` may be called. `CarrierEvents.channelOpen` reports when it becomes true. */
  readonly isOpen: boolean
  /** Bytes of it that wait in this process. */
  readonly queued: number
  send (frame: Frame): void
  /** Both directions have ended. The side that has opened a channel closes it. */
  finish (isOpener: boolean): void
}

/** What a carrier reports. */
export interface CarrierEvents {
  /** The peer has opened a channel. */
  opened (channel: Channel, label: string): void
  /** A channel that this side has opened is open. */
  channelOpen (channel: Channel): void
  frame (channel: Channel, frame: Frame): void
  /** What has arrived on a channel are no frames. Nothing follows. */
  badFraming (channel: Channel): void
  /** The peer has closed a channel, or it has failed. */
  closedByPeer (channel: Channel): void
  /** There is room again, after `awaitRoom`. */
  writable (): void
  /** A frame about the session. */
  notice (frame: Frame): void
  /** A frame that says nothing: late, or malformed and about no substream. */
  ineffective (): void
  /** The last event. */
  ended (error: SessionError): void
}

export interface Carrier {
  /** Whether every peer supports credit, and sends it first on each substream. */
  readonly knowsCredit: boolean
  /** Bytes that the carrier adds to a frame. */
  readonly overhead: number
  /** Where it reports. Nothing is reported before this is set. */
  start (events: CarrierEvents): void
  /** Opens a channel, which is ready later. */
  open (label: string): Channel
  /** Bytes that may be sent now. */
  room (): number
  /** Asks for `CarrierEvents.writable`. */
  awaitRoom (): void
  /** Sends a frame about the session. */
  sendNotice (frame: Frame): void
  /** Sends what is queued, and closes. It has `ms` for that, and until the peer has answered. */
  end (cause: SessionError, ms: number): Promise<void>
  stats (): Promise<PathStats>
}
