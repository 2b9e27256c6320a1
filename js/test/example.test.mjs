// The bundle that is checked in for examples/browser.

import assert from 'node:assert/strict'
import { test } from 'node:test'
import { isFresh } from '../example.mjs'

test('the page of examples/browser loads what src/ has now', async () => {
  assert.ok(await isFresh(), 'run node js/example.mjs')
})
