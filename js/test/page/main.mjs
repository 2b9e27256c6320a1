// Runs one case in a page.

import * as background from './background.mjs'
import * as closing from './closing.mjs'
import * as connecting from './connecting.mjs'
import * as flow from './flow.mjs'
import * as multistream from './multistream.mjs'
import * as payloads from './payloads.mjs'
import * as qmux from './qmux.mjs'
import * as substreams from './substreams.mjs'
import * as workers from './workers.mjs'

const CASES = {
  ...background,
  ...closing,
  ...connecting,
  ...flow,
  ...multistream,
  ...payloads,
  ...qmux,
  ...substreams,
  ...workers
}

/** The case `a-name` is the function `aName`. */
const functionOf = name => CASES[name.replace(/-(\w)/g, (_, letter) => letter.toUpperCase())]

const describe = error => {
  const details = ['kind', 'streamErrorCode', 'closeCode', 'reason']
    .filter(key => error?.[key] != null)
    .map(key => `${key} ${error[key]}`)
    .concat((error?.attempts ?? []).map(attempt => `${attempt.address}: ${attempt.error}`))
  return `${error?.stack ?? error} ${details.join(', ')}`
}

window.run = async (name, parameters) => {
  const start = performance.now()
  try {
    const figures = await functionOf(name)(parameters)
    return { ok: true, ms: Math.round(performance.now() - start), ...figures }
  } catch (error) {
    return { ok: false, error: describe(error) }
  }
}
