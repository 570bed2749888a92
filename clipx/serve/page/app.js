// The search page: the query and its address, the views, and the keyboard.

import * as detail from "./detail.js";
import { byId, captionOf, get, make, prepared, showError } from "./dom.js";
import * as files from "./files.js";
import * as filter from "./filter.js";
import * as map from "./map.js";
import { Query } from "./query.js";
import * as results from "./results.js";
import * as zeroShot from "./zero_shot.js";

const VIEWS = ["search", "map", "zero-shot"];
const MOST_FILES = 8; // that are added to a query at a time

const state = {
  collections: [],
  collection: null,
  modality: "image",
  request: null, // of the current query, as the server takes it; null before the first
  view: "search",
  place: "", // part of the map that the address names
};
const query = new Query(search);

// ------------------------------------------------------------------ searching

function search() {
  const text = byId("text").value.trim();
  const { terms, files: pictures } = query.request(text);
  query.draw(state.collection);
  byId("error").hidden = true;
  remember();
  if (terms.length) {
    const body = { index: state.collection.name, terms, modality: state.modality };
    if (filter.condition()) body.where = filter.condition();
    state.request = { body, files: pictures };
    results.show(state.collection, state.request);
  } else {
    state.request = null;
    results.showExamples(state.collection);
  }
  showOnMap();
}

function moreLike(row) {
  query.clear();
  query.add({ sign: 1, row });
  byId("text").value = "";
  search();
}

async function useFiles(pictures) {
  if (!byId("zero-shot").hidden) {
    zeroShot.useFile(pictures[0], state.collection);
    return;
  }
  byId("error").hidden = true;
  try {
    for (const file of pictures.slice(0, MOST_FILES)) query.add({ sign: 1, file: await prepared(file) });
  } catch (error) {
    showError(byId("error"), error);
    return;
  }
  search();
}

// ------------------------------------------------------------------ the address

function address() {
  const parameters = new URLSearchParams();
  const text = byId("text").value.trim();
  if (state.collections.length > 1) parameters.set("index", state.collection.name);
  if (text) parameters.set("q", text);
  query.toParameters(parameters);
  if (filter.condition()) parameters.set("where", filter.condition());
  if (state.modality !== "image") parameters.set("find", state.modality);
  if (state.view !== "search") parameters.set("view", state.view);
  if (state.view === "map" && state.place) parameters.set("at", state.place);
  return `#${parameters}`;
}

function remember() {
  if (address() !== (location.hash || "#")) history.pushState(null, "", address());
}

function restore() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const name = parameters.get("index");
  const collection = state.collections.find((each) => each.name === name) ?? state.collections[0];
  useCollection(collection);
  byId("text").value = parameters.get("q") ?? "";
  filter.setCondition(parameters.get("where") ?? "");
  useModality(parameters.get("find") === "text" ? "text" : "image");
  query.fromParameters(parameters);
  state.place = parameters.get("at") ?? "";
  showView(VIEWS.includes(parameters.get("view")) ? parameters.get("view") : "search");
  search();
}

// ------------------------------------------------------------------ settings and views

function useCollection(collection) {
  if (state.collection === collection) return;
  state.collection = collection;
  byId("collection").value = collection.name;
  byId("collection-name").textContent = state.collections.length > 1 ? "" : collection.name;
  byId("notice").hidden = collection.has_pictures;
  byId("modality").hidden = !collection.modalities.includes("text");
  filter.showColumns(collection.columns);
}

function useModality(modality) {
  state.modality = state.collection.modalities.includes(modality) ? modality : "image";
  for (const button of byId("modality").children) {
    button.setAttribute("aria-pressed", String(button.dataset.modality === state.modality));
  }
}

function showView(name) {
  state.view = name;
  for (const button of document.querySelectorAll("[data-view]")) {
    const isShown = button.dataset.view === name;
    byId(button.dataset.view).hidden = !isShown;
    if (isShown) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  byId("asking").hidden = name === "zero-shot";
  document.body.dataset.shown = name; // for the style of what all views share
  if (name === "map") map.show(state.collection, state.place);
}

// As a person does it: the address remembers the view, and what was left out for it is done now.
function changeView(name) {
  showView(name);
  remember();
  showOnMap();
  results.fillScreen();
}

function showOnMap() {
  if (state.view === "map") map.mark(state.request);
}

// Moves follow one another quickly, and browsers refuse more than some 100 changes in 30 seconds.
let moveTimer = 0;
function onMapMoved() {
  window.clearTimeout(moveTimer);
  moveTimer = window.setTimeout(() => {
    state.place = map.place();
    if (state.view === "map") history.replaceState(null, "", address());
  }, 300);
}

// ------------------------------------------------------------------ the keyboard

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (detail.isOpen()) {
    detail.onKey(event);
    return;
  }
  const isTyping = event.target.matches("input, textarea, select");
  if (event.key === "/" && !isTyping) {
    event.preventDefault();
    if (byId("asking").hidden) changeView("search");
    byId("text").select();
  } else if (event.key === "Escape") {
    goBack(event.target);
  } else if (event.key.startsWith("Arrow") && !byId("search").hidden) {
    results.moveFocus(event, isTyping);
  } else if (event.key.toLowerCase() === "m" && !isTyping) {
    const hit = event.target === byId("map-points") ? map.pointedHit() : results.hitOf(event.target);
    if (hit) moreLike(hit.row);
  }
}

// Escape leaves the results for the box, and then empties the query.
function goBack(target) {
  if (target.matches(".open")) {
    byId("text").focus();
  } else if (target === byId("text") && (query.parts.length || target.value)) {
    query.clear();
    target.value = "";
    search();
  } else if (target.matches("input, textarea")) {
    target.blur();
  }
}

// ------------------------------------------------------------------ starting

function startControls() {
  byId("query").addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const [id, sign] of [["add-near", 1], ["add-far", -1]]) {
    byId(id).addEventListener("click", () => {
      const text = byId("text").value.trim();
      byId("text").focus();
      if (!text) return;
      query.add({ sign, text });
      byId("text").value = "";
      search();
    });
  }
  byId("text").addEventListener("keydown", (event) => {
    if (event.key === "Backspace" && !byId("text").value && query.parts.length) {
      query.parts.pop();
      search();
    }
  });
  byId("modality").addEventListener("click", (event) => {
    if (!event.target.dataset.modality) return;
    useModality(event.target.dataset.modality);
    search();
  });
  byId("collection").addEventListener("change", (event) => {
    query.clear(); // rows are those of the other collection
    useCollection(state.collections.find((each) => each.name === event.target.value));
    useModality(state.modality);
    state.place = "";
    showView(state.view);
    search();
  });
  for (const button of document.querySelectorAll("[data-view]")) {
    button.addEventListener("click", () => changeView(button.dataset.view));
  }
}

function startDetail() {
  detail.start({
    like: moreLike,
    add: (sign, row) => {
      query.add({ sign, row });
      search();
    },
    classify: (hit) => {
      changeView("zero-shot");
      zeroShot.useRow(hit.row, state.collection, captionOf(hit));
    },
    after: results.after,
    closed: (hit) => {
      if (state.view === "search") results.focusOn(hit);
      if (state.view === "map") byId("map-points").focus({ preventScroll: true });
    },
  });
}

async function start() {
  try {
    state.collections = (await get("api/indices")).indices;
  } catch (error) {
    showError(byId("error"), error);
    return;
  }
  const options = state.collections.map((each) => make("option", { value: each.name }, each.name));
  byId("collection").replaceChildren(...options);
  byId("collection").hidden = options.length < 2;
  const open = (hit) => detail.show(hit, state.collection);
  startControls();
  startDetail();
  files.start(useFiles);
  filter.start(search);
  results.start({ open, like: moreLike });
  zeroShot.start(files.pick);
  map.start({ open, moved: onMapMoved });
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", restore);
  restore();
  if (window.matchMedia("(pointer: fine)").matches) byId("text").focus();
}

start();
