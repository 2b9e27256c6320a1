// A promise with its ends. `Promise.withResolvers` is newer than some browsers that have the rest.

export interface Deferred<T> {
  readonly promise: Promise<T>
  resolve (value: T | PromiseLike<T>): void
  reject (error: unknown): void
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
