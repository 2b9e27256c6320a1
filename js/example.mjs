#!/usr/bin/env node
// Writes the bundle that the page of examples/browser loads, so that cargo alone builds that
// program. With --check it writes nothing, and fails if the bundle is not that of src/.

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { mangleProps } from './internal.mjs'

const here = path => fileURLToPath(new URL(path, import.meta.url))
const BUNDLE = here('../examples/browser/assets/anabranch.js')
const BANNER = '// Generated from js/src by js/example.mjs: do not edit.'

export async function bundle () {
  const result = await build({
    stdin: {
      contents: `
        export { ConnectError, certificateHash, connectAny } from './index.js'
        export { PayloadError, receivePayload, sendPayload } from './payload.js'
      `,
      resolveDir: here('src')
    },
    banner: { js: BANNER },
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    minify: true,
    mangleProps,
    legalComments: 'none',
    write: false,
    logLevel: 'warning'
  })
  return result.outputFiles[0].text
}

export const isFresh = async () => readFileSync(BUNDLE, 'utf8') === await bundle()

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv[2] !== '--check') {
    writeFileSync(BUNDLE, await bundle())
  } else if (!await isFresh()) {
    console.error('examples/browser/assets/anabranch.js is stale: run node js/example.mjs')
    process.exit(1)
  }
}
