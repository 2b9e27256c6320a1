// Who sends next: the greatest priority, and in turns within one.

import type { Substream } from './substream.js'

export class Schedule {
  /** A set keeps the order of insertion, and gives up any member at once. */
  readonly #queues = new Map<number, Set<Substream>>()
  /** The priorities that are queued, greatest first. */
  #priorities: number[] = []

  add (substream: Substream): void {
    if (substream.scheduledAs !== undefined) return
    const { priority } = substream
    let queue = this.#queues.get(priority)
    if (queue === undefined) {
      queue = new Set()
      this.#queues.set(priority, queue)
      this.#priorities = [...this.#queues.keys()].sort((a, b) => b - a)
    }
    queue.add(substream)
    substream.scheduledAs = priority
  }

  remove (substream: Substream): void {
    const priority = substream.scheduledAs
    if (priority === undefined) return
    substream.scheduledAs = undefined
    const queue = this.#queues.get(priority)
    queue?.delete(substream)
    if (queue?.size === 0) {
      this.#queues.delete(priority)
      this.#priorities = this.#priorities.filter(other => other !== priority)
    }
  }

  /** Takes the substream whose turn it is. */
  next (): Substream | undefined {
    for (const priority of this.#priorities) {
      for (const substream of this.#queues.get(priority) ?? []) {
        this.remove(substream)
        return substream
      }
    }
    return undefined
  }
}
