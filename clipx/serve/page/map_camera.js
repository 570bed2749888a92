// Which part of the map is seen, and where its points are on the screen.

const MAX_ZOOM = 64; // where two neighboring steps of a stored coordinate are a pixel apart
const MARGIN = 0.94; // of the frame that the whole map fills

export class Camera {
  constructor() {
    this.extent = { x: 1, y: 1 }; // half of the map's width and height
    this.resize(1, 1);
    this.reset();
  }

  // width, height: of the frame, in CSS pixels
  resize(width, height) {
    this.width = width;
    this.height = height;
  }

  reset() {
    this.x = 0;
    this.y = 0;
    this.zoom = 1;
  }

  // CSS pixels per unit of the map.
  get scale() {
    const whole = Math.min(this.width / this.extent.x, this.height / this.extent.y) / 2;
    return this.zoom * MARGIN * whole;
  }

  toScreen(x, y) {
    return [this.width / 2 + (x - this.x) * this.scale, this.height / 2 - (y - this.y) * this.scale];
  }

  toMap(left, top) {
    return [this.x + (left - this.width / 2) / this.scale, this.y - (top - this.height / 2) / this.scale];
  }

  // The map follows a pointer that moves by so many pixels.
  pan(right, down) {
    this.x -= right / this.scale;
    this.y += down / this.scale;
    this.clamp();
  }

  // The point of the map that is at (left, top) stays there.
  zoomAt(left, top, factor) {
    const [x, y] = this.toMap(left, top);
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, this.zoom * factor));
    const [newX, newY] = this.toMap(left, top);
    this.x += x - newX;
    this.y += y - newY;
    this.clamp();
  }

  // The middle of the frame stays on the map. At zoom 1, all of the map is seen.
  clamp() {
    const share = 1 - 1 / this.zoom;
    const bound = (value, extent) => Math.min(extent * share, Math.max(-extent * share, value));
    this.x = bound(this.x, this.extent.x * 1.1);
    this.y = bound(this.y, this.extent.y * 1.1);
  }

  // For the address of the page; "" for the whole map.
  toText() {
    if (this.zoom === 1) return "";
    return [this.x, this.y].map((value) => value.toFixed(4)).join("_") + `_${this.zoom.toFixed(2)}`;
  }

  fromText(text) {
    const numbers = text.split("_").map(Number);
    this.reset();
    if (numbers.length !== 3 || !numbers.every(Number.isFinite)) return;
    [this.x, this.y] = numbers;
    this.zoom = Math.min(MAX_ZOOM, Math.max(1, numbers[2]));
    this.clamp();
  }
}
