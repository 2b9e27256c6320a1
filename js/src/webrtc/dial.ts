// Dials a listener with webrtc-direct from a page.

import type { WebRtcAddress } from '../address.js'
import type { PathStats } from '../api.js'
import { ConnectError } from '../errors.js'
import { RtcCarrier, type ChannelSource } from './carrier.js'
import type { RtcChannel } from './channel.js'
import { establish, type RtcDial } from './establish.js'
import { opener } from './opener.js'
import type { SessionStart } from '../session.js'
import { watchDial, watchSession } from './watch.js'

/** Makes the connections for `connect`: this page, or the page of this worker. */
export type RtcDialler = (address: WebRtcAddress, dial: RtcDial) => Promise<SessionStart>

export async function statsOf (connection: RTCPeerConnection): Promise<PathStats> {
  try {
    if (connection.connectionState !== 'closed') {
      for (const report of (await connection.getStats()).values()) {
        if (report.currentRoundTripTime !== undefined) {
          return { roundTripTime: report.currentRoundTripTime * 1000 }
        }
      }
    }
  } catch {
    // The connection closes meanwhile.
  }
  return {}
}

/**
 * Dials, and authenticates the listener. Throws `ConnectError`, or the reason of the signal.
 * `Connection` is that of the browser, unless there is none.
 */
export const dialWebRtc = async (
  address: WebRtcAddress,
  dial: RtcDial,
  Connection: typeof RTCPeerConnection | undefined = globalThis.RTCPeerConnection
): Promise<SessionStart> => {
  if (Connection === undefined) {
    // Module workers have it too, although it always throws there.
    throw 'importScripts' in globalThis
      ? new ConnectError('unsupported-in-worker', 'there is no WebRTC in workers')
      : new ConnectError('unsupported', 'there is no WebRTC')
  }
  const connection = new Connection()
  const zero = connection.createDataChannel('', { negotiated: true, id: 0 })
  const source: ChannelSource = {
    ...opener<RtcChannel>(connection, (channel, made) => { channel.attach(made) }),
    stats: () => statsOf(connection),
    close () { connection.close() }
  }
  const carrier = new RtcCarrier(source, zero, dial.limits.sendBuffer)
  connection.ondatachannel = ({ channel }) => { carrier.onDataChannel(channel) }
  const attempt = establish(carrier, zero, address, dial)
  const unwatch = watchDial(connection, address, dial.limits.connectTimeout, attempt.fail)
  dial.version.negotiate(connection, address, attempt.onOffer).catch(attempt.fail)
  try {
    const start = await attempt.start
    watchSession(connection, dial.limits.silenceTimeout, error => { carrier.fail(error) })
    return start
  } catch (error) {
    connection.close()
    throw error
  } finally {
    unwatch()
  }
}
