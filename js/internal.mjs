// Properties that no user of the package sees, and that no object of a browser has: the build
// shortens their names. `test/package.test.mjs` checks both.

const NAMES = [
  // carrier.ts
  'events', 'awaitRoom', 'badFraming', 'channelOpen', 'closedByPeer', 'ineffective', 'isOpen', 'knowsCredit',
  'notice', 'opened', 'overhead', 'queued', 'room', 'sendNotice',
  // frame.ts
  'delimited', 'maxData', 'maxSubstreams', 'owned', 'skip', 'uint', 'varint',
  // opening.ts
  'awaitsLimit', 'due', 'isPromised', 'mayOpen', 'onOpened', 'onPayloadWithoutCredit',
  'onPeerLimit', 'onSilence', 'peerOpened',
  // receive.ts
  'creditOffer', 'discard', 'granted', 'hasGranted', 'isFull', 'maxWindow', 'onRoom', 'readInto',
  'ceiling', 'unread',
  // schedule.ts, session.ts and substream.ts
  'carrier', 'cutOff', 'forget', 'grant', 'hasPeerCredit', 'isLocal', 'isSendable', 'isUsed',
  'mustWait', 'onClosed', 'peerHasCredit', 'pool', 'receive', 'refuse', 'reply', 'schedule',
  'scheduledAs', 'sendData', 'sent', 'service', 'sessionEnded', 'siblings', 'unschedule',
  'violated', 'waitsForFirstCredit',
  // webrtc/ and websocket/
  'attach', 'busy', 'drained', 'fail', 'limit', 'number', 'onDataChannel', 'onOffer',
  'pass', 'passed', 'reopen', 'report', 'socket', 'watch'
]

export const mangleProps = new RegExp(`^(?:${NAMES.join('|')})$`)
