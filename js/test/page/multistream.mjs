// Substreams that negotiate their protocol.

import { assertEqual, errorOf, open, readAll, send, within, withSession } from './tools.mjs'
import * as substreams from './substreams.mjs'

const negotiating = (run, protocols) => parameters => run({ ...parameters, protocols })

export const echoByMultistream = negotiating(substreams.echoOfEverySize, [])
export const manyByMultistream = negotiating(substreams.manySubstreams, [])
export const openedByMultistream =
  negotiating(substreams.openedByTheListener, ['/other', '/from-listener'])

/** The listener has no such protocol, and this side none that the listener opens. */
export const refusedByMultistream = negotiating(parameters =>
  withSession(parameters, {}, async session => {
    const error = await within(5_000, 'refused', errorOf(open(session, '/unknown'), 'open'))
    assertEqual([error.kind, error.streamErrorCode], ['protocol', 0x1001], error.message)
    // The listener notes what its open fails with.
    const incoming = session.incomingBidirectionalStreams.getReader()
    incoming.read().catch(() => {})
    const calling = await open(session, '/call-back')
    await send(calling, new Uint8Array())
    await within(5_000, 'the listener', readAll(calling.readable))
  }), [])
