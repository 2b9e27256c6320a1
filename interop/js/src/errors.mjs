const RESET = 'StreamResetError'
const UNFINISHED = 'UnfinishedError'

/** For a channel that was closed without FIN, which js-libp2p itself reports as a clean end. */
export function unfinished (what) {
  return Object.assign(new Error(`${what} was closed without FIN`), { name: UNFINISHED })
}

/**
 * Whether the remote reset the stream.
 *
 * A browser must have seen the RESET. node-datachannel loses a message if the close of its channel
 * follows at once, here about one RESET in eight, and then only the missing FIN shows it.
 */
export function isReset (error) {
  const inBrowser = 'window' in globalThis
  return error?.name === RESET || (!inBrowser && error?.name === UNFINISHED)
}

/** The error of a js-libp2p stream with this status, if any. */
export function errorOfStatus (status) {
  if (status === 'reset') {
    return Object.assign(new Error('the remote reset the stream'), { name: RESET })
  }
  if (status === 'aborted') {
    return Object.assign(new Error('the stream was aborted'), { name: 'AbortError' })
  }
  return undefined
}

/** A message for any error; AggregateError has its reasons in a separate list. */
export function describe (error) {
  const reasons = error?.errors?.map(describe).join('; ')
  const name = error?.name === 'Error' ? undefined : error?.name
  const text = [name, error?.message].filter(Boolean).join(': ') || String(error)
  return reasons ? `${text} (${reasons})` : text
}
