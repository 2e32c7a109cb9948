// NiiVue draws the scan; this file says which voxel lies where on its canvas.

const AXES = [[0, 1, 2], [0, 2, 1], [1, 2, 0]] // of RAS, for axial, coronal, sagittal: across, down, depth
export const PLANES = ['axial', 'coronal', 'sagittal']

export class Viewer {
  constructor(canvas, onDraw) {
    const { Niivue } = window.niivue
    this.canvas = canvas
    this.nv = new Niivue({
      backColor: [0, 0, 0, 1], crosshairColor: [0.45, 0.7, 0.85, 0.5], crosshairGap: 14, fontColor: [0.85, 0.85, 0.85, 1],
      isRadiologicalConvention: true, show3Dcrosshair: false, isColorbar: false, dragAndDropEnabled: false, logLevel: 'error',
      loadingText: '',
    })
    const draw = this.nv.drawScene.bind(this.nv)
    this.nv.drawScene = () => {
      draw()
      onDraw()
    }
  }

  async open(url, info) {
    await (this.attached ??= this.attach())
    await this.nv.loadVolumes([{ url, colormap: 'gray' }])
    this.info = info
    const volume = this.nv.volumes[0]
    this.dims = volume.dimsRAS.slice(1, 4)
    this.order = volume.permRAS.map((signed) => Math.abs(signed) - 1) // RAS axis -> array axis
    this.flipped = volume.permRAS.map((signed) => signed < 0)
    this.nv.setIsOrientationTextVisible(info.has_spacing || !info.flat) // a photograph has no right and left
    this.nv.setCrosshairWidth(info.flat ? 0 : 0.6)
    this.show(info.flat ? 'axial' : 'all')
    this.centre()
  }

  attach() {
    new ResizeObserver(() => this.info && this.layOut()).observe(this.canvas)
    return this.nv.attachToCanvas(this.canvas)
  }

  get volume() {
    return this.nv.volumes[0]
  }

  show(view) {
    this.view = view
    this.layOut()
  }

  // The chosen plane alone; or all three, the axial one large, beside or above the others.
  layOut() {
    const { nv, canvas } = this
    const wide = canvas.clientWidth > canvas.clientHeight
    const all = wide ? [[0, 0, 0.62, 1], [0.62, 0, 0.38, 0.5], [0.62, 0.5, 0.38, 0.5]] : [[0, 0, 1, 0.6], [0, 0.6, 0.5, 0.4], [0.5, 0.6, 0.5, 0.4]]
    const shown = this.view === 'all' ? [0, 1, 2] : [PLANES.indexOf(this.view)]
    nv.setSliceType(nv.sliceTypeMultiplanar)
    nv.setCustomLayout(shown.map((sliceType) => ({ sliceType, position: this.view === 'all' ? all[sliceType] : [0, 0, 1, 1] })))
  }

  window(low, high) {
    Object.assign(this.volume, { cal_min: low, cal_max: high })
    this.nv.updateGLVolume()
  }

  async overlay(url, opacity) {
    const { nv } = this
    while (nv.volumes.length > 1) nv.removeVolume(nv.volumes[1])
    if (url) await nv.addVolumeFromUrl({ url, colormap: 'inferno', opacity, cal_min: 26, cal_max: 255 } /* of 255 */)
    else nv.drawScene()
  }

  setOverlayOpacity(opacity) {
    if (this.nv.volumes.length > 1) this.nv.setOpacity(1, opacity)
  }

  // The tiles on the canvas, in its pixels: where each lies, which plane it shows, and how voxels map onto it.
  tiles() {
    const { nv } = this
    const tiles = []
    if (!this.info) return tiles
    nv.screenSlices.forEach((slice, n) => {
      if (slice.axCorSag > 2) return
      const [left, top, width, height] = slice.leftTopWidthHeight
      const middle = [left + width / 2, top + height / 2]
      const probe = (x, y) => nv.screenXY2TextureFrac(x, y, n, false)
      const [here, right, below] = [probe(...middle), probe(middle[0] + width / 4, middle[1]), probe(middle[0], middle[1] + height / 4)]
      const [across, down, depth] = AXES[slice.axCorSag]
      // a voxel's edge along an axis, counted on the array itself, is  pixel = offset + scale * edge
      const along = (axis, from, to, start, length) => {
        const perPixel = ((to[axis] - from[axis]) * this.dims[axis]) / (length / 4)
        const edge = from[axis] * this.dims[axis]
        const sign = this.flipped[axis] ? -1 : 1
        return { scale: sign / perPixel, offset: start - (this.flipped[axis] ? this.dims[axis] - edge : edge) * (sign / perPixel) }
      }
      const x = along(across, here, right, middle[0], width)
      const y = along(down, here, below, middle[1], height)
      const index = this.indexOn(depth)
      tiles.push({
        plane: PLANES[slice.axCorSag], box: [left, top, width, height], index, count: this.dims[depth],
        across: this.order[across], down: this.order[down], depth: this.order[depth],
        matrix: new DOMMatrix([x.scale, 0, 0, y.scale, x.offset, y.offset]),
      })
    })
    return tiles
  }

  // Where the crosshair is along a RAS axis, counted on the array's own axis.
  indexOn(axis) {
    const index = Math.min(this.dims[axis] - 1, Math.max(0, Math.floor(this.nv.scene.crosshairPos[axis] * this.dims[axis])))
    return this.flipped[axis] ? this.dims[axis] - 1 - index : index
  }

  // The voxel [i, j, k] under a canvas pixel, with its tile; null beside the scan.
  at(x, y) {
    for (const tile of this.tiles()) {
      const [left, top, width, height] = tile.box
      if (x < left || y < top || x > left + width || y > top + height) continue
      const point = new DOMPoint(x, y).matrixTransform(tile.matrix.inverse())
      const voxel = [0, 0, 0]
      voxel[tile.across] = Math.floor(point.x)
      voxel[tile.down] = Math.floor(point.y)
      voxel[tile.depth] = tile.index
      return { tile, voxel, point: [point.x, point.y], inside: voxel.every((v, axis) => v >= 0 && v < this.info.shape[axis]) }
    }
    return null
  }

  // The crosshair onto a voxel of the array.
  go(voxel) {
    const position = this.order.map((axis, ras) => {
      const index = this.flipped[ras] ? this.dims[ras] - 1 - voxel[axis] : voxel[axis]
      return (index + 0.5) / this.dims[ras]
    })
    this.nv.scene.crosshairPos = position
    this.nv.drawScene()
  }

  centre() {
    this.nv.scene.pan2Dxyzmm = [0, 0, 0, 1]
    this.go(this.info.shape.map((length) => Math.floor(length / 2)))
  }

  crosshair() {
    const voxel = [0, 0, 0]
    this.order.forEach((axis, ras) => (voxel[axis] = this.indexOn(ras)))
    return voxel
  }

  // Along the array axis that a tile looks down; up means towards the head, the front, the left.
  scroll(tile, steps) {
    const voxel = this.crosshair()
    const ras = this.order.indexOf(tile.depth)
    const next = voxel[tile.depth] + (this.flipped[ras] ? -steps : steps)
    voxel[tile.depth] = Math.min(this.info.shape[tile.depth] - 1, Math.max(0, next))
    this.go(voxel)
  }

  zoom(factor, x, y) {
    const { nv } = this
    const before = this.mm(x, y)
    const pan = nv.scene.pan2Dxyzmm
    pan[3] = Math.min(20, Math.max(0.5, pan[3] * factor))
    nv.drawScene()
    const after = this.mm(x, y)
    if (before && after) this.shift(after.map((value, axis) => value - before[axis]))
  }

  pan(fromX, fromY, toX, toY) {
    const from = this.mm(fromX, fromY)
    const to = this.mm(toX, toY)
    if (from && to) this.shift(to.map((value, axis) => value - from[axis]))
  }

  shift(mm) {
    const pan = this.nv.scene.pan2Dxyzmm
    mm.forEach((value, axis) => (pan[axis] += value))
    this.nv.drawScene()
  }

  mm(x, y) {
    const at = this.nv.screenXY2mm(x, y)
    return Number.isNaN(at[0]) ? null : [at[0], at[1], at[2]]
  }

  intensity(voxel) {
    const { img, hdr } = this.volume
    const [width, height] = this.info.shape
    const place = voxel[0] + width * (voxel[1] + height * voxel[2])
    if (this.info.colour) return [0, 1, 2].map((c) => img[4 * place + c] ?? 0).join(', ')
    return +(img[place] * (hdr.scl_slope || 1) + hdr.scl_inter).toPrecision(4)
  }
}
