// What arrives before the session begins, which is when the peer is authenticated.

import type { CarrierEvents } from './carrier.js'

const MAX_BYTES = 1024 * 1024

/** What an event counts for, beside its payload. */
export const EVENT_COST = 256

export class EarlyEvents {
  #events: CarrierEvents | undefined
  #waiting: Array<(events: CarrierEvents) => void> = []
  #bytes = 0

  start (events: CarrierEvents): void {
    this.#events = events
    for (const report of this.#waiting.splice(0)) report(events)
  }

  /** Reports now, or once the session has begun. False if the peer has sent too much until then. */
  report (report: (events: CarrierEvents) => void, cost = EVENT_COST): boolean {
    if (this.#events !== undefined) {
      report(this.#events)
      return true
    }
    this.#bytes += cost
    this.#waiting.push(report)
    return this.#bytes <= MAX_BYTES
  }
}
