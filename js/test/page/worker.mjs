// What the worker of a page does.

import { certificateHash, connect } from '../../dist/index.js'

const COMMANDS = {
  async dial ({ address }) {
    return connect(address, { security: certificateHash }).then(() => 'connected', error => error.kind)
  }
}

self.onmessage = async ({ data }) => {
  self.postMessage(await COMMANDS[data.command](data))
}
