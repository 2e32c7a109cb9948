// What is on the page now: the case, its layers and answers, what is shown, and the way of an action to the server.

import * as api from './api.js'
import { Mask, fromRuns } from './masks.js'

export const LAYER_COLOURS = ['#E69F00', '#56B4E9', '#009E73', '#F0E442', '#CC79A7', '#D55E00', '#0072B2'] // Okabe and Ito
export const CONSENSUS = { colour: '#D55E00', dash: [], width: 2.4 }
export const PROPOSALS = [ // told apart by colour and by dashes
  { colour: '#56B4E9', dash: [10, 5], width: 1.8 },
  { colour: '#F0E442', dash: [3, 4], width: 1.8 },
  { colour: '#CC79A7', dash: [14, 4, 3, 4], width: 1.8 },
  { colour: '#009E73', dash: [6, 6], width: 1.8 },
  { colour: '#E69F00', dash: [2, 6], width: 1.8 },
  { colour: '#FFFFFF', dash: [16, 8], width: 1.4 },
]

export class Desk {
  constructor(tell) {
    this.tell = tell // called whenever something changed: tell(what)
    this.masks = new Map() // "layer l1", "consensus a3", "proposal a3 4" -> Mask
    this.hidden = new Set() // layers not shown
    this.shown = new Set() // consensus and proposals that are shown, by the same keys
    this.checked = new Set() // proposals to be combined
    this.layer = null // the active layer's id
    this.answer = null // the answer looked at
    this.marks = [] // [{voxel, positive}], not yet part of an answer or part of the last one
    this.doubt = false
    this.running = null
    this.queue = Promise.resolve()
    this.waiting = 0 // actions on their way
    this.busy = 0 // of these, the ones whose result comes from the server: no painting meanwhile
  }

  async start() {
    this.session = await api.get('/session')
  }

  get info() {
    return this.work?.case
  }

  get size() {
    return this.info.shape.reduce((product, length) => product * length, 1)
  }

  path(rest = '') {
    return `/cases/${this.work.case.id}${rest}`
  }

  async open(id) {
    this.masks.clear()
    for (const set of [this.hidden, this.shown, this.checked]) set.clear()
    Object.assign(this, { layer: null, answer: null, marks: [], doubt: false, running: null })
    this.work = await api.get(`/cases/${id}`)
    this.layer = this.work.layers.at(-1)?.id ?? null
    await Promise.all(this.work.layers.map((layer) => this.fetch(`layer ${layer.id}`)))
    const last = this.work.answers.findLast((one) => one.proposals > 0) ?? this.work.answers.at(-1)
    if (last) await this.look(last.id)
  }

  answerOf(id = this.answer) {
    return this.work.answers.find((one) => one.id === id) ?? null
  }

  // The answer in words that one with marks goes back to.
  wordsOf(answer) {
    while (answer?.refines && answer.marks.length) answer = this.answerOf(answer.refines)
    return answer
  }

  layerOf(id = this.layer) {
    return this.work.layers.find((one) => one.id === id) ?? null
  }

  // --- masks

  async fetch(key) {
    const [kind, id, k] = key.split(' ')
    const paths = { layer: `/layers/${id}`, consensus: `/answers/${id}/consensus`, proposal: `/answers/${id}/proposals/${k}` }
    const bits = fromRuns(await api.bytes(this.path(paths[kind])), this.size)
    const mask = this.masks.get(key)
    if (mask) {
      mask.bits = bits
      mask.changed()
    } else this.masks.set(key, new Mask(bits, this.info.shape))
    return this.masks.get(key)
  }

  async toggle(key, on = !this.shown.has(key)) {
    if (on && !this.masks.has(key)) await this.fetch(key)
    this.shown[on ? 'add' : 'delete'](key)
    this.tell('shown')
  }

  // Look at an answer: its consensus and first distinct proposals.
  async look(id, proposals = 2) {
    this.answer = id
    const answer = this.answerOf()
    this.shown.clear()
    this.checked.clear()
    for (const key of this.masks.keys()) if (!key.startsWith('layer') && key.split(' ')[1] !== id) this.masks.delete(key)
    if (answer && answer.proposals > 0) {
      const keys = [`consensus ${id}`, ...answer.distinct.slice(0, proposals).map((one) => `proposal ${id} ${one.proposal}`)]
      if (answer.proposals === 1) keys.length = 1
      await Promise.all(keys.map((key) => this.fetch(key)))
      if (this.answer === id) keys.forEach((key) => this.shown.add(key))
    }
    this.tell('answer')
  }

  // What is drawn, bottom first: [{mask, colour, dash, width, fill}].
  drawn() {
    const list = []
    for (const layer of this.work.layers) {
      const mask = this.masks.get(`layer ${layer.id}`)
      if (!mask || this.hidden.has(layer.id)) continue
      const active = layer.id === this.layer
      const colour = LAYER_COLOURS[layer.colour % LAYER_COLOURS.length]
      list.push({ mask, colour, dash: [], width: active ? 2.6 : 1.6, fill: this.doubt ? 0 : active ? 0.3 : 0.12 }) // a tint would hide the map of doubt
    }
    for (const key of this.shown) {
      const mask = this.masks.get(key)
      if (mask) list.push({ mask, fill: 0, ...this.styleOf(key) })
    }
    return list
  }

  styleOf(key) {
    const [kind, , k] = key.split(' ')
    if (kind === 'consensus') return CONSENSUS
    const rank = this.answerOf().distinct.findIndex((one) => one.proposal === Number(k))
    return PROPOSALS[Math.min(rank < 0 ? PROPOSALS.length : rank, PROPOSALS.length - 1)]
  }

  // --- actions, one after the other; what was done here waits for a server that is away

  act(action, { local = false } = {}) {
    this.waiting += 1
    this.busy += local ? 0 : 1
    this.tell('saving')
    const result = this.queue.then(() => this.send(action, local))
    this.queue = result.catch(() => {}).then(() => {
      this.waiting -= 1
      this.busy -= local ? 0 : 1
      this.tell('saving')
    })
    return result
  }

  async send(action, local) {
    for (;;) {
      try {
        const work = await api.post(this.path('/actions'), { revision: this.work.revision, action })
        await this.take(work, local ? [] : work.changed)
        return work
      } catch (error) {
        if (error.status === 0) {
          this.tell('away')
          await new Promise((resolve) => setTimeout(resolve, 1500))
          continue
        }
        await this.refresh()
        throw error.status === 409 ? new Error('this case was changed in another window; here is its present state') : error
      }
    }
  }

  async take(work, changed) {
    const before = new Set(this.work.layers.map((layer) => layer.id))
    this.work = work
    const ids = new Set(work.layers.map((layer) => layer.id))
    for (const id of before) if (!ids.has(id)) this.masks.delete(`layer ${id}`)
    const missing = work.layers.filter((layer) => !this.masks.has(`layer ${layer.id}`)).map((layer) => layer.id)
    await Promise.all([...new Set([...changed, ...missing])].filter((id) => ids.has(id)).map((id) => this.fetch(`layer ${id}`)))
    const fresh = work.layers.find((layer) => !before.has(layer.id))
    if (fresh) this.layer = fresh.id
    if (!ids.has(this.layer)) this.layer = work.layers.at(-1)?.id ?? null
    this.tell('work')
  }

  async refresh() {
    const work = await api.get(this.path())
    await this.take(work, work.layers.map((layer) => layer.id))
  }

  async pick(proposal, how = 'replace', layer = undefined) {
    if (!this.answer) return
    const own = this.work.layers.find((one) => one.name === this.answerOf().target)
    const into = layer === undefined ? (how === 'replace' ? (own?.id ?? null) : this.layer) : layer
    await this.act({ kind: 'pick', answer: this.answer, proposal, layer: into, how })
    if (own && how === 'replace') this.layer = own.id
    this.tell('work')
  }

  // --- asking

  async meant(prompt) {
    return api.get(this.path(`/meant?prompt=${encodeURIComponent(prompt)}`))
  }

  async ask(prompt, { proposals = 8, marks = [], refines = null, anyway = false } = {}) {
    this.running = { prompt, share: 0 }
    this.tell('running')
    let end
    try {
      const ask = await api.post(this.path('/asks'), { prompt, proposals, marks, refines, anyway })
      this.running = ask
      const told = await api.follow(this.path(`/asks/${ask.id}/progress`), (state) => {
        this.running = state
        this.tell('running')
      })
      end = told && told.state !== 'running' ? told : await api.get(this.path(`/asks/${ask.id}`))
    } finally {
      this.running = null
      this.tell('running')
    }
    this.work = await api.get(this.path())
    if (end.answer) await this.look(end.answer, marks.length ? 0 : 2)
    this.tell('running')
    if (end.state === 'failed') throw new Error(end.message)
    return end
  }

  async cancel() {
    if (this.running?.id) await api.remove(this.path(`/asks/${this.running.id}`))
  }

  async save(layers = null) {
    await this.queue
    const saved = await api.post(this.path('/save'), { layers, format: null })
    await this.refresh()
    return saved
  }
}
