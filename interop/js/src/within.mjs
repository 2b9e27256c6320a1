import { describe } from './errors.mjs'

/** How long one step of a case may take. js-libp2p itself waits 10 s for FIN_ACK; let it say so first. */
export const STEP_MS = 15_000

/** Settles as `promise` does, or fails after `ms` with a message that names what was waited for. */
export function within (ms, what, promise) {
  let timer
  const expiry = new Promise((resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`no ${what} within ${ms} ms`)), ms)
  })
  return Promise.race([promise, expiry]).finally(() => clearTimeout(timer))
}

/**
 * Runs `start(signal)` for at most STEP_MS. Whatever fails names `what`: js-libp2p's own timeouts
 * say no more than 'signal timed out'. What goes on after a failure is told to stop by the signal.
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
