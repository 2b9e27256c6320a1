// The reference of the package is that of its declarations.

import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { isFresh, page } from '../api.mjs'

test('docs/api.md is what npm run api writes now', () => {
  assert.ok(isFresh(), 'run npm run build && npm run api')
})

test('every value that an entry exports is in the reference', async () => {
  const { exports } = JSON.parse(readFileSync(new URL('../package.json', import.meta.url), 'utf8'))
  const text = page()
  for (const { default: file } of Object.values(exports)) {
    const names = Object.keys(await import(new URL(`../${file}`, import.meta.url)))
    assert.ok(names.length > 0, file)
    for (const name of names) assert.match(text, new RegExp(`^### ${name}$`, 'm'))
  }
})
