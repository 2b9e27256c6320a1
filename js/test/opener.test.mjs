// The order in which data channels are made, with connections of this test.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { load } from './modules.mjs'

const { opener } = await load(`export { opener } from './webrtc/opener.js'`)

function fixture (limit) {
  const connection = {
    limit,
    createDataChannel (label) {
      if (label.length > 65535) throw new TypeError('too long')
      if (made.length >= this.limit) throw new DOMException('no id', 'OperationError')
      return `channel ${label}`
    }
  }
  const made = []
  return { connection, made, ...opener(connection, (key, channel) => { made.push([key, channel]) }) }
}

test('channels beyond those of the browser are made in order, once others have closed', () => {
  const { connection, made, open, reopen } = fixture(2)
  for (const label of ['a', 'b', 'c', 'd']) open(label, label)
  assert.deepEqual(made.map(([key]) => key), ['a', 'b'])
  connection.limit = 3
  reopen()
  assert.deepEqual(made.at(-1), ['c', 'channel c'])
  reopen()
  assert.equal(made.length, 3)
  connection.limit = 5
  open('e', 'e')
  assert.deepEqual(made.map(([key]) => key), ['a', 'b', 'c', 'd', 'e'])
  connection.limit = 9
  reopen()
  assert.equal(made.length, 5)
})

test('a label that no channel can have holds up no other', () => {
  const { made, open } = fixture(9)
  open('long', 'x'.repeat(65536))
  open('a', 'a')
  assert.deepEqual(made, [['long', undefined], ['a', 'channel a']])
})

test('the number of Firefox whose channel never opens is not used', t => {
  Object.defineProperty(globalThis, 'navigator', {
    value: { userAgent: 'Firefox/153.0' }, configurable: true, writable: true
  })
  t.after(() => { delete globalThis.navigator })
  const made = []
  const closed = []
  let id = 2044
  const connection = {
    createDataChannel: () => ({ id: id += 2, close () { closed.push(this.id) } })
  }
  const { open } = opener(connection, (key, channel) => { made.push([key, channel.id]) })
  open('a')
  open('b')
  assert.deepEqual([made, closed], [[['a', 2046]], [2048]])
  id = 100
  open('c')
  assert.deepEqual(made.slice(1), [['b', 102], ['c', 104]])
})
