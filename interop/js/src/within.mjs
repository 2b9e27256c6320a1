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

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))
