#!/usr/bin/env node
// Builds the package into dist/: types by TypeScript, which also checks them, and code by esbuild.

import { execFileSync } from 'node:child_process'
import { readdirSync, rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

const here = path => fileURLToPath(new URL(path, import.meta.url))

/** The modules whose types are those of the package. */
const PUBLIC = [
  'address', 'any', 'api', 'connect', 'errors', 'index', 'noise', 'options', 'security', 'v1',
  'frame',
  'noise/identity', 'session', 'carrier', 'webrtc/carrier', 'webrtc/channel', 'webrtc/dial', 'webrtc/establish', 'webrtc/version', 'worker',
  'payload', 'payload/errors', 'payload/receive', 'payload/send', 'payload/transfer', 'payload/sha256', 'payload/wire'
]

function writeTypes () {
  execFileSync(here('node_modules/.bin/tsc'), ['--emitDeclarationOnly'], { cwd: here('.'), stdio: 'inherit' })
  const kept = PUBLIC.map(name => `${name}.d.ts`)
  for (const file of readdirSync(here('dist'), { recursive: true })) {
    if (file.endsWith('.d.ts') && !kept.includes(file)) rmSync(here(`dist/${file}`))
  }
}

rmSync(here('dist'), { recursive: true, force: true })
writeTypes()
await build({
  entryPoints: ['index', 'noise', 'payload', 'v1', 'worker'].map(name => here(`src/${name}.ts`)),
  outdir: here('dist'),
  bundle: true,
  // What both entries use is in a file of its own.
  splitting: true,
  chunkNames: 'shared-[hash]',
  format: 'esm',
  platform: 'browser',
  target: 'es2022',
  minify: true,
  legalComments: 'none',
  logLevel: 'warning'
})
