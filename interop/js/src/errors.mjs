const RESET = 'StreamResetError'
const UNFINISHED = 'UnfinishedError'

/** For a channel that was closed although no FIN had come; js-libp2p itself takes it for a clean end. */
export function unfinished (what) {
  return Object.assign(new Error(`${what} was closed without FIN`), { name: UNFINISHED })
}

/**
 * Whether the remote reset the stream.
 *
 * A browser must have seen the RESET. node-datachannel loses a message when the close of its
 * channel follows at once, here about one RESET in eight, and then only the missing FIN tells.
 */
export function isReset (error) {
  const inBrowser = 'window' in globalThis
  return error?.name === RESET || (!inBrowser && error?.name === UNFINISHED)
}

/** The error a js-libp2p stream of this status ended with, if it did. */
export function errorOfStatus (status) {
  if (status === 'reset') return Object.assign(new Error('the remote reset the stream'), { name: RESET })
  if (status === 'aborted') return Object.assign(new Error('the stream was aborted'), { name: 'AbortError' })
  return undefined
}

/** A message for an error of any sort; AggregateError keeps the reasons in a list of its own. */
export function describe (error) {
  const reasons = error?.errors?.map(describe).join('; ')
  const name = error?.name === 'Error' ? undefined : error?.name
  const text = [name, error?.message].filter(Boolean).join(': ') || String(error)
  return reasons ? `${text} (${reasons})` : text
}
