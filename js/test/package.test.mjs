// What the package contains, and how large it is.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))
const KIB = 1024

/** Bytes that a page loads for `code`, compressed. */
async function sizeOf (code) {
  const result = await build({
    stdin: { contents: code, resolveDir: root },
    bundle: true,
    minify: true,
    format: 'esm',
    target: 'es2022',
    write: false
  })
  return gzipSync(result.outputFiles[0].contents, { level: 9 }).length
}

const use = (names, entry) =>
  `import { ${names} } from './dist/${entry}.js'; globalThis.used = [...globalThis.used ?? [], ${names}];`

test('the sizes that a page loads, compressed', async t => {
  const plain = await sizeOf(use('connect, certificateHash', 'index'))
  const withNoise = await sizeOf(use('connect', 'index') + use('noise', 'noise'))
  const everything = await sizeOf(['index', 'noise', 'payload', 'v1', 'worker']
    .map((entry, index) => `import * as all${index} from './dist/${entry}.js'; globalThis.used${index} = all${index};`)
    .join(''))
  t.diagnostic(
    `connect with certificateHash: ${plain} bytes; with noise: ${withNoise}; all: ${everything}`
  )
  assert.ok(plain <= 12 * KIB, `${plain}`)
  assert.ok(withNoise <= 16 * KIB, `${withNoise}`)
  assert.ok(everything <= 21 * KIB, `${everything}`)
})

test('the package has what its exports name, types included, and no dependency', t => {
  const [pack] = JSON.parse(execFileSync('npm', ['pack', '--dry-run', '--json'], { cwd: root }))
  const files = pack.files.map(({ path }) => path)
  const manifest = JSON.parse(readFileSync(`${root}/package.json`, 'utf8'))
  for (const paths of Object.values(manifest.exports)) {
    for (const path of Object.values(paths)) assert.ok(files.includes(path.slice(2)), path)
  }
  assert.ok(
    files.includes('README.md') && !files.some(file => /^(src|test)\//.test(file)),
    `${files}`
  )
  for (const kind of ['dependencies', 'peerDependencies']) assert.equal(manifest[kind], undefined)
  t.diagnostic(`npm pack: ${pack.size} bytes`)
})

test('a program in TypeScript can use the package', () => {
  const tsc = `${root}/node_modules/.bin/tsc`
  const options = [
    '--noEmit', '--strict', '--ignoreConfig', '--target', 'es2022', '--module', 'es2022',
    '--moduleResolution', 'bundler', '--lib', 'es2023,dom,dom.iterable,esnext.disposable'
  ]
  execFileSync(tsc, [...options, 'test/program.ts'], { cwd: root, stdio: 'inherit' })
})
