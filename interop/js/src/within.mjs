import { describe } from './errors.mjs'

/** Limit of a step of a case: longer than the 10 s of js-libp2p for FIN_ACK, so that it reports. */
export const STEP_MS = 15_000

/** Settles as `promise` does, or fails after `ms` with a message that names the awaited event. */
export function within (ms, what, promise) {
  let timer
  const expiry = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${ms} ms`)), ms)
  })
  return Promise.race([promise, expiry]).finally(() => clearTimeout(timer))
}

/**
 * Runs `start(signal)` for at most STEP_MS. Every error names `what`: js-libp2p's own timeouts
 * report no more than 'signal timed out'. The signal stops what continues after a failure.
 */
export async function step (what, start) {
  const controller = new AbortController()
  try {
    return await within(STEP_MS, 'end of it', Promise.resolve(start(controller.signal)))
  } catch (error) {
    controller.abort(error)
    throw new Error(`${what}: ${describe(error)}`, { cause: error })
  }
}

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
