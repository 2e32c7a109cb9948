// Masks as bits, one byte a voxel in C order of the scan's own array (I, J, K), and how they travel.

// The mask of run lengths: little-endian uint32, zeros first, summing to `size`.
export function fromRuns(buffer, size) {
  const view = new DataView(buffer)
  const bits = new Uint8Array(size)
  let at = 0
  let value = 0
  for (let place = 0; place < buffer.byteLength; place += 4) {
    const length = view.getUint32(place, true)
    if (value) bits.fill(1, at, at + length)
    at += length
    value ^= 1
  }
  if (at !== size) throw new Error(`a mask of ${at} voxels came for a scan of ${size}`)
  return bits
}

// Flipped voxels, a Set of places, as [[start, length], ...] in rising order.
export function flipsOf(places) {
  const sorted = Uint32Array.from(places).sort()
  const flips = []
  for (const place of sorted) {
    const last = flips[flips.length - 1]
    if (last && last[0] + last[1] === place) last[1] += 1
    else flips.push([place, 1])
  }
  return flips
}

export class Mask {
  constructor(bits, shape) {
    this.bits = bits
    this.shape = shape
    this.version = 0 // rises with every change: pictures of it are kept until then
    this.pictures = new Map()
  }

  // Axis a of the array moves so many places in `bits`.
  get strides() {
    return [this.shape[1] * this.shape[2], this.shape[2], 1]
  }

  place(voxel) {
    return (voxel[0] * this.shape[1] + voxel[1]) * this.shape[2] + voxel[2]
  }

  changed() {
    this.version += 1
    this.pictures.clear()
  }

  // The plane `index` of array axis `depth`: {width, height, bits}, x along axis `across`, y along axis `down`.
  plane(across, down, depth, index) {
    const strides = this.strides
    const width = this.shape[across]
    const height = this.shape[down]
    const bits = new Uint8Array(width * height)
    const start = index * strides[depth]
    for (let y = 0; y < height; y++) {
      let place = start + y * strides[down]
      for (let x = 0; x < width; x++, place += strides[across]) bits[y * width + x] = this.bits[place]
    }
    return { width, height, bits }
  }

  // Something made of a plane, kept until the mask changes.
  picture(kind, across, down, depth, index, make) {
    const key = `${kind} ${across} ${down} ${index}`
    if (!this.pictures.has(key)) {
      if (this.pictures.size > 60) this.pictures.clear()
      this.pictures.set(key, make(this.plane(across, down, depth, index)))
    }
    return this.pictures.get(key)
  }
}
