export function isReset (error) {
  return error?.name === 'StreamResetError'
}

/** A message for an error of any sort; AggregateError keeps the reasons in a list of its own. */
export function describe (error) {
  const reasons = error?.errors?.map(describe).join('; ')
  const name = error?.name === 'Error' ? undefined : error?.name
  const text = [name, error?.message].filter(Boolean).join(': ') || String(error)
  return reasons ? `${text} (${reasons})` : text
}
