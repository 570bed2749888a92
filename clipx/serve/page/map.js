// The map of a collection: loading, moving, pointing at pictures, and the results of a query on it.

import { byId, captionOf, get, getBytes, make, pictureOf, post, showError } from "./dom.js";
import { Camera } from "./map_camera.js";
import { MapCanvas } from "./map_canvas.js";
import { markedStyle, pointStyle, regionOf } from "./map_colors.js";
import { hasGraphicsCard, MapDrawing } from "./map_drawing.js";
import { MapLabels } from "./map_labels.js";
import { MapMoves } from "./map_moves.js";
import { MapPictures } from "./map_pictures.js";
import { MapPoints } from "./map_points.js";

const NUM_MARKED = 200; // nearest results of a query that are marked
const REACH = { mouse: 14, pen: 18, touch: 26 }; // pixels around a pointer in which a point is meant
const CAPTION_MILLISECONDS = 60; // that a pointer rests before a caption is asked for

const camera = new Camera();
const state = {
  collection: null,
  points: null,
  drawing: null,
  labels: null,
  pictures: null,
  marked: [], // rows, nearest first
  request: null, // whose results are marked
  row: null, // of the picture that is pointed at
  hits: new Map(), // row -> hit, as the view of one picture takes it
  isDue: false, // a frame
  actions: null,
};

// actions: open(hit) shows a picture; moved() is called when the part that is seen has changed
export function start(actions) {
  state.actions = actions;
  state.labels = new MapLabels(byId("map-labels"));
  state.pictures = new MapPictures(byId("map-pictures"));
  const canvas = byId("map-points");
  new MapMoves(canvas, camera, {
    moved: () => {
      point(null);
      redraw();
      actions.moved();
    },
    pointed: (left, top, kind) => point(rowAt(left, top, kind)),
    chosen: (left, top, kind) => choose(rowAt(left, top, kind), kind),
    middle: () => point(rowAt(camera.width / 2, camera.height / 2, "touch")),
    entered: () => choose(state.row, "key"),
  });
  for (const [id, factor] of [["map-closer", 2], ["map-farther", 0.5]]) {
    byId(id).addEventListener("click", () => move(() => camera.zoomAt(camera.width / 2, camera.height / 2, factor)));
  }
  byId("map-whole").addEventListener("click", () => move(() => camera.reset()));
  byId("map-card").addEventListener("click", () => choose(state.row, "card"));
  new ResizeObserver(resize).observe(byId("map-frame"));
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
}

// Show the map of a collection at a place that `place` gave. Its points are loaded once.
export async function show(collection, text) {
  if (state.collection !== collection) {
    clear();
    state.collection = collection;
    await load(collection);
  }
  if (state.collection !== collection || !state.points) return;
  camera.fromText(text);
  resize();
}

export function place() {
  return camera.toText();
}

// The picture that is pointed at, if any.
export function pointedHit() {
  return state.row === null ? null : state.hits.get(state.row) ?? null;
}

function clear() {
  state.points = null;
  state.request = null;
  state.marked = [];
  state.hits.clear();
  state.pictures.clear();
  point(null);
  byId("map-frame").classList.remove("loaded");
  byId("map-error").hidden = true;
}

async function load(collection) {
  const address = `api/map/${encodeURIComponent(collection.name)}`;
  try {
    const [packed, { labels }] = await Promise.all([getBytes(address), get(`${address}/labels`)]);
    if (state.collection !== collection) return; // another one was chosen meanwhile
    state.drawing ??= drawingOn(byId("map-points"));
    state.points = new MapPoints(packed);
    camera.extent = state.points.extent();
    state.labels.use(labels);
    fill();
    byId("map-frame").classList.add("loaded");
  } catch (error) {
    showError(byId("map-error"), error);
    state.collection = null; // asked for again the next time
  }
}

// ------------------------------------------------------------------ drawing

function drawingOn(canvas) {
  const gl = hasGraphicsCard() ? canvas.getContext("webgl", { antialias: false }) : null;
  return gl ? new MapDrawing(canvas, gl, fill) : new MapCanvas(canvas);
}

// Hand the points and the marked ones to the graphics card.
function fill() {
  const { drawing, points, labels, marked } = state;
  if (!points) return;
  drawing.fill(drawing.all, points.placesOf(points.shown), regionOf(points, labels.coarsest));
  // The nearest is drawn last, over the others.
  const places = points.placesOf([...marked].reverse());
  drawing.fill(drawing.marked, places, new Uint8Array(marked.length));
  redraw();
}

function redraw() {
  if (state.isDue) return;
  state.isDue = true;
  requestAnimationFrame(() => {
    state.isDue = false;
    if (!state.points || byId("map").hidden) return;
    state.drawing.draw(camera, pointStyle(camera, state.points.count, state.marked.length > 0), markedStyle(camera));
    state.pictures.draw(camera, state.points, state.collection, state.marked);
    state.labels.draw(camera);
  });
}

function resize() {
  const frame = byId("map-frame");
  const canvas = byId("map-points");
  if (!frame.clientWidth) return; // another view is shown
  camera.resize(frame.clientWidth, frame.clientHeight);
  canvas.width = Math.round(frame.clientWidth * window.devicePixelRatio);
  canvas.height = Math.round(frame.clientHeight * window.devicePixelRatio);
  redraw();
}

function move(change) {
  change();
  point(null);
  redraw();
  state.actions.moved();
}

// ------------------------------------------------------------------ one picture

function rowAt(left, top, kind) {
  if (!state.points) return null;
  const [x, y] = camera.toMap(left, top);
  const reach = REACH[kind] / camera.scale;
  // A result that is marked is meant before the points around it.
  let best = null;
  let bestDistance = reach;
  for (const row of state.marked) {
    const distance = Math.hypot(state.points.x(row) - x, state.points.y(row) - y);
    if (distance < bestDistance) {
      best = row;
      bestDistance = distance;
    }
  }
  return best ?? state.points.nearest(x, y, reach);
}

function point(row) {
  if (row === state.row) return;
  state.row = row;
  byId("map-card").hidden = row === null;
  byId("map-ring").hidden = row === null;
  byId("map-points").classList.toggle("pointing", row !== null);
  if (row === null) return;
  const [left, top] = camera.toScreen(state.points.x(row), state.points.y(row));
  byId("map-ring").style.transform = `translate(${left}px, ${top}px)`;
  const caption = make("span", { className: "caption" }, "\u00a0");
  byId("map-card").replaceChildren(pictureOf(state.collection, row, 256, ""), caption);
  placeCard(left, top);
  window.setTimeout(async () => {
    if (state.row !== row) return;
    const hit = await hitOf(row);
    if (hit && state.row === row) caption.textContent = captionOf(hit);
  }, state.hits.has(row) ? 0 : CAPTION_MILLISECONDS);
}

// Beside the point, where it does not leave the frame.
function placeCard(left, top) {
  const card = byId("map-card");
  const gap = 16;
  const isLeft = left + gap + card.offsetWidth > camera.width - 8;
  const x = isLeft ? left - gap - card.offsetWidth : left + gap;
  const highest = Math.max(8, camera.height - card.offsetHeight - 8);
  const y = Math.min(Math.max(8, top - card.offsetHeight / 2), highest);
  card.style.transform = `translate(${Math.round(Math.max(8, x))}px, ${Math.round(y)}px)`;
}

// A mouse opens what it clicks on. A finger covers it, so the first tap shows the card.
async function choose(row, kind) {
  const isShown = row !== null && row === state.row;
  if (kind === "touch" && !isShown) {
    point(row);
    return;
  }
  const hit = row === null ? null : await hitOf(row);
  if (hit) state.actions.open(hit);
}

// Its metadata, or null where the server cannot be reached.
async function hitOf(row) {
  const { collection, hits } = state;
  if (!hits.has(row)) {
    try {
      const [answer] = await post("metadata", { ids: [row], indice_name: collection.name });
      hits.set(row, { row, score: null, metadata: answer.metadata });
    } catch (error) {
      showError(byId("map-error"), error);
      return null;
    }
    byId("map-error").hidden = true;
  }
  return hits.get(row);
}

// ------------------------------------------------------------------ results

// Mark the results of a query, as `search` of the page asks for them; null marks none.
export async function mark(request) {
  if (request === state.request) return;
  state.request = request;
  let hits = [];
  if (request !== null) {
    try {
      ({ hits } = await post("api/search", { ...request.body, k: NUM_MARKED, offset: 0 }, request.files));
    } catch {
      hits = []; // the page shows the message of its own request
    }
  }
  if (request !== state.request) return; // a newer query
  state.marked = hits.map((hit) => hit.row);
  for (const hit of hits) state.hits.set(hit.row, hit);
  byId("map-legend").hidden = !hits.length;
  byId("map-legend").textContent = hits.length === 1 ? "the result" : `the ${hits.length} nearest results`;
  fill();
}
