// What the worker of a page does.

import { certificateHash, connect } from '../../dist/index.js'
import { webRtcFrom } from '../../dist/worker.js'
import * as substreams from './substreams.mjs'
import * as transfers from './transfers.mjs'
import { useWebRtc } from './tools.mjs'

const CASES = { ...substreams, ...transfers }

const COMMANDS = {
  /** Without a port of the page. */
  async dial ({ address }) {
    const dialling = connect(address, { security: certificateHash })
    return dialling.then(() => 'connected', error => error.kind)
  },

  /** Runs a case of the page here. */
  async run ({ name, parameters, port }) {
    if (port !== undefined) useWebRtc(webRtcFrom(port))
    return CASES[name](parameters)
  }
}

self.onmessage = async ({ data }) => {
  try {
    self.postMessage({ result: await COMMANDS[data.command](data) })
  } catch (error) {
    self.postMessage({ error: `${error.stack} ${error.kind}` })
  }
}
