// Outlines of a plane of bits: closed loops along the middle between voxel centres, by marching squares.

// For each of the 16 kinds of cell (corners: 1 upper left, 2 upper right, 4 lower right, 8 lower left) the edges that a
// loop enters and leaves by, foreground on its left: 0 top, 1 right, 2 bottom, 3 left. Saddles are cut apart.
const LINES = [
  [], [[3, 0]], [[0, 1]], [[3, 1]], [[1, 2]], [[3, 0], [1, 2]], [[0, 2]], [[3, 2]],
  [[2, 3]], [[2, 0]], [[0, 1], [2, 3]], [[2, 1]], [[1, 3]], [[1, 0]], [[0, 3]], [],
]
const MIDDLE = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]]

// Loops [[x, y], ...] in voxels, the centre of the first voxel being (0.5, 0.5).
export function loopsOf({ width, height, bits }) {
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? bits[y * width + x] : 0)
  const next = new Map() // start of a piece -> its end, as one number each
  const key = (x, y) => (2 * y + 4) * (2 * width + 8) + 2 * x + 4
  for (let y = -1; y < height; y++) {
    for (let x = -1; x < width; x++) {
      const kind = at(x, y) + 2 * at(x + 1, y) + 4 * at(x + 1, y + 1) + 8 * at(x, y + 1)
      for (const [from, to] of LINES[kind]) {
        const start = key(x + MIDDLE[from][0], y + MIDDLE[from][1])
        next.set(start, key(x + MIDDLE[to][0], y + MIDDLE[to][1]))
      }
    }
  }
  const row = 2 * width + 8
  const loops = []
  while (next.size) {
    const first = next.keys().next().value
    const loop = []
    for (let here = first; next.has(here); ) {
      loop.push([((here % row) - 4) / 2 + 0.5, (Math.floor(here / row) - 4) / 2 + 0.5])
      const after = next.get(here)
      next.delete(here)
      here = after
    }
    loops.push(loop)
  }
  return loops
}

export function pathOf(plane) {
  const path = new Path2D()
  for (const loop of loopsOf(plane)) {
    path.moveTo(...loop[0])
    for (const point of loop.slice(1)) path.lineTo(...point)
    path.closePath()
  }
  return path
}
