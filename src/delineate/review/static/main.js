// The page: puts the desk, the viewer and the panels together.

import { Desk } from './desk.js'
import { helpSheet, keyboard } from './keys.js'
import { Overlay } from './overlay.js'
import { byId, drawAnswers, drawHistory, drawLayers, drawMarks, drawProgress, make, suggestions } from './panels.js'
import { TOOLS, Tools } from './tools.js'
import { PLANES, Viewer } from './viewer.js'

const TOOL_NAMES = { look: 'Look (V)', brush: 'Brush (B)', eraser: 'Eraser (E)', plus: 'Inside + (P)', minus: 'Outside − (M)' }
let opacity = 0.6
let pointed = null // the voxel under the pointer
let markedMeanwhile = false // while a question was being answered
let noticeTimer = 0

function notice(text, problem = false) {
  const box = byId('notice')
  clearTimeout(noticeTimer)
  box.textContent = text
  box.hidden = !text
  box.className = problem ? 'problem' : ''
  if (text) noticeTimer = setTimeout(() => (box.hidden = true), problem ? 9000 : 4000)
}
const problem = (text) => notice(text, true)

// Runs something; its error becomes one line for the person.
const attempt = (task) => async (...given) => {
  try {
    return await task(...given)
  } catch (error) {
    if (error.status === undefined && !(error instanceof Error && error.message)) throw error
    problem(error.message)
    return null
  }
}

const desk = new Desk((what) => {
  if (what === 'away') return problem('the server does not answer; nothing is lost here, trying again')
  if (what !== 'running') drawLayers(desk, on)
  if (what === 'running') drawProgress(desk)
  if (what !== 'running' || !desk.running) drawAnswers(desk, on)
  drawHistory(desk)
  drawMarks(desk, on)
  overlay.draw()
  document.body.dataset.pending = String(desk.waiting)
})
const viewer = new Viewer(byId('scan'), () => {
  overlay.draw()
  readout()
})
const overlay = new Overlay(byId('overlay'), viewer, desk)
const tools = new Tools(byId('overlay'), viewer, overlay, desk, {
  problem,
  hover: (voxel) => {
    pointed = voxel
    readout()
  },
  window: dragWindow,
  tool: (tool) => {
    for (const button of byId('tools').querySelectorAll('button')) button.setAttribute('aria-pressed', String(button.dataset.tool === tool))
  },
  painted: attempt((action) => desk.act(action, { local: true })),
  marked: attempt(askWithMarks),
})

const on = {
  look: attempt(async (id) => {
    desk.marks = desk.answerOf(id)?.marks ?? []
    await desk.look(id)
    await showDoubt(desk.doubt)
  }),
  toggle: attempt((key) => desk.toggle(key)),
  pick: attempt(async (proposal) => {
    await desk.pick(proposal)
    notice(`${proposal === null ? 'the consensus' : `proposal ${proposal}`} is now the layer '${desk.layerOf()?.name}'`)
  }),
  combine: attempt(async (how) => {
    const proposals = [...desk.shown].filter((key) => key.startsWith('proposal')).map((key) => Number(key.split(' ')[2]))
    if (proposals.length < 2) return problem(`show two or more proposals to take their ${how}`)
    await desk.act({ kind: 'combine', answer: desk.answer, proposals, how, layer: null })
  }),
  merge: attempt((how) => desk.pick(null, how)),
  doubt: attempt(showDoubt),
  opacity: () => opacity,
  setOpacity: (value) => viewer.setOverlayOpacity((opacity = value)),
  slice: (axis, index) => {
    const voxel = viewer.crosshair()
    voxel[axis] = index
    viewer.go(voxel)
  },
  ask: attempt(ask),
  layer: (id) => {
    desk.layer = id
    desk.tell('work')
  },
  hide: (id) => {
    desk.hidden[desk.hidden.has(id) ? 'delete' : 'add'](id)
    desk.tell('work')
  },
  rename: attempt(async (layer) => {
    const name = window.prompt('Name of the layer', layer.name)?.trim()
    if (name && name !== layer.name) await desk.act({ kind: 'rename_layer', layer: layer.id, name })
  }),
  removeLayer: attempt((id) => desk.act({ kind: 'remove_layer', layer: id })),
  unmark: attempt(async () => {
    desk.marks = desk.marks.slice(0, -1)
    await askWithMarks()
  }),
  clearMarks: () => {
    desk.marks = []
    desk.tell('marks')
  },
}

async function ask(prompt, { anyway = false } = {}) {
  const meant = await desk.meant(prompt)
  if (meant.targets.length < 2) return askOne(prompt, anyway)
  notice(`'${prompt}' was taken for ${meant.said}`)
  for (const name of meant.targets) if ((await askOne(name, anyway)) === 'cancelled') return
}

async function askOne(prompt, anyway) {
  byId('prompt').value = prompt
  desk.marks = []
  markedMeanwhile = false
  const end = await desk.ask(prompt, { proposals: Number(byId('proposals').value) || 8, anyway })
  if (end.state === 'cancelled') {
    notice('cancelled; nothing was changed')
    return end.state
  }
  const answer = desk.answerOf(end.answer)
  showFirst(answer)
  await showDoubt(desk.doubt && answer?.proposals > 0)
  if (markedMeanwhile) await askWithMarks()
}

// Marks refine the answer looked at; without one they say what the words in the field mean.
async function askWithMarks() {
  if (desk.running) return void (markedMeanwhile = true) // asked again once the answer is there
  markedMeanwhile = false
  const now = desk.answerOf()
  if (!desk.marks.length) {
    desk.tell('marks')
    if (now?.refines) await desk.look(desk.wordsOf(now).id)
    return
  }
  const prompt = now?.prompt ?? (byId('prompt').value.trim() || 'target')
  const proposals = now?.proposals || Number(byId('proposals').value) || 8
  await desk.ask(prompt, { marks: desk.marks, proposals, refines: now?.id ?? null })
  if (desk.doubt) await showDoubt(true)
  if (markedMeanwhile) await askWithMarks()
}

// What is found opens where it is largest, what is likely absent where it would be if anywhere.
function showFirst(answer) {
  if (answer?.outcome === 'found') largestSlice()
  else if (answer?.candidate) on.slice(answer.candidate.axis, answer.candidate.slice)
}

// The crosshair into the slice where the consensus is largest.
function largestSlice() {
  const mask = desk.masks.get(`consensus ${desk.answer}`)
  if (!mask) return
  const axis = viewer.order[2]
  const { shape } = mask
  const areas = new Float64Array(shape[axis])
  const sums = [0, 0, 0]
  let best = 0
  mask.bits.forEach((bit, place) => bit && (areas[voxelOf(place, shape)[axis]] += 1))
  areas.forEach((area, index) => (best = area > areas[best] ? index : best))
  if (!areas[best]) return
  mask.bits.forEach((bit, place) => {
    const voxel = bit ? voxelOf(place, shape) : null
    if (voxel && voxel[axis] === best) voxel.forEach((v, a) => (sums[a] += v))
  })
  viewer.go(sums.map((sum) => Math.round(sum / areas[best])))
}
const voxelOf = (place, [, J, K]) => [Math.floor(place / (J * K)), Math.floor(place / K) % J, place % K]

async function showDoubt(visible) {
  const answer = desk.answerOf()
  desk.doubt = Boolean(visible && answer?.proposals)
  await viewer.overlay(desk.doubt ? `/api${desk.path(`/answers/${answer.id}/doubt.nii.gz`)}` : null, opacity)
  desk.tell('doubt')
}

function readout() {
  if (!viewer.info || !desk.work) return
  const at = pointed ?? viewer.crosshair()
  const names = desk.work.layers.filter((layer) => desk.masks.get(`layer ${layer.id}`)?.bits[desk.masks.get(`layer ${layer.id}`).place(at)])
  const unit = desk.info.modality === 'CT' && desk.info.intensity[0] < -150 ? ' HU' : ''
  const told = [`${pointed ? 'voxel' : 'crosshair at'} ${at.join(', ')}`, `value ${viewer.intensity(at)}${unit}`, names.map((layer) => layer.name).join(', ')]
  byId('readout').textContent = told.filter(Boolean).join('   ·   ')
}

// --- window and level

function setWindow(name) {
  const preset = desk.info.windows.find((one) => one.name === name)
  if (preset) viewer.window(preset.low, preset.high)
}

function dragWindow(across, down) {
  if (desk.info.colour) return
  const { volume } = viewer
  const width = volume.cal_max - volume.cal_min
  const whole = desk.info.intensity[1] - desk.info.intensity[0]
  const centre = (volume.cal_max + volume.cal_min) / 2 - down * whole * 0.5
  const next = Math.max(whole / 1000, width + across * whole * 0.7)
  viewer.window(centre - next / 2, centre + next / 2)
  byId('window').value = ''
}

function cycle(select) {
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length
  select.dispatchEvent(new Event('change'))
}

// --- the case

const openCase = attempt(async (id) => {
  byId('facts').textContent = 'opening…'
  viewer.info = pointed = null // nothing is drawn until the new scan is there
  await desk.open(id)
  const { info } = desk
  await viewer.open(`/api/cases/${info.id}/scan.nii.gz`, info)
  byId('case').value = id
  document.title = `${info.name} · delineate review`
  const unit = info.has_spacing ? 'mm' : 'pixels'
  const sides = info.flat ? info.shape.slice(1) : info.shape
  byId('facts').textContent = [sides.join(' × '), info.has_spacing ? `${info.spacing_mm.map((s) => +s.toFixed(2)).join(' × ')} mm` : null, info.modality].filter(Boolean).join(' · ')
  byId('facts').title = info.notes.join('\n')
  byId('window').replaceChildren(...info.windows.map((one) => make('option', { value: one.name }, one.name)))
  byId('window').disabled = info.colour
  if (!info.colour && info.windows.length) setWindow(info.windows[0].name)
  byId('views-label').hidden = info.flat
  byId('view').value = viewer.view
  byId('diameter').max = String(Math.ceil(Math.max(...info.spacing_mm.map((s, axis) => s * info.shape[axis])) / 6))
  setDiameter(Math.min(10, Number(byId('diameter').max) / 3))
  byId('diameter').dataset.unit = unit
  await showDoubt(false)
  showFirst(desk.answerOf())
  if (desk.work.running) notice(`'${desk.work.running.prompt}' is still being outlined; its answer will be here after a reload`)
  desk.tell('work')
  readout()
  document.body.dataset.ready = id
})

function setDiameter(mm) {
  const input = byId('diameter')
  input.value = String(Math.min(Number(input.max), Math.max(1, Math.round(mm))))
  tools.diameter = Number(input.value)
  byId('diameter-text').textContent = `${input.value} ${desk.info?.has_spacing ? 'mm' : 'px'}`
}

const operate = (kind, more = {}) => attempt(async () => {
  if (!desk.layerOf()) return problem('choose or add a layer first')
  await desk.act({ kind, layer: desk.layer, ...more })
})
const depthAxis = () => viewer.tiles()[0]?.depth ?? viewer.order[2]
const OPERATIONS = [
  ['Fill between', 'Fill between the painted slices (F)', () => operate('fill_between', { axis: depthAxis() })()],
  ['Fill holes', 'Fill holes (H)', () => operate('fill_holes')()],
  ['Smooth', 'Smooth the outline (O)', () => operate('smooth', { radius_mm: desk.info.has_spacing ? 2 * Math.min(...desk.info.spacing_mm) : 2 })()],
  ['Keep largest', 'Keep the largest piece (K)', () => operate('keep_largest')()],
  ['Clear', 'Empty the layer', () => operate('clear')()],
]
const undo = attempt(() => desk.work.undo && desk.act({ kind: 'undo' }))
const redo = attempt(() => desk.work.redo && desk.act({ kind: 'redo' }))
const save = attempt(async () => {
  if (!desk.work.layers.length) return problem('there is nothing to save yet: pick a proposal or paint')
  const { files, folder } = await desk.save()
  byId('saved').textContent = `saved to ${folder}: ${files.map((file) => file.name).join(', ')}`
  notice(`saved: ${files.map((file) => file.name).join(', ')}`)
})
const addLayer = attempt(async () => {
  const taken = new Set(desk.work.layers.map((layer) => layer.name))
  const wanted = byId('prompt').value.trim() || 'layer'
  let name = wanted
  for (let n = 2; taken.has(name); n++) name = `${wanted} ${n}`
  await desk.act({ kind: 'add_layer', name })
  if (tools.tool === 'look') tools.choose('brush')
})
const consensusKey = () => desk.answerOf()?.proposals && attempt(() => desk.toggle(`consensus ${desk.answer}`))()
const allProposals = attempt(async () => {
  const answer = desk.answerOf()
  if (!answer?.proposals) return
  const keys = answer.distinct.map((one) => `proposal ${answer.id} ${one.proposal}`)
  const hide = keys.every((key) => desk.shown.has(key))
  for (const key of keys) await desk.toggle(key, !hide)
})
const pickNth = (n) => {
  const answer = desk.answerOf()
  if (!answer?.proposals) return
  const one = answer.distinct[n]
  if (one) on.pick(one.proposal)
  else problem(`this answer has ${answer.distinct.length} distinct proposal${answer.distinct.length > 1 ? 's' : ''}; there is no ${n + 1}`)
}
const scroll = (steps) => viewer.info && viewer.tiles().length && viewer.scroll(viewer.tiles()[0], steps)

const COMMANDS = [
  { keys: ['T'], text: 'type a target', run: () => byId('prompt').select() },
  { keys: ['Enter'], text: 'pick the consensus', run: () => desk.answerOf()?.proposals && on.pick(null) },
  { keys: ['1', '2', '3', '4', '5', '6', '7', '8', '9'], text: 'pick a distinct proposal', run: (key) => pickNth(Number(key) - 1) },
  { keys: ['A'], text: 'all distinct proposals on, off', run: () => allProposals() },
  { keys: ['C'], text: 'consensus on, off', run: consensusKey },
  { keys: ['D'], text: 'map of doubt on, off', run: () => on.doubt(!desk.doubt) },
  { keys: ['V'], text: 'look', run: () => tools.choose('look') },
  { keys: ['B'], text: 'brush', run: () => tools.choose('brush') },
  { keys: ['E'], text: 'eraser', run: () => tools.choose('eraser') },
  { keys: ['P'], text: 'mark inside', run: () => tools.choose('plus') },
  { keys: ['M'], text: 'mark outside', run: () => tools.choose('minus') },
  { keys: ['Backspace'], text: 'take back the last mark', run: () => desk.marks.length && on.unmark() },
  { keys: ['[', ']'], text: 'smaller, larger brush', run: (key) => setDiameter(tools.diameter * (key === ']' ? 1.25 : 0.8) + (key === ']' ? 0.5 : -0.5)) },
  { keys: ['N'], text: 'new layer', run: () => addLayer() },
  { keys: ['L'], text: 'next layer', run: () => nextLayer() },
  { keys: ['F'], text: 'fill between slices', run: () => OPERATIONS[0][2]() },
  { keys: ['H'], text: 'fill holes', run: () => OPERATIONS[1][2]() },
  { keys: ['O'], text: 'smooth', run: () => OPERATIONS[2][2]() },
  { keys: ['K'], text: 'keep largest', run: () => OPERATIONS[3][2]() },
  { keys: ['Z'], text: 'undo', run: () => undo() },
  { keys: ['Shift+Z'], text: 'redo', run: () => redo() },
  { keys: ['S'], text: 'save', run: () => save() },
  { keys: ['ArrowUp', 'ArrowDown'], text: 'next, previous slice', run: (key) => scroll(key === 'ArrowUp' ? 1 : -1) },
  { keys: ['W'], text: 'next window', run: () => !desk.info?.colour && cycle(byId('window')) },
  { keys: ['X'], text: 'next view', run: () => !desk.info?.flat && cycle(byId('view')) },
  { keys: ['0'], text: 'whole scan', run: () => viewer.info && viewer.centre() },
  { keys: ['Escape'], text: 'cancel', run: () => (desk.running ? desk.cancel() : tools.choose('look')) },
  { keys: ['?'], text: 'this sheet', run: () => byId('help').showModal() },
]

function nextLayer() {
  const ids = desk.work.layers.map((layer) => layer.id)
  if (ids.length) on.layer(ids[(ids.indexOf(desk.layer) + 1) % ids.length])
}

function wire() {
  for (const tool of TOOLS) byId('tools').append(make('button', { 'data-tool': tool, 'aria-pressed': String(tool === 'look'), onclick: () => tools.choose(tool) }, TOOL_NAMES[tool]))
  for (const [name, title, run] of OPERATIONS) byId('operations').append(make('button', { title, onclick: run }, name))
  for (const [value, name] of [['all', 'three planes'], ...PLANES.map((plane) => [plane, plane])]) byId('view').append(make('option', { value }, name))
  const close = suggestions(byId('prompt'), byId('suggestions'), () => desk.session.vocabulary, () => byId('outline').focus())
  byId('ask').addEventListener('submit', (event) => {
    event.preventDefault()
    close()
    const prompt = byId('prompt').value.trim()
    if (!prompt) return problem('type what to outline, such as "liver"')
    byId('outline').focus()
    on.ask(prompt)
  })
  byId('case').addEventListener('change', (event) => openCase(event.target.value))
  byId('view').addEventListener('change', (event) => viewer.show(event.target.value))
  byId('window').addEventListener('change', (event) => setWindow(event.target.value))
  byId('diameter').addEventListener('input', (event) => setDiameter(Number(event.target.value)))
  const clicks = { cancel: () => desk.cancel(), undo, redo, save, 'add-layer': addLayer, centre: () => viewer.centre(), 'help-button': () => byId('help').showModal() }
  for (const [id, run] of Object.entries(clicks)) byId(id).addEventListener('click', run)
  helpSheet(byId('keys'), COMMANDS)
  keyboard(COMMANDS)
  window.addEventListener('beforeunload', (event) => desk.waiting && event.preventDefault())
}

attempt(async () => {
  await desk.start()
  wire()
  const { cases, model } = desk.session
  byId('case').replaceChildren(...cases.map((one) => make('option', { value: one.id }, one.name)))
  byId('prompt').disabled = byId('outline').disabled = !model
  if (!model) byId('prompt').placeholder = 'no model is loaded'
  if (cases.length) await openCase(cases[0].id)
  else notice('there is no scan to review here')
})()
