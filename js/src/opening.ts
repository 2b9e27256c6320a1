// The limits of substreams, in both directions: docs/wire.md section 3. They work like MAX_STREAMS
// of QUIC: totals since the session began, which never fall.

/** Substreams that may be opened before the limit of the peer is known. */
const EARLY_SUBSTREAMS = 64

export class SubstreamLimits {
  /** Whether the peer supports credit; undefined while that is not known. */
  peerHasCredit: boolean | undefined
  /** The limit of the peer; undefined while it is awaited. */
  #peerLimit: number | undefined
  opened = 0
  peerOpened = 0
  #announced = 0

  /** Whether a limit of the peer may still arrive. */
  get awaitsLimit (): boolean {
    return this.peerHasCredit !== false && this.#peerLimit === undefined
  }

  get mayOpen (): boolean {
    if (this.#peerLimit !== undefined) return this.opened < this.#peerLimit
    return this.opened < EARLY_SUBSTREAMS || !this.awaitsLimit
  }

  /** Returns whether it has an effect. */
  onPeerLimit (limit: number): boolean {
    if (this.#peerLimit !== undefined && this.#peerLimit !== Infinity && limit <= this.#peerLimit) {
      return false
    }
    this.peerHasCredit = true
    this.#peerLimit = limit
    return true
  }

  /** Payload has arrived without credit, on a substream that had none. */
  onPayloadWithoutCredit (): void {
    this.peerHasCredit ??= false
  }

  /** The peer has announced no limit in time. */
  onSilence (): void {
    this.peerHasCredit ??= false
    this.#peerLimit ??= Infinity
  }

  /** The peer has opened a substream. Returns whether that is abuse. */
  onOpened (): boolean {
    this.peerOpened += 1
    return this.#announced > 0 && this.peerOpened > this.#announced + EARLY_SUBSTREAMS
  }

  /** Whether the peer was allowed to open the last one. */
  get isPromised (): boolean {
    return this.peerOpened <= this.#announced
  }

  /** The limit to announce now, when `live` substreams of the peer of at most `max` are left. */
  due (live: number, max: number): number | undefined {
    if (this.peerHasCredit !== true) return undefined
    const next = this.peerOpened - live + max
    const more = next - this.#announced
    const isWaiting = this.peerOpened >= this.#announced
    if (more <= 0 || (!isWaiting && more < max / 4)) return undefined
    this.#announced = next
    return next
  }
}
