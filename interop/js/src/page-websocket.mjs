// Runs in the browser page: the carrier over the browser's own WebSocket.

import { runWebSocketCases } from './websocket-cases.mjs'

window.run = ({ address, names: [idleMs] }) => runWebSocketCases({
  WebSocket,
  url: address,
  idleMs: Number(idleMs),
  holdsPongs: false,
  report: window.report
})
