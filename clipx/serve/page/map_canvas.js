// Draws the points of a map without WebGL, as squares: for browsers that have none, such as those on
// machines without a graphics card.

const MAX_POINTS = 20000; // that are drawn in a frame; of more, evenly spaced ones

export class MapCanvas {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.all = { places: new Uint16Array(), kinds: new Uint8Array() };
    this.marked = { ...this.all };
  }

  // As of MapDrawing.
  fill(layer, places, kinds) {
    layer.places = places;
    layer.kinds = kinds;
  }

  draw(camera, allStyle, markedStyle) {
    const { canvas, context } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    const ratio = canvas.width / camera.width;
    context.scale(ratio, ratio);
    this.drawLayer(this.all, allStyle, camera);
    const rimStyle = { ...markedStyle, colors: [markedStyle.rim], size: markedStyle.size + 2 };
    this.drawLayer(this.marked, rimStyle, camera);
    this.drawLayer(this.marked, markedStyle, camera);
  }

  drawLayer(layer, style, camera) {
    const seen = visible(layer, camera);
    const step = Math.max(1, Math.ceil(seen.length / MAX_POINTS));
    // Color by color: to change it costs more than to draw a square.
    style.colors.forEach((color, kind) => {
      this.context.fillStyle = cssColor(color);
      for (let number = 0; number < seen.length; number += step) {
        const [left, top, ownKind] = seen[number];
        if (ownKind === kind) this.context.fillRect(left - style.size / 2, top - style.size / 2, style.size, style.size);
      }
    });
  }
}

// [left, top, kind] of the points in the frame.
function visible(layer, camera) {
  const seen = [];
  for (let row = 0; row < layer.kinds.length; row += 1) {
    const x = (2 * layer.places[2 * row]) / 65535 - 1;
    const y = (2 * layer.places[2 * row + 1]) / 65535 - 1;
    const [left, top] = camera.toScreen(x, y);
    const isInside = left > 0 && left < camera.width && top > 0 && top < camera.height;
    if (isInside) seen.push([left, top, layer.kinds[row]]);
  }
  return seen;
}

function cssColor([red, green, blue, alpha]) {
  const percent = [red, green, blue].map((value) => `${100 * value}%`).join(" ");
  return `rgb(${percent} / ${alpha})`;
}
