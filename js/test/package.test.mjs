// What the package contains, and how large it is.

import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { build } from 'esbuild'
import { declarationsOf, exportsOf } from '../api.mjs'
import { mangleProps } from '../internal.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const manifest = JSON.parse(readFileSync(`${root}/package.json`, 'utf8'))
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
  const everything = await sizeOf(['index', 'multistream', 'noise', 'payload', 'v1', 'worker']
    .map((entry, index) => `import * as all${index} from './dist/${entry}.js'; globalThis.used${index} = all${index};`)
    .join(''))
  t.diagnostic(
    `connect with certificateHash: ${plain} bytes; with noise: ${withNoise}; all: ${everything}`
  )
  assert.ok(plain <= 12 * KIB, `${plain}`)
  assert.ok(withNoise <= 16 * KIB, `${withNoise}`)
  assert.ok(everything <= 22 * KIB, `${everything}`)
})

test('the package has what its exports name, types included, and no dependency', t => {
  const [pack] = JSON.parse(execFileSync('npm', ['pack', '--dry-run', '--json'], { cwd: root }))
  const files = pack.files.map(({ path }) => path)
  for (const paths of Object.values(manifest.exports)) {
    for (const path of Object.values(paths)) assert.ok(files.includes(path.slice(2)), path)
  }
  assert.ok(
    files.includes('README.md') && !files.some(file => /^(src|test)\//.test(file)),
    `${files}`
  )
  assert.equal(manifest.dependencies, undefined)
  // What Node needs for WebRTC is left to those who dial from there.
  for (const name of Object.keys(manifest.peerDependencies)) {
    assert.ok(manifest.peerDependenciesMeta[name].optional, name)
  }
  t.diagnostic(`npm pack: ${pack.size} bytes`)
})

/** What a program gets from `/worker` and `/node`, and passes to `connect` as it is. */
const OPAQUE = ['RtcDialler']

/** The declarations that the entries of the package export, and all that these refer to. */
function interfaceOf ({ exports }) {
  const files = readdirSync(`${root}/dist`, { recursive: true })
    .filter(path => path.endsWith('.d.ts'))
  const declared = new Map(files.flatMap(path =>
    [...declarationsOf(readFileSync(`${root}/dist/${path}`, 'utf8'))]))
  const found = new Map(Object.values(exports).flatMap(({ types }) =>
    [...exportsOf(`${root}/${types}`)]))
  // Members that are added to a map while it is visited are visited too.
  for (const [, code] of found) {
    const names = code.replace(/\/\*.*?\*\//gs, '').match(/\b[A-Z]\w+/g) ?? []
    for (const name of names) {
      if (declared.has(name) && !OPAQUE.includes(name)) found.set(name, declared.get(name))
    }
  }
  return found
}

test('no property with a shortened name belongs to a browser, or to the interface', () => {
  // Members of an interface, a class or an object type.
  const MEMBER = /^\s+(?:(?:readonly|get|set) )*"?([\w$]+)"?\??[(:<]/gm
  const membersOf = code => Array.from(code.matchAll(MEMBER), found => found[1])
  const shortened = codes => codes.flatMap(membersOf).filter(name => mangleProps.test(name))
  const compilers = `${root}/node_modules/@typescript`
  const libraries = readdirSync(compilers, { recursive: true })
    .filter(path => /\blib\.(dom|es)[\w.]*\.d\.ts$/.test(path))
    .map(path => readFileSync(`${compilers}/${path}`, 'utf8'))
  assert.ok(libraries.length > 50 && libraries.flatMap(membersOf).includes('bufferedAmount'))
  assert.deepEqual(shortened(libraries), [])
  const own = interfaceOf(manifest)
  for (const name of ['connectAny', 'Identity', 'Payload', 'HandshakeIo', 'WebRtcAddress']) {
    assert.ok(own.has(name), `${name} is not among ${[...own.keys()]}`)
  }
  const members = Array.from(own, ([name, code]) => [name, shortened([code])])
  assert.deepEqual(members.filter(([, names]) => names.length > 0), [])
})

test('a program in TypeScript can use the package', () => {
  const tsc = `${root}/node_modules/.bin/tsc`
  const options = [
    '--noEmit', '--strict', '--ignoreConfig', '--target', 'es2022', '--module', 'es2022',
    '--moduleResolution', 'bundler', '--lib', 'es2023,dom,dom.iterable,esnext.disposable'
  ]
  execFileSync(tsc, [...options, 'test/program.ts'], { cwd: root, stdio: 'inherit' })
})
