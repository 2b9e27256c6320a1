#!/usr/bin/env node
// Builds the package into dist/: types by TypeScript, which also checks them, and code by esbuild.

import { execFileSync } from 'node:child_process'
import { rmSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'
import { mangleProps } from './internal.mjs'

const here = path => fileURLToPath(new URL(path, import.meta.url))

rmSync(here('dist'), { recursive: true, force: true })
execFileSync(
  here('node_modules/.bin/tsc'),
  ['--emitDeclarationOnly'],
  { cwd: here('.'), stdio: 'inherit' }
)
await build({
  entryPoints: ['index', 'multistream', 'node', 'noise', 'payload', 'v1', 'worker']
    .map(name => here(`src/${name}.ts`)),
  external: ['@roamhq/wrtc'],
  outdir: here('dist'),
  bundle: true,
  // What both entries use is in a file of its own.
  splitting: true,
  chunkNames: 'shared-[hash]',
  format: 'esm',
  platform: 'browser',
  target: 'es2022',
  minify: true,
  mangleProps,
  legalComments: 'none',
  logLevel: 'warning'
})
