// A minute of throughput and round trips on a canvas.

import * as format from './format.js'

/** In milliseconds. */
const SPAN = 60_000
const MARGIN = { top: 24, right: 8, bottom: 24, left: 8 }
const LINES = 4

/** The least of 1, 2, 3, 5, 10, 20 ... that is not less. */
function ceiling (value, least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, least)))
  const factor = [1, 2, 3, 5, 10].find(factor => factor * power >= Math.max(value, least))
  return factor * power
}

const SERIES = [
  { key: 'received', dash: [], isTime: false },
  { key: 'sent', dash: [8, 4], isTime: false },
  { key: 'roundTrip', property: 'round-trip', dash: [2, 3], isTime: true }
]

export class Plot {
  #canvas
  #samples = []

  constructor (canvas) {
    this.#canvas = canvas
    new ResizeObserver(() => { this.draw() }).observe(canvas)
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => { this.draw() })
  }

  /** Rates in bytes for each second, `roundTrip` in milliseconds; what is unknown is undefined. */
  add (sample) {
    this.#samples.push(sample)
    const start = sample.time - SPAN
    while (this.#samples[0].time < start) this.#samples.shift()
  }

  /** Now, mean and peak of the last minute. */
  figures (key) {
    const values = this.#samples.map(sample => sample[key]).filter(value => value !== undefined)
    const mean = values.length === 0
      ? undefined
      : values.reduce((sum, value) => sum + value, 0) / values.length
    const peak = values.length === 0 ? undefined : Math.max(...values)
    return [this.#samples.at(-1)?.[key], mean, peak]
  }

  draw () {
    const { clientWidth: width, clientHeight: height } = this.#canvas
    const scale = devicePixelRatio
    this.#canvas.width = Math.round(width * scale)
    this.#canvas.height = Math.round(height * scale)
    const context = this.#canvas.getContext('2d')
    context.scale(scale, scale)
    const style = getComputedStyle(this.#canvas)
    const color = name => style.getPropertyValue(`--${name}`)
    const area = {
      left: MARGIN.left,
      top: MARGIN.top,
      width: width - MARGIN.left - MARGIN.right,
      height: height - MARGIN.top - MARGIN.bottom
    }
    const peakOf = isTime => Math.max(0, ...SERIES.filter(series => series.isTime === isTime)
      .map(({ key }) => this.figures(key)[2] ?? 0))
    const ceilings = { rate: ceiling(peakOf(false), 1_000), time: ceiling(peakOf(true), 1) }
    drawGrid(context, area, color, ceilings)
    const end = this.#samples.at(-1)?.time ?? 0
    for (const { key, property = key, dash, isTime } of SERIES) {
      const top = isTime ? ceilings.time : ceilings.rate
      const points = this.#samples.map(sample => sample[key] === undefined
        ? undefined
        : [
            area.left + area.width * (1 - (end - sample.time) / SPAN),
            area.top + area.height * (1 - sample[key] / top)
          ])
      drawLine(context, points, color(property), dash)
    }
  }
}

function drawGrid (context, area, color, ceilings) {
  context.strokeStyle = color('line')
  context.lineWidth = 1
  for (let line = 0; line <= LINES; line++) {
    // On the middle of a pixel, so that it is sharp.
    const y = Math.round(area.top + area.height * line / LINES) + 0.5
    context.beginPath()
    context.moveTo(area.left, y)
    context.lineTo(area.left + area.width, y)
    context.stroke()
  }
  context.font = `13px ${getComputedStyle(context.canvas).fontFamily}`
  const text = (words, x, y, align, name) => {
    context.fillStyle = color(name)
    context.textAlign = align
    context.fillText(words, x, y)
  }
  const [right, below] = [area.left + area.width, area.top + area.height + 17]
  text(format.rate(ceilings.rate), area.left, area.top - 8, 'left', 'received')
  text(format.milliseconds(ceilings.time), right, area.top - 8, 'right', 'round-trip')
  text(`${SPAN / 1000} s ago`, area.left, below, 'left', 'soft')
  text('now', right, below, 'right', 'soft')
}

/** Gaps are where nothing is known. */
function drawLine (context, points, color, dash) {
  context.strokeStyle = color
  context.lineWidth = 2
  context.setLineDash(dash)
  context.beginPath()
  let isDown = false
  for (const point of points) {
    if (point === undefined) isDown = false
    else if (isDown) context.lineTo(...point)
    else {
      context.moveTo(...point)
      isDown = true
    }
  }
  context.stroke()
  context.setLineDash([])
}
