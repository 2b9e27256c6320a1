// Pages that nobody looks at, and those whose network goes.

import { assert, assertEqual, serverGoes, withSession } from './tools.mjs'
import { download, upload } from './transfers.mjs'

const MIB = 1024 * 1024

const delay = ms => new Promise(resolve => { setTimeout(resolve, ms) })

/**
 * Transfers go on in a hidden tab, whose timers run once in a second. `hide` is the test's: it
 * opens another tab in front of this one.
 */
export const transfersInAHiddenTab = parameters => withSession(parameters, {}, async session => {
  await window.hide()
  const start = performance.now()
  while (document.visibilityState !== 'hidden') {
    assert(performance.now() < start + 10_000, 'the tab is visible')
    await delay(10)
  }
  let [ticks, isOver] = [0, false]
  const tick = async () => {
    for (; !isOver; ticks++) await delay(10)
  }
  // The first chain of timers in a tab that was just hidden may run faster.
  await delay(1_000)
  const ticking = tick()
  const length = 8 * MIB
  const begun = performance.now()
  let uploaded = 0
  while (performance.now() < begun + 6_000) {
    await Promise.all([download(session, length), upload(session, length)])
    uploaded += length
  }
  isOver = true
  await ticking
  const seconds = (performance.now() - begun) / 1000
  assertEqual(document.visibilityState, 'hidden', 'the tab')
  assert(ticks <= 2 * seconds, `${ticks} timers in ${seconds} s: they are not throttled`)
  // A sender that waits for timers gets rid of one `sendBuffer` by each.
  assert(uploaded > 2 * MIB * ticks, `${uploaded} bytes left within ${ticks} timers`)
  return { 'up-mib-s': Math.round(uploaded / MIB / seconds), ticks }
})

/**
 * The address of the listener goes, and comes back after the session has ended: the test does both.
 * Then the page connects again.
 */
export async function networkGoes (parameters) {
  const { endMs } = await serverGoes(parameters)
  for (let attempts = 1; ; attempts++) {
    try {
      await withSession(parameters, { connectTimeout: 5_000 }, next => download(next, MIB))
      return { 'end-ms': endMs, attempts }
    } catch (error) {
      assert(error.name === 'ConnectError' && attempts < 8, `${error.stack} ${error.kind}`)
      await delay(500)
    }
  }
}
