#!/usr/bin/env node
// Writes docs/api.md: what each entry exports, as TypeScript declares it in dist/. With --check it
// writes nothing, and fails if the page is not that of dist/.

import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'

const here = path => fileURLToPath(new URL(path, import.meta.url))
const PAGE = here('docs/api.md')

const TITLE = `# The exports of @anabranch/browser

Generated from the declarations by \`npm run api\`, after \`npm run build\`: do not edit.
`

/** The declarations of a file by name, each with its comment. */
export function declarationsOf (text) {
  const found = new Map()
  let lines = []
  let depth = 0
  for (const line of text.split('\n')) {
    lines.push(line)
    if (/^\s*(\/\*\*|\*|\/\/)/.test(line)) continue
    depth += line.split('{').length - line.split('}').length
    if (depth > 0 || !/[;}]$/.test(line)) continue
    const code = lines.join('\n').trim()
    lines = []
    const [, name] = /^export (?:declare )?(?:abstract )?(?:\w+) (\w+)/m.exec(code) ?? []
    if (name !== undefined && !/^export (?:type )?\{/m.test(code)) found.set(name, code)
  }
  return found
}

/** The exports of an entry, in its order. A file may pass on those of another. */
export function exportsOf (path) {
  const text = readFileSync(path, 'utf8')
  const found = declarationsOf(text)
  const passedOn = /^export (?:type )?\{([^}]*)\} from '([^']+)';$/mg
  for (const [, names, source] of text.matchAll(passedOn)) {
    const others = exportsOf(new URL(source.replace(/\.js$/, '.d.ts'), `file://${path}`).pathname)
    for (const name of names.split(',').map(name => name.trim().replace(/^type /, ''))) {
      if (name === '') continue
      const code = others.get(name)
      if (code === undefined) throw new Error(`${path}: no declaration of ${name}`)
      found.set(name, code)
    }
  }
  return found
}

/** A signature that is too long has a line for each parameter. */
function wrapped (line) {
  const [, indent, start, parameters, end] = /^( *)(.*?\()(.*)(\): .*;)$/.exec(line) ?? []
  if (line.length <= 100 || parameters === undefined) return line
  const lines = parameters.split(/, (?=\w+\??: )/).join(`,\n${indent}  `)
  return `${indent}${start}\n${indent}  ${lines}\n${indent}${end}`
}

export function page () {
  const { name, exports } = JSON.parse(readFileSync(here('package.json'), 'utf8'))
  const sections = Object.entries(exports).map(([entry, { types }]) => {
    const declarations = [...exportsOf(here(types))].map(([exported, code]) => {
      const plain = code.replace(/^export (declare )?/mg, '').replace(/\n    #private;/g, '')
        .split('\n').map(line => wrapped(line.replace(/^( {4})+/, indent =>
          indent.slice(indent.length / 2)))).join('\n')
      return `### ${exported}\n\n\`\`\`ts\n${plain}\n\`\`\`\n`
    })
    return `## ${name}${entry.slice(1)}\n\n${declarations.join('\n')}`
  })
  return [TITLE, ...sections].join('\n')
}

export const isFresh = () => readFileSync(PAGE, 'utf8') === page()

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  if (process.argv[2] !== '--check') {
    writeFileSync(PAGE, page())
  } else if (!isFresh()) {
    console.error('js/docs/api.md is stale: run npm run build && npm run api')
    process.exit(1)
  }
}
