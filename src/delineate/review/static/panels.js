// The panels at the sides, drawn anew from the desk. Text from anywhere goes in as text, never as markup.

import { LAYER_COLOURS } from './desk.js'

export const byId = (id) => document.getElementById(id)

// An element: make('button', {class: 'x', onclick: f}, 'text', child, ...).
export function make(name, attributes = {}, ...children) {
  const element = document.createElement(name)
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value)
    else if (key in element && key !== 'list') element[key === 'class' ? 'className' : key] = value
    else if (value !== false && value !== null) element.setAttribute(key === 'className' ? 'class' : key, value)
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false))
  return element
}

const percent = (share) => `${Math.round(100 * share)} %`
const amount = (volume, unit) => (unit === 'ml' ? `${volume < 10 ? volume.toFixed(2) : volume.toFixed(1)} ml` : `${Math.round(volume)} px`)

function line({ colour, dash, width }) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
  svg.setAttribute('width', 34)
  svg.setAttribute('height', 10)
  const stroke = document.createElementNS('http://www.w3.org/2000/svg', 'line')
  for (const [key, value] of Object.entries({ x1: 1, x2: 33, y1: 5, y2: 5, stroke: colour, 'stroke-width': width + 0.6, 'stroke-dasharray': dash.join(' ') })) stroke.setAttribute(key, value)
  svg.append(stroke)
  return svg
}

export function drawAnswers(desk, on) {
  const box = byId('answers')
  box.replaceChildren()
  if (!desk.work) return
  const answers = latest(desk)
  if (!answers.length) box.append(make('p', { class: 'small' }, 'Nothing has been asked of this scan yet. Type what to outline.'))
  for (const answer of answers) box.append(card(desk, answer, answer.id === desk.answer, on))
}

// Of answers that refine one another only one is listed: the one looked at, or the last. Newest first.
function latest(desk) {
  const { answers } = desk.work
  const root = (one) => {
    const before = answers.find((other) => other.id === one.refines)
    return before ? root(before) : one.id
  }
  const listed = new Map()
  for (const one of answers) if (one.id === desk.answer || listed.get(root(one))?.id !== desk.answer) listed.set(root(one), one)
  return [...listed.values()].reverse()
}

function card(desk, answer, open, on) {
  const kind = { found: 'found', 'likely absent': 'absent' }[answer.outcome] ?? 'unknown'
  const title = make(
    'header',
    { tabIndex: 0, role: 'button', 'aria-expanded': String(open), onclick: () => on.look(answer.id), onkeydown: (e) => e.key === 'Enter' && on.look(answer.id) },
    make('b', {}, answer.target ?? answer.prompt),
    make('span', { class: `outcome ${kind}` }, answer.outcome),
    answer.proposals ? make('span', { class: 'small' }, `score ${answer.score.toFixed(2)}`) : null,
  )
  const box = make('article', { class: `answer${open ? ' now' : ''}` }, title)
  box.dataset.answer = answer.id
  if (!open) return box
  if (kind === 'unknown') return unknown(box, answer, on)
  if (answer.misfit) box.append(make('p', {}, `Drawn all the same: ${answer.misfit}.`))
  if (kind === 'absent') {
    box.append(make('p', {}, 'The proposals hardly agree on anything here. Look before you take one.'))
    const best = answer.candidate
    if (best) box.append(make('p', { class: 'small' }, `all ${best.slices_searched} slices searched; likeliest in slice ${best.slice + 1}: ${percent(best.probability)}`))
  }
  if (answer.target !== answer.prompt) box.append(make('p', { class: 'small' }, `asked: ${answer.prompt}`))
  if (answer.understood) box.append(make('p', { class: 'small' }, answer.understood))
  if (answer.marks.length) {
    const plus = answer.marks.filter((mark) => mark.positive).length
    box.append(make('p', { class: 'small' }, `marks: ${plus} inside, ${answer.marks.length - plus} outside`))
  }
  const size = [amount(answer.volume, answer.unit)]
  if (answer.interval) {
    const { low, high, level, calibrated } = answer.interval
    size.push(`${amount(low, answer.unit)} to ${amount(high, answer.unit)} ${calibrated ? `with ${percent(level)} chance` : 'among the proposals'}`)
  }
  box.append(make('p', { class: 'small' }, size.join('; ')))
  if (answer.expected_dice) {
    const { dice, low, high, level, subjects } = answer.expected_dice
    box.append(make('p', { class: 'small', title: `fitted on ${subjects} held-out subjects` }, `consensus: Dice ${dice.toFixed(2)} expected, ${low.toFixed(2)} to ${high.toFixed(2)} with ${percent(level)} chance`))
  }
  if (answer.why) box.append(make('p', { class: 'small' }, `Why: ${answer.why}.`))
  if (answer.uncalibrated) box.append(make('p', { class: 'small' }, `Not calibrated: ${answer.uncalibrated}.`))
  box.append(row(desk, `consensus ${answer.id}`, 'consensus', answer.agreement, null, answer.volume, answer.unit, on, null))
  if (answer.proposals > 1) {
    answer.distinct.forEach((one, rank) => {
      const key = `proposal ${answer.id} ${one.proposal}`
      box.append(row(desk, key, `${rank + 1}`, one.agreement, one.weight, one.volume, answer.unit, on, one.proposal))
    })
    box.append(ways(desk, answer, on))
  }
  const doubt = make('label', { class: 'chips' }, make('input', { type: 'checkbox', id: 'doubt', checked: desk.doubt, onchange: (e) => on.doubt(e.target.checked) }), 'map of doubt (D)')
  if (desk.doubt) doubt.append(make('input', { type: 'range', id: 'doubt-opacity', min: 0, max: 1, step: 0.05, value: on.opacity(), 'aria-label': 'opacity', oninput: (e) => on.setOpacity(Number(e.target.value)) }))
  box.append(doubt)
  if (answer.doubtful_slices?.slices.length) {
    const chips = make('div', { class: 'chips' }, 'most doubt in slice ')
    for (const index of answer.doubtful_slices.slices.slice(0, 6)) chips.append(make('button', { onclick: () => on.slice(answer.doubtful_slices.axis, index) }, String(index + 1)))
    box.append(chips)
  }
  return box
}

function unknown(box, answer, on) {
  if (answer.outcome === 'unknown prompt') box.append(make('p', {}, `This model was not taught '${answer.prompt}', so it draws nothing rather than guess.`))
  else {
    box.append(make('p', {}, answer.message))
    box.append(make('div', { class: 'chips' }, make('button', { onclick: () => on.ask(answer.prompt, { anyway: true }) }, 'Draw it all the same')))
  }
  if (answer.nearest.length) {
    const chips = make('div', { class: 'chips' }, 'Did you mean ')
    for (const name of answer.nearest) chips.append(make('button', { onclick: () => on.ask(name) }, name))
    box.append(chips)
  }
  box.append(make('p', { class: 'small' }, 'Or mark it: choose "Inside +" and click on what you mean.'))
  return box
}

function row(desk, key, label, agreement, weight, volume, unit, on, proposal) {
  const shown = desk.shown.has(key)
  const told = [amount(volume, unit)]
  if (weight !== null) told.push(`for ${percent(weight)}`)
  if (agreement !== null && agreement !== undefined) told.push(`agrees ${agreement.toFixed(2)}`)
  const text = make('div', {}, proposal === null ? 'consensus' : `${label}`, ' ', make('small', {}, told.join(', ')))
  if (weight !== null) {
    const bar = make('div', { class: 'bar', title: `stands for ${percent(weight)} of the proposals` }, make('i'))
    bar.firstChild.style.width = `${100 * weight}%`
    text.append(bar)
  }
  const tick = make('input', { type: 'checkbox', checked: shown, 'aria-label': `show ${proposal === null ? 'consensus' : `proposal ${label}`}`, onchange: () => on.toggle(key) })
  const take = make('button', { class: 'take', title: proposal === null ? 'Take it as a layer (Enter)' : `Take it as a layer (${label})`, onclick: () => on.pick(proposal) }, 'Pick')
  const line_ = make('label', {}, line(desk.styleOf(key)))
  return make('div', { class: 'proposal' }, tick, line_, text, take)
}

function ways(desk, answer, on) {
  const box = make('div', { class: 'ways' }, make('span', { class: 'small' }, 'of those shown: '))
  for (const how of ['union', 'intersection', 'majority']) box.append(make('button', { onclick: () => on.combine(how) }, how))
  const layer = desk.layerOf()
  if (layer) {
    box.append(make('span', { class: 'small' }, `consensus into '${layer.name}': `))
    for (const how of ['add', 'subtract', 'intersect']) box.append(make('button', { onclick: () => on.merge(how) }, how))
  }
  return box
}

export function drawLayers(desk, on) {
  const list = byId('layers')
  list.replaceChildren()
  for (const layer of desk.work?.layers ?? []) {
    const colour = LAYER_COLOURS[layer.colour % LAYER_COLOURS.length]
    const swatch = make('span', { class: 'swatch' })
    Object.assign(swatch.style, { borderColor: colour, background: `${colour}55` })
    const name = make(
      'button',
      { class: 'name', title: 'Edit this layer; double click to rename', onclick: () => on.layer(layer.id), ondblclick: () => on.rename(layer) },
      layer.name,
      make('small', {}, `${amount(layer.volume, layer.unit)}, ${layer.saved ? 'saved' : 'not saved'}`),
    )
    const hidden = desk.hidden.has(layer.id)
    const eye = make('button', { class: 'icon', title: hidden ? 'Show' : 'Hide', 'aria-pressed': String(!hidden), onclick: () => on.hide(layer.id) }, hidden ? '○' : '●')
    const away = make('button', { class: 'icon', title: 'Remove this layer (can be undone)', onclick: () => on.removeLayer(layer.id) }, '×')
    const item = make('li', { class: layer.id === desk.layer ? 'now' : '' }, swatch, name, eye, away)
    item.dataset.layer = layer.id
    list.append(item)
  }
  if (!list.children.length) list.append(make('li', {}, make('small', {}, 'none yet')))
  for (const button of byId('operations').querySelectorAll('button')) button.disabled = !desk.layerOf()
}

export function drawHistory(desk) {
  const { work } = desk
  byId('undo').disabled = !work?.undo
  byId('redo').disabled = !work?.redo
  byId('undo').title = work?.undo ? `Undo: ${work.undo} (Z)` : 'Nothing to undo'
  byId('redo').title = work?.redo ? `Redo: ${work.redo} (Shift+Z)` : 'Nothing to redo'
  byId('save').disabled = !work?.layers.length
  byId('history').replaceChildren(...(work?.history ?? []).map((event) => make('li', { value: event.n, title: event.time }, event.text)).reverse())
}

export function drawMarks(desk, on) {
  const box = byId('marks')
  box.hidden = !desk.marks.length
  const plus = desk.marks.filter((mark) => mark.positive).length
  box.replaceChildren(
    make('p', { class: 'small' }, `marks: ${plus} inside, ${desk.marks.length - plus} outside`),
    make('div', { class: 'row' }, make('button', { onclick: on.unmark, title: 'Take back the last mark (Backspace)' }, 'Take back'), make('button', { onclick: on.clearMarks }, 'Clear')),
  )
}

export function drawProgress(desk) {
  const { running } = desk
  byId('progress').hidden = !running
  byId('outline').disabled = Boolean(running)
  if (!running) return
  byId('share').value = running.share
  byId('progress-text').textContent = running.share > 0 ? `${running.prompt}: ${percent(running.share)}` : `${running.prompt}: looking at the scan…`
}

// The names that the model knows, offered while typing; synonyms find them too.
export function suggestions(input, list, vocabulary, chosen) {
  let at = -1
  const close = () => {
    list.hidden = true
    at = -1
    input.setAttribute('aria-expanded', 'false')
    input.removeAttribute('aria-activedescendant')
  }
  const draw = () => {
    const typed = input.value.trim().toLowerCase()
    const hits = vocabulary()
      .map((one) => ({ ...one, also: one.synonyms.find((word) => word.toLowerCase().includes(typed)) }))
      .filter((one) => !typed || one.name.includes(typed) || one.also)
      .sort((a, b) => Number(!a.name.startsWith(typed)) - Number(!b.name.startsWith(typed)))
    list.replaceChildren(
      ...hits.map((one, n) => {
        const told = [typed && !one.name.includes(typed) ? one.also : null, one.modalities.join(', ')].filter(Boolean).join('; ')
        const item = make('li', { role: 'option', id: `suggestion-${n}`, onpointerdown: (e) => (e.preventDefault(), take(one.name)) }, one.name, ' ', make('small', {}, told))
        item.dataset.name = one.name
        return item
      }),
    )
    list.hidden = !hits.length
    input.setAttribute('aria-expanded', String(!list.hidden))
    at = -1
  }
  const take = (name) => {
    input.value = name
    close()
    chosen(name)
  }
  const move = (step) => {
    if (list.hidden) return draw()
    at = (at + step + list.children.length + (at < 0 && step < 0 ? 1 : 0)) % list.children.length
    for (const [n, item] of [...list.children].entries()) item.setAttribute('aria-selected', String(n === at))
    input.setAttribute('aria-activedescendant', list.children[at].id)
    list.children[at].scrollIntoView({ block: 'nearest' })
  }
  input.addEventListener('input', draw)
  input.addEventListener('focus', () => input.value || draw())
  input.addEventListener('blur', close)
  input.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      event.preventDefault()
      move(event.key === 'ArrowDown' ? 1 : -1)
    } else if (event.key === 'Escape') {
      close()
      input.blur()
    } else if (event.key === 'Enter' && at >= 0) {
      event.preventDefault()
      take(list.children[at].dataset.name)
    }
  })
  return close
}
