// Elements of the page.

export const byId = id => document.getElementById(id)

/** The elements with these ids, by id. */
export const elements = (...ids) => Object.fromEntries(ids.map(id => [id, byId(id)]))

export function element (name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

/** A row of a table, with a header for it. */
export function row (header, ...cells) {
  const made = element('tr', {}, element('th', { scope: 'row' }, header))
  for (const cell of cells) made.append(element('td', {}, cell))
  return made
}
