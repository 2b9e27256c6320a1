// Runs in the browser page: the cases, on js-libp2p as bundled by a web application.

import { runCases } from './cases.mjs'
import { speakV2 } from './v2-shim.mjs'

window.run = ({ address, names, agent, v2 }) => {
  if (v2) speakV2()
  return runCases({ address, names, agent, report: window.report })
}
