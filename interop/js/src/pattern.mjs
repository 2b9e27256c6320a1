// The content of every payload: the byte at offset i is i % 251.

const PERIOD = 251
const PIECE = 64 * 1024
const TEMPLATE = Uint8Array.from({ length: PERIOD + PIECE }, (_, i) => i % PERIOD)

function piece (offset, length) {
  const start = offset % PERIOD
  return TEMPLATE.subarray(start, start + length)
}

/** The pattern from offset 0 to `total`, in pieces that may be sent but not changed. */
export function * patternPieces (total) {
  for (let offset = 0; offset < total; offset += PIECE) {
    yield piece(offset, Math.min(PIECE, total - offset))
  }
}

/** Checks bytes against the pattern as they arrive; the first wrong byte throws. */
export class PatternCheck {
  count = 0

  update (bytes) {
    for (const byte of bytes) {
      if (byte !== this.count % PERIOD) {
        throw new Error(`wrong byte at offset ${this.count}: ${byte}, not ${this.count % PERIOD}`)
      }
      this.count++
    }
  }

  expectTotal (total) {
    if (this.count !== total) {
      throw new Error(`${this.count} bytes arrived, not ${total}`)
    }
  }
}
