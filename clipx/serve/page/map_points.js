// The points of a map, and the nearest of them to a place by a grid of cells.

const STEPS = 65535; // 0 is -1, and this is 1
const REMOVED = 65535; // instead of either coordinate, which ends one below
const POINTS_A_CELL = 4; // on average
const MAX_CELLS = 512; // on a side

export class MapPoints {
  // packed: an ArrayBuffer of x and y of each row, unsigned 16-bit integers
  constructor(packed) {
    this.packed = new Uint16Array(packed);
    // Rows of pictures that are shown: all but the removed ones.
    this.shown = new Uint32Array(this.packed.length / 2).map((_, row) => row).filter((row) => this.packed[2 * row] !== REMOVED);
    this.count = this.shown.length;
    this.side = Math.min(MAX_CELLS, Math.max(1, Math.ceil(Math.sqrt(this.count / POINTS_A_CELL))));
    this.fillCells();
  }

  x(row) {
    return (2 * this.packed[2 * row]) / STEPS - 1;
  }

  y(row) {
    return (2 * this.packed[2 * row + 1]) / STEPS - 1;
  }

  // x and y of some rows, as `packed` has them.
  placesOf(rows) {
    const places = new Uint16Array(2 * rows.length);
    rows.forEach((row, number) => {
      places.set(this.packed.subarray(2 * row, 2 * row + 2), 2 * number);
    });
    return places;
  }

  // Half of the width and height of what the points fill, around 0.
  extent() {
    const largest = { x: 1e-3, y: 1e-3 };
    for (const row of this.shown) {
      largest.x = Math.max(largest.x, Math.abs(this.x(row)));
      largest.y = Math.max(largest.y, Math.abs(this.y(row)));
    }
    return largest;
  }

  // Column of a cell that a coordinate is in.
  cellOf(coordinate) {
    const cell = Math.floor(((coordinate + 1) / 2) * this.side);
    return Math.min(this.side - 1, Math.max(0, cell));
  }

  // Rows sorted by their cells: those of cell c are rows[first[c]] ... rows[first[c + 1] - 1].
  fillCells() {
    const cells = new Uint32Array(this.packed.length / 2);
    this.first = new Uint32Array(this.side * this.side + 1);
    for (const row of this.shown) {
      cells[row] = this.cellOf(this.y(row)) * this.side + this.cellOf(this.x(row));
      this.first[cells[row] + 1] += 1;
    }
    for (let cell = 1; cell < this.first.length; cell += 1) this.first[cell] += this.first[cell - 1];
    const next = this.first.slice();
    this.rows = new Uint32Array(this.count);
    for (const row of this.shown) {
      this.rows[next[cells[row]]] = row;
      next[cells[row]] += 1;
    }
  }

  // Rows in a rectangle; none where they are more than the limit.
  inside(left, right, bottom, top, limit) {
    const rows = [];
    for (let line = this.cellOf(bottom); line <= this.cellOf(top); line += 1) {
      const from = this.first[line * this.side + this.cellOf(left)];
      const to = this.first[line * this.side + this.cellOf(right) + 1];
      for (let place = from; place < to; place += 1) {
        const row = this.rows[place];
        const x = this.x(row);
        const y = this.y(row);
        if (x >= left && x <= right && y >= bottom && y <= top) rows.push(row);
        if (rows.length > limit) return [];
      }
    }
    return rows;
  }

  // The row that is nearest to (x, y) within the radius, or null.
  nearest(x, y, radius) {
    let best = null;
    let bestSquare = radius * radius;
    for (let line = this.cellOf(y - radius); line <= this.cellOf(y + radius); line += 1) {
      // The cells of a line follow one another, and so do their rows.
      const from = this.first[line * this.side + this.cellOf(x - radius)];
      const to = this.first[line * this.side + this.cellOf(x + radius) + 1];
      for (let place = from; place < to; place += 1) {
        const row = this.rows[place];
        const square = (this.x(row) - x) ** 2 + (this.y(row) - y) ** 2;
        if (square <= bestSquare) {
          best = row;
          bestSquare = square;
        }
      }
    }
    return best;
  }
}
