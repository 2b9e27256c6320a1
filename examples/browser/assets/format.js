// Figures as text.

const UNITS = ['B', 'kB', 'MB', 'GB', 'TB']
const number = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 })

export function bytes (value) {
  let unit = 0
  // 999.5 would become 1,000 by rounding.
  while (value >= 999.5 && unit < UNITS.length - 1) {
    value /= 1000
    unit += 1
  }
  return `${number.format(value)} ${UNITS[unit]}`
}

export const rate = value => value === undefined ? '–' : `${bytes(value)}/s`

export const milliseconds = value => value === undefined ? '–' : `${number.format(value)} ms`

export const percent = value => `${Math.round(100 * value)} %`

/** An error of the package has a kind, which says more than the text of a browser. */
export const failure = error =>
  error?.kind === undefined ? String(error?.message ?? error) : `${error.kind}: ${error.message}`

/** Values that grow, with their rates over the last seconds. */
export class Meter {
  #samples = []

  /** In milliseconds. Longer than the pauses of a busy page. */
  static WINDOW = 5_000

  add (time, value) {
    this.#samples.push([time, value])
    const start = time - Meter.WINDOW
    while (this.#samples.length > 2 && this.#samples[1][0] <= start) this.#samples.shift()
  }

  /** For each second, from `since` on if that is later than the window. */
  rate (since = -Infinity) {
    const samples = this.#samples.filter(([time]) => time >= since)
    if (samples.length < 2) return undefined
    const [[start, first], [end, last]] = [samples[0], samples.at(-1)]
    return 1000 * (last - first) / (end - start)
  }
}
