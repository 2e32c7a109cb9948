// What lies over the scan: outlines, the active layer's tint, marks, the brush; on a canvas of its own.

import { pathOf } from './contours.js'

export class Overlay {
  constructor(canvas, viewer, desk) {
    Object.assign(this, { canvas, viewer, desk, cursor: null })
    this.context = canvas.getContext('2d')
  }

  draw() {
    const { canvas, context, viewer, desk } = this
    const [width, height] = [viewer.canvas.width, viewer.canvas.height]
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height })
    context.setTransform(1, 0, 0, 1, 0, 0)
    context.clearRect(0, 0, width, height)
    if (!desk.work || !viewer.info) return
    const scale = window.devicePixelRatio || 1
    for (const tile of viewer.tiles()) {
      context.save()
      context.beginPath()
      context.rect(...tile.box)
      context.clip()
      for (const one of desk.drawn()) this.outline(tile, one, scale)
      for (const mark of desk.marks) this.mark(tile, mark, scale)
      if (this.cursor?.plane === tile.plane) this.brush(tile, scale)
      context.restore()
      this.caption(tile, scale)
    }
  }

  outline(tile, { mask, colour, dash, width, fill }, scale) {
    const { context } = this
    const path = new Path2D()
    const kept = mask.picture('path', tile.across, tile.down, tile.depth, tile.index, pathOf)
    path.addPath(kept, tile.matrix)
    if (fill) {
      context.globalAlpha = fill
      context.fillStyle = colour
      context.fill(path, 'evenodd')
      context.globalAlpha = 1
    }
    context.setLineDash([])
    context.lineJoin = 'round'
    context.strokeStyle = 'rgba(0, 0, 0, 0.55)' // a dark rim: seen on bright and on dark
    context.lineWidth = (width + 1.6) * scale
    context.stroke(path)
    context.setLineDash(dash.map((length) => length * scale))
    context.strokeStyle = colour
    context.lineWidth = width * scale
    context.stroke(path)
    context.setLineDash([])
  }

  // A positive mark is a ring with a plus, a negative one a square with a minus: shape tells them apart, not only colour.
  mark(tile, { voxel, positive }, scale) {
    if (voxel[tile.depth] !== tile.index) return
    const { context } = this
    const { x, y } = new DOMPoint(voxel[tile.across] + 0.5, voxel[tile.down] + 0.5).matrixTransform(tile.matrix)
    const r = 6 * scale
    for (const [colour, width] of [['rgba(0, 0, 0, 0.7)', 3.5], [positive ? '#F0E442' : '#56B4E9', 1.8]]) {
      context.strokeStyle = colour
      context.lineWidth = width * scale
      context.beginPath()
      if (positive) context.arc(x, y, r, 0, 2 * Math.PI)
      else context.rect(x - r, y - r, 2 * r, 2 * r)
      context.moveTo(x - r / 2, y)
      context.lineTo(x + r / 2, y)
      if (positive) {
        context.moveTo(x, y - r / 2)
        context.lineTo(x, y + r / 2)
      }
      context.stroke()
    }
  }

  brush(tile, scale) {
    const { context, cursor } = this
    const { x, y } = new DOMPoint(...cursor.point).matrixTransform(tile.matrix)
    context.beginPath()
    context.ellipse(x, y, Math.abs(cursor.radius[0] * tile.matrix.a), Math.abs(cursor.radius[1] * tile.matrix.d), 0, 0, 2 * Math.PI)
    context.strokeStyle = '#FFFFFF'
    context.setLineDash(cursor.erases ? [4 * scale, 3 * scale] : [])
    context.lineWidth = scale
    context.stroke()
    context.setLineDash([])
  }

  caption(tile, scale) {
    if (tile.count < 2) return
    const { context } = this
    const text = `${tile.plane} ${tile.index + 1} / ${tile.count}`
    context.font = `${11 * scale}px system-ui, sans-serif`
    const [left, top, width] = tile.box
    const wide = context.measureText(text).width
    context.fillStyle = 'rgba(0, 0, 0, 0.55)'
    context.fillRect(left + width - wide - 12 * scale, top + 4 * scale, wide + 8 * scale, 17 * scale)
    context.fillStyle = '#DDDDDD'
    context.fillText(text, left + width - wide - 8 * scale, top + 16 * scale)
  }
}
