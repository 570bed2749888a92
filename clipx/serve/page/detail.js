// The dialog with one picture: its metadata, and what a person can do with it.

import { byId, captionOf, make, pictureOf } from "./dom.js";

const state = { hit: null, collection: null, actions: null };

// actions: like(row) searches for others like it; add(sign, row) makes it a part of the query;
// classify(hit); after(hit, step) is the hit some places on, if any; closed(hit)
export function start(actions) {
  state.actions = actions;
  const dialog = byId("detail");
  byId("close").addEventListener("click", close);
  byId("more").addEventListener("click", like);
  for (const [id, sign] of [["plus", 1], ["minus", -1]]) {
    byId(id).addEventListener("click", () => {
      close();
      actions.add(sign, state.hit.row);
    });
  }
  byId("to-classes").addEventListener("click", () => {
    close();
    actions.classify(state.hit);
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) close(); // the ground around it
  });
  dialog.addEventListener("close", () => actions.closed(state.hit));
}

// hit: of the results, or of the map
export function show(hit, collection) {
  state.hit = hit;
  state.collection = collection;
  const caption = captionOf(hit);
  byId("large").replaceChildren(pictureOf(collection, hit.row, 768, caption));
  byId("detail-caption").textContent = caption;
  const rows = [];
  if (hit.score !== null) rows.push(["similarity", hit.score.toFixed(4)]);
  for (const [name, value] of Object.entries(hit.metadata)) {
    // `url` of the examples is that of the picture here.
    if (name !== "caption" && !String(value).includes("/api/picture/")) rows.push([name, String(value)]);
  }
  const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  byId("metadata").tBodies[0].replaceChildren(...lines);
  if (!isOpen()) byId("detail").showModal();
}

export function isOpen() {
  return byId("detail").open;
}

function close() {
  byId("detail").close();
}

function like() {
  close();
  state.actions.like(state.hit.row);
}

// Of the document, while the dialog is open.
export function onKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const next = step ? state.actions.after(state.hit, step) : undefined;
  if (next) show(next, state.collection);
  if (event.key.toLowerCase() === "m") like();
}
