// A promise with its ends. `Promise.withResolvers` is newer than some browsers that have the rest.

export interface Deferred<T> {
  readonly promise: Promise<T>
  resolve (value: T | PromiseLike<T>): void
  reject (error: unknown): void
}

export const delay = (ms?: number): Promise<void> =>
  new Promise(resolve => { setTimeout(resolve, ms) })

/** A timer that alone does not keep a process of Node alive. */
export function watchdog (bark: () => void, ms: number): ReturnType<typeof setTimeout> {
  const timer: { unref?: () => void } & ReturnType<typeof setTimeout> = setTimeout(bark, ms)
  timer.unref?.()
  return timer
}

/** Waits until `promise` is settled, for `ms` at most. */
export async function atMost (ms: number, promise: Promise<unknown>): Promise<void> {
  let timer: ReturnType<typeof setTimeout> | undefined
  const late = new Promise(resolve => { timer = setTimeout(resolve, ms) })
  await Promise.race([promise, late]).catch(() => {})
  clearTimeout(timer)
}

/** A rejection that nobody awaits is not reported as unhandled. */
export function deferred<T> (): Deferred<T> {
  let resolve!: Deferred<T>['resolve']
  let reject!: Deferred<T>['reject']
  const promise = new Promise<T>((_resolve, _reject) => {
    resolve = _resolve
    reject = _reject
  })
  promise.catch(() => {})
  return { promise, resolve, reject }
}

/** What `dialling` resolves to, unless `failed` rejects or the signal is aborted before. */
export async function unlessFailed<T> (
  dialling: Promise<T>,
  failed: Deferred<never>,
  signal: AbortSignal
): Promise<T> {
  const abort = (): void => { failed.reject(signal.reason) }
  if (signal.aborted) abort()
  signal.addEventListener('abort', abort)
  try {
    return await Promise.race([dialling, failed.promise])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}
