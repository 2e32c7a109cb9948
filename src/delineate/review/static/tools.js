// What the pointer does on the scan: look, brush, eraser, marks. Mouse, pen and fingers alike.

import { flipsOf } from './masks.js'

export const TOOLS = ['look', 'brush', 'eraser', 'plus', 'minus']

export class Tools {
  constructor(canvas, viewer, overlay, desk, on) {
    Object.assign(this, { canvas, viewer, overlay, desk, on, tool: 'look', diameter: 10, pointers: new Map(), stroke: null })
    canvas.addEventListener('pointerdown', (event) => this.down(event))
    canvas.addEventListener('pointermove', (event) => this.move(event))
    for (const end of ['pointerup', 'pointercancel']) canvas.addEventListener(end, (event) => this.up(event, end === 'pointercancel'))
    canvas.addEventListener('pointerleave', () => this.hover(null))
    canvas.addEventListener('wheel', (event) => this.wheel(event), { passive: false })
    canvas.addEventListener('contextmenu', (event) => event.preventDefault())
  }

  choose(tool) {
    this.tool = tool
    this.hover(null)
    this.on.tool(tool)
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect()
    const scale = this.canvas.width / box.width
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale]
  }

  wheel(event) {
    event.preventDefault()
    const at = this.viewer.at(...this.place(event))
    if (!at) return
    if (event.ctrlKey || event.metaKey) this.viewer.zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15, ...this.place(event))
    else if (event.deltaY) this.viewer.scroll(at.tile, event.deltaY < 0 ? 1 : -1)
    this.hover(this.viewer.at(...this.place(event)))
  }

  down(event) {
    event.preventDefault()
    document.activeElement?.blur()
    const place = this.place(event)
    this.pointers.set(event.pointerId, place)
    this.canvas.setPointerCapture(event.pointerId)
    if (this.pointers.size === 2) return this.give()
    if (this.pointers.size > 2 || !this.viewer.info) return
    const at = this.viewer.at(...place)
    if (!at) return
    if (event.button === 1 || (event.button === 0 && event.shiftKey && this.tool === 'look')) this.drag = { kind: 'pan', place }
    else if (event.button === 2) this.drag = { kind: 'window', place }
    else if (this.tool === 'look') {
      this.drag = { kind: 'cross' }
      if (at.inside) this.viewer.go(at.voxel)
    } else this.begin(at)
  }

  move(event) {
    const place = this.place(event)
    const at = this.viewer.info ? this.viewer.at(...place) : null
    this.hover(at)
    if (!this.pointers.has(event.pointerId)) return
    const before = this.pointers.get(event.pointerId)
    this.pointers.set(event.pointerId, place)
    if (this.pointers.size === 2) return this.pinch(event.pointerId, before, place)
    if (this.stroke && at?.tile.plane === this.stroke.tile.plane) this.paintTo(at.point)
    else if (this.drag?.kind === 'cross' && at?.inside) this.viewer.go(at.voxel)
    else if (this.drag?.kind === 'pan') this.viewer.pan(...before, ...place)
    else if (this.drag?.kind === 'window') this.on.window((place[0] - before[0]) / this.canvas.width, (place[1] - before[1]) / this.canvas.height)
  }

  up(event, cancelled) {
    this.pointers.delete(event.pointerId)
    this.drag = null
    if (this.stroke) {
      if (cancelled) this.give()
      else this.finish()
    }
  }

  pinch(id, before, place) {
    const other = [...this.pointers].find(([pointer]) => pointer !== id)[1]
    const apart = (point) => Math.hypot(point[0] - other[0], point[1] - other[1])
    this.viewer.zoom(apart(place) / Math.max(1, apart(before)), (place[0] + other[0]) / 2, (place[1] + other[1]) / 2)
    this.viewer.pan(...before, ...[(place[0] + before[0]) / 2, (place[1] + before[1]) / 2])
  }

  // Radii in voxels of the brush along a tile's axes; the diameter is in mm, or pixels where there is no spacing.
  radius(tile) {
    const spacing = this.desk.info.spacing_mm
    return [tile.across, tile.down].map((axis) => this.diameter / 2 / spacing[axis])
  }

  hover(at) {
    const paints = this.tool === 'brush' || this.tool === 'eraser'
    this.overlay.cursor = at && paints ? { plane: at.tile.plane, point: at.point, radius: this.radius(at.tile), erases: this.tool === 'eraser' } : null
    this.overlay.draw()
    this.on.hover(at?.inside ? at.voxel : null)
  }

  begin({ tile, point, voxel, inside }) {
    if (this.tool === 'plus' || this.tool === 'minus') {
      this.stroke = { tile, marks: [], seen: new Set(), last: point }
      if (inside) this.addMark(voxel)
      return
    }
    if (this.desk.busy) return
    const layer = this.desk.layerOf()
    if (!layer) return this.on.problem('choose or add a layer first: pick a proposal, or press "New layer"')
    const mask = this.desk.masks.get(`layer ${layer.id}`)
    this.stroke = { tile, layer: layer.id, mask, value: this.tool === 'brush' ? 1 : 0, flipped: new Set(), last: point }
    this.paintTo(point)
  }

  addMark(voxel) {
    const key = voxel.join()
    if (this.stroke.seen.has(key)) return
    this.stroke.seen.add(key)
    const mark = { voxel, positive: this.tool === 'plus' }
    this.desk.marks = [...this.desk.marks.filter((one) => one.voxel.join() !== key), mark]
    this.overlay.draw()
  }

  // Paint, or mark, along the line from the last point to this one.
  paintTo(point) {
    const { stroke, desk } = this
    const [fromX, fromY] = stroke.last
    const steps = Math.max(1, Math.ceil(2 * Math.max(Math.abs(point[0] - fromX), Math.abs(point[1] - fromY))))
    for (let step = 1; step <= steps; step++) {
      const x = fromX + ((point[0] - fromX) * step) / steps
      const y = fromY + ((point[1] - fromY) * step) / steps
      if (stroke.seen) {
        const voxel = [0, 0, 0]
        voxel[stroke.tile.across] = Math.floor(x)
        voxel[stroke.tile.down] = Math.floor(y)
        voxel[stroke.tile.depth] = stroke.tile.index
        if (voxel.every((v, axis) => v >= 0 && v < desk.info.shape[axis])) this.addMark(voxel)
      } else this.dab(x, y)
    }
    stroke.last = point
    if (stroke.mask) stroke.mask.changed()
    this.overlay.draw()
  }

  dab(x, y) {
    const { tile, mask, value, flipped } = this.stroke
    const { shape } = this.desk.info
    const [rx, ry] = this.radius(tile)
    const voxel = [0, 0, 0]
    voxel[tile.depth] = tile.index
    for (let v = Math.max(0, Math.floor(y - ry)); v <= Math.min(shape[tile.down] - 1, Math.floor(y + ry)); v++) {
      for (let u = Math.max(0, Math.floor(x - rx)); u <= Math.min(shape[tile.across] - 1, Math.floor(x + rx)); u++) {
        const far = ((u + 0.5 - x) / rx) ** 2 + ((v + 0.5 - y) / ry) ** 2
        if (far > 1 && !(u === Math.floor(x) && v === Math.floor(y))) continue // at least the voxel under the pointer
        voxel[tile.across] = u
        voxel[tile.down] = v
        const place = mask.place(voxel)
        if (mask.bits[place] === value) continue
        mask.bits[place] = value
        flipped.add(place)
      }
    }
  }

  finish() {
    const { stroke } = this
    this.stroke = null
    if (stroke.seen) this.on.marked()
    else if (stroke.flipped.size) this.on.painted({ kind: 'paint', layer: stroke.layer, flips: flipsOf(stroke.flipped), tool: stroke.value ? 'brush' : 'eraser' })
  }

  // A stroke that is not meant: put back what it changed.
  give() {
    const { stroke } = this
    this.stroke = null
    if (stroke?.flipped) {
      for (const place of stroke.flipped) stroke.mask.bits[place] ^= 1
      stroke.mask.changed()
    } else if (stroke?.seen) this.desk.marks = this.desk.marks.filter((one) => !stroke.seen.has(one.voxel.join()))
    this.overlay.draw()
  }
}
