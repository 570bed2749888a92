// Pictures in the place of points, where the map is seen from so near that few points are left.

import { make, pictureOf } from "./dom.js";

const SIDE = 44; // pixels of a picture
const MAX_SEEN = 400; // points in the frame up to which some have pictures
const MAX_PICTURES = 60; // that are loaded for a frame
const REST_MILLISECONDS = 250; // without a move, after which pictures are loaded

export class MapPictures {
  // element: of the pictures, over the map
  constructor(element) {
    this.element = element;
    this.frames = new Map(); // row -> element
    this.timer = 0;
  }

  clear() {
    window.clearTimeout(this.timer);
    this.frames.clear();
    this.element.replaceChildren();
  }

  // first: rows whose pictures go before others'
  draw(camera, points, collection, first) {
    for (const [row, frame] of this.frames) this.put(frame, row, camera, points);
    window.clearTimeout(this.timer);
    if (!collection.has_pictures) return;
    this.timer = window.setTimeout(() => this.load(camera, points, collection, first), REST_MILLISECONDS);
  }

  put(frame, row, camera, points) {
    const [left, top] = camera.toScreen(points.x(row), points.y(row));
    frame.style.transform = `translate(${left - SIDE / 2}px, ${top - SIDE / 2}px)`;
  }

  load(camera, points, collection, first) {
    const chosen = new Set(this.choose(camera, points, first));
    for (const [row, frame] of this.frames) {
      if (chosen.has(row)) continue;
      frame.remove();
      this.frames.delete(row);
    }
    for (const row of chosen) {
      if (this.frames.has(row)) continue;
      const frame = make("span", { className: "map-picture" }, pictureOf(collection, row, 96, ""));
      frame.classList.toggle("marked", first.includes(row));
      this.frames.set(row, frame);
      this.put(frame, row, camera, points);
      this.element.append(frame);
    }
  }

  // Rows whose pictures do not meet; none where too many points are seen.
  choose(camera, points, first) {
    const [left, bottom] = camera.toMap(0, camera.height);
    const [right, top] = camera.toMap(camera.width, 0);
    const seen = points.inside(left, right, bottom, top, MAX_SEEN);
    const isFirst = new Set(first);
    seen.sort((one, other) => isFirst.has(other) - isFirst.has(one) || one - other);
    const places = [];
    const chosen = [];
    for (const row of seen) {
      const [x, y] = camera.toScreen(points.x(row), points.y(row));
      const isFree = places.every((place) => Math.max(Math.abs(place.x - x), Math.abs(place.y - y)) > SIDE);
      if (!isFree) continue;
      places.push({ x, y });
      chosen.push(row);
      if (chosen.length === MAX_PICTURES) break;
    }
    return chosen;
  }
}
