// The names of regions over a map: those of a level that suits the zoom, none over another.

import { make } from "./dom.js";

const SPACING = 120; // pixels between the centers of regions whose names are shown
const GAP = 4; // pixels between two names
const SHOWN_LEVELS = 2; // the finest that suits the zoom, and the one before it

export class MapLabels {
  // element: of the names, over the map
  constructor(element) {
    this.element = element;
    this.labels = [];
  }

  // labels: of the server, { text, x, y, level, num_rows }
  use(labels) {
    // Of names that meet, the coarser one stays, then that of more pictures.
    this.labels = [...labels].sort((first, second) => first.level - second.level || second.num_rows - first.num_rows);
    this.numLevels = Math.max(0, ...labels.map((label) => label.level + 1));
    this.coarsest = labels.filter((label) => label.level === 0);
    for (const label of this.labels) label.element = null;
    this.element.replaceChildren();
  }

  // The finest level whose regions are far enough apart.
  levelAt(camera) {
    const width = 2 * camera.extent.x * camera.scale;
    const height = 2 * camera.extent.y * camera.scale;
    const spacing = Math.sqrt((width * height) / Math.max(1, this.coarsest.length));
    // Each level halves the distance.
    const level = Math.floor(Math.log2(Math.max(1, spacing / SPACING)));
    return Math.min(level, this.numLevels - 1);
  }

  draw(camera) {
    const finest = this.levelAt(camera);
    const placed = [];
    const texts = new Set();
    for (const label of this.labels) {
      const isOfLevel = label.level <= finest && label.level > finest - SHOWN_LEVELS;
      const boxes = isOfLevel && !texts.has(label.text) ? this.boxesOf(label, camera, finest) : [];
      const box = boxes.find((each) => !placed.some((other) => meets(each, other)));
      const isShown = box !== undefined;
      if (isShown) {
        placed.push(box);
        texts.add(label.text);
        label.element.style.transform = `translate(${Math.round(box.left)}px, ${Math.round(box.top)}px)`;
      }
      if (label.element) label.element.hidden = !isShown;
    }
  }

  // Where the name may be, the best place first; none outside of the frame.
  boxesOf(label, camera, finest) {
    const [left, top] = camera.toScreen(label.x, label.y);
    const isInside = left > 0 && left < camera.width && top > 0 && top < camera.height;
    if (!isInside) return [];
    if (!label.element) {
      label.element = make("span", {}, label.text);
      this.element.append(label.element);
    }
    const isCoarse = label.level < finest || finest === 0;
    if (label.isCoarse !== isCoarse || !label.width) {
      label.isCoarse = isCoarse;
      label.element.hidden = false;
      label.element.classList.toggle("coarse", isCoarse);
      label.width = label.element.offsetWidth;
      label.height = label.element.offsetHeight;
    }
    const { width, height } = label;
    const inside = (value, size, limit) => Math.min(Math.max(value - size / 2, 2), limit - size - 2);
    // Around the center, or above or below it where another name is there.
    return [0, -1, 1].map((lines) => ({
      left: inside(left, width, camera.width),
      top: inside(top + lines * (height + GAP), height, camera.height),
      width,
      height,
    }));
  }
}

function meets(first, second) {
  return (
    first.left < second.left + second.width + GAP &&
    second.left < first.left + first.width + GAP &&
    first.top < second.top + second.height + GAP &&
    second.top < first.top + first.height + GAP
  );
}
