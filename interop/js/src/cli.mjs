import { parseArgs } from 'node:util'

/** The driving test reads one JSON object per line of stdout; everything else goes to stderr. */
export function emit (object) {
  process.stdout.write(`${JSON.stringify(object)}\n`)
}

export function fail (usage) {
  process.stderr.write(`usage: ${usage}\n`)
  process.exit(2)
}

export function parseCommand (usage, flags = {}) {
  const options = {
    'timeout-s': { type: 'string', default: '120' },
    agent: { type: 'string', default: 'anabranch/' },
    ...flags
  }
  try {
    const { values, positionals } = parseArgs({ options, allowPositionals: true })
    const [command, address, ...names] = positionals
    const timeoutMs = Number(values['timeout-s']) * 1000
    if (!(timeoutMs > 0)) throw new Error('--timeout-s wants a number of seconds')
    return { command, address, names, values, timeoutMs }
  } catch (error) {
    process.stderr.write(`${error.message}\n`)
    return fail(usage)
  }
}

/** Ends the program after `ms` in any state, with the name of its last report. */
export function setDeadline (ms, lastReport) {
  setTimeout(() => {
    const error = `not done within ${ms} ms; last report: ${lastReport() ?? 'none'}`
    emit({ case: 'deadline', ok: false, error })
    process.exit(1)
  }, ms).unref()
}

/** Emits reports and keeps the name of the last one. */
export function reporter () {
  let last
  const report = object => {
    last = object.case
    emit(object)
  }
  return { report, lastReport: () => last }
}

// js-libp2p leaves a rejected promise unhandled in some places. Node would end the program for it:
// print it instead, and let the cases decide.
export function surviveUnhandledRejections () {
  process.on('unhandledRejection', error => {
    process.stderr.write(`unhandled rejection: ${error?.stack ?? error}\n`)
  })
}
