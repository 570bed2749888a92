// Draws the points of a map into an image, without a graphics card. There, WebGL would be computed
// by the processor, which takes some ten times as long.

export class MapCanvas {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.image = null;
    this.all = { places: new Uint16Array(), kinds: new Uint8Array() };
    this.marked = { ...this.all };
  }

  // As of MapDrawing.
  fill(layer, places, kinds) {
    layer.places = places;
    layer.kinds = kinds;
  }

  draw(camera, allStyle, markedStyle) {
    const { width, height } = this.canvas;
    if (!this.image || this.image.width !== width || this.image.height !== height) {
      this.image = this.context.createImageData(width, height);
      this.pixels = new Uint32Array(this.image.data.buffer);
    }
    this.pixels.fill(0);
    this.drawLayer(this.all, allStyle.colors, allStyle.size, camera);
    this.drawLayer(this.marked, [markedStyle.rim], markedStyle.size, camera);
    this.drawLayer(this.marked, markedStyle.colors, 0.65 * markedStyle.size, camera);
    this.context.putImageData(this.image, 0, 0);
  }

  drawLayer(layer, colors, size, camera) {
    const { places, kinds } = layer;
    const { width, height } = this.canvas;
    const ratio = width / camera.width;
    const lines = disc(Math.max(1, Math.round(size * ratio)));
    const words = colors.map(pixelOf);
    // Of a coordinate in 0 ... 65535, the pixel is scale * coordinate + offset.
    const scale = (2 / 65535) * camera.scale * ratio;
    const offsetX = width / 2 - (1 + camera.x) * camera.scale * ratio;
    const offsetY = height / 2 + (1 + camera.y) * camera.scale * ratio;
    for (let row = 0; row < kinds.length; row += 1) {
      const x = Math.round(offsetX + scale * places[2 * row]);
      const y = Math.round(offsetY - scale * places[2 * row + 1]);
      if (x < -20 || x > width + 20 || y < -20 || y > height + 20) continue;
      this.stamp(x, y, lines, words[kinds[row]]);
    }
  }

  // lines: of a disc, [down, from, to] in pixels around its center
  stamp(x, y, lines, word) {
    const { width, height } = this.canvas;
    for (const [down, from, to] of lines) {
      const line = y + down;
      if (line < 0 || line >= height) continue;
      const last = Math.min(width - 1, x + to);
      for (let column = Math.max(0, x + from); column <= last; column += 1) {
        this.pixels[line * width + column] = word;
      }
    }
  }
}

// The lines of pixels of a disc with a diameter in whole pixels.
function disc(diameter) {
  const lines = [];
  const first = -Math.floor(diameter / 2);
  const middle = first + (diameter - 1) / 2;
  for (let down = first; down < first + diameter; down += 1) {
    const half = Math.sqrt(Math.max(0, (diameter / 2) ** 2 - (down - middle) ** 2));
    lines.push([down, Math.ceil(middle - half), Math.floor(middle + half)]);
  }
  return lines;
}

// A pixel of ImageData as one number: red is its first byte in memory.
function pixelOf(color) {
  const bytes = Uint8Array.from(color, (value) => Math.round(255 * value));
  return new Uint32Array(bytes.buffer)[0];
}
