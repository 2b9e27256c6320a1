// Dials a listener with webrtc-direct from a page.

import type { WebRtcAddress } from '../address.js'
import type { PathStats } from '../api.js'
import { ConnectError } from '../errors.js'
import { RtcCarrier, type ChannelSource } from './carrier.js'
import type { RtcChannel } from './channel.js'
import { establish, type RtcDial } from './establish.js'
import type { SessionStart } from '../session.js'
import { watchDial, watchSession } from './watch.js'

/** Makes the connections for `connect`: this page, or the page of this worker. */
export type RtcDialler = (address: WebRtcAddress, dial: RtcDial) => Promise<SessionStart>

/** A connection on this page. */
class PageSource implements ChannelSource {
  constructor (readonly connection: RTCPeerConnection) {}

  open (channel: RtcChannel, label: string): void {
    channel.attach(this.connection.createDataChannel(label))
  }

  stats (): Promise<PathStats> {
    return statsOf(this.connection)
  }

  close (): void {
    this.connection.close()
  }
}

export async function statsOf (connection: RTCPeerConnection): Promise<PathStats> {
  if (connection.connectionState !== 'closed') {
    for (const report of (await connection.getStats()).values()) {
      if (report.currentRoundTripTime !== undefined) {
        return { roundTripTime: report.currentRoundTripTime * 1000 }
      }
    }
  }
  return {}
}

/** Dials, and authenticates the listener. Throws `ConnectError`, or the reason of the signal. */
export const dialWebRtc: RtcDialler = async (address, dial) => {
  if (typeof RTCPeerConnection === 'undefined') {
    // Module workers have it too, although it always throws there.
    throw 'importScripts' in globalThis
      ? new ConnectError('unsupported-in-worker', 'there is no WebRTC in workers')
      : new ConnectError('unsupported', 'there is no WebRTC')
  }
  const connection = new RTCPeerConnection()
  const zero = connection.createDataChannel('', { negotiated: true, id: 0 })
  const carrier = new RtcCarrier(new PageSource(connection), zero, dial.limits.sendBuffer)
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
