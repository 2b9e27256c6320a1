// Loads modules of src/ by themselves, which the package does not export.

import { fileURLToPath } from 'node:url'
import { build } from 'esbuild'

/** The exports of `source`, TypeScript that imports from src/. */
export async function load (source) {
  const result = await build({
    stdin: {
      contents: source,
      loader: 'ts',
      resolveDir: fileURLToPath(new URL('../src', import.meta.url))
    },
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    write: false,
    logLevel: 'warning'
  })
  const code = Buffer.from(result.outputFiles[0].contents).toString('base64')
  return import(`data:text/javascript;base64,${code}`)
}
