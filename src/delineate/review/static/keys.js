// Keyboard shortcuts: one table, which the help sheet shows too.

export function keyboard(commands) {
  document.addEventListener('keydown', (event) => {
    const typing = event.target.closest('input:not([type=range]):not([type=checkbox]), select, textarea, dialog[open]')
    if (typing || event.altKey) return
    const plain = event.ctrlKey || event.metaKey ? ['z', 'y', 's'] : null // the usual ones work with Ctrl too
    if (plain && !plain.includes(event.key.toLowerCase())) return
    const key = event.shiftKey && event.key.length === 1 && /[a-z]/i.test(event.key) ? `Shift+${event.key.toUpperCase()}` : event.key.length === 1 ? event.key.toUpperCase() : event.key
    const command = commands.find((one) => one.keys.includes(key) || (plain && key === 'Y' && one.keys.includes('Shift+Z')))
    if (!command) return
    if (event.target.closest('button, summary') && (key === 'Enter' || key === ' ')) return // the button's own
    event.preventDefault()
    command.run(key)
  })
}

export function helpSheet(list, commands) {
  for (const { keys, text } of commands) {
    const term = document.createElement('dt')
    const shown = keys.length > 4 ? [`${keys[0]}…${keys.at(-1)}`] : keys
    shown.forEach((key, n) => {
      if (n) term.append(' ')
      const cap = document.createElement('kbd')
      cap.textContent = { ArrowUp: '↑', ArrowDown: '↓', ArrowLeft: '←', ArrowRight: '→', ' ': 'Space' }[key] ?? key
      term.append(cap)
    })
    const meaning = document.createElement('dd')
    meaning.textContent = text
    list.append(term, meaning)
  }
}
