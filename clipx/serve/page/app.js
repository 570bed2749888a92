// The search page: the query, its results, the view of one picture, and the keyboard.

import { byId, captionOf, get, make, pictureOf, post, prepared, showError } from "./dom.js";
import * as map from "./map.js";
import { Query } from "./query.js";
import * as zeroShot from "./zero_shot.js";

const PAGE = 40;
const NUM_EXAMPLES = 36;
const VIEWS = ["search", "map", "zero-shot"];

const state = {
  collections: [],
  collection: null,
  modality: "image",
  hits: [],
  loaded: 0, // results that pages have had
  hasMore: false,
  isLoading: false,
  request: null, // of the current query, repeated with an offset
  controller: new AbortController(),
  shown: null, // the hit in the dialog
  view: "search",
  place: "", // part of the map that the address names
};
const query = new Query(search);

// ------------------------------------------------------------------ searching

function search() {
  const text = byId("text").value.trim();
  const { terms, files } = query.request(text);
  query.draw(state.collection);
  byId("error").hidden = true;
  remember(text);
  if (!terms.length) {
    state.request = null;
    showExamples();
    showOnMap();
    return;
  }
  const body = { index: state.collection.name, terms, k: PAGE, modality: state.modality };
  const where = byId("where").value.trim();
  if (where) body.where = where;
  state.request = { body, files };
  byId("heading").textContent = "";
  loadPage(0);
  showOnMap();
}

async function loadPage(offset) {
  if (offset === 0) {
    state.controller.abort(); // an older query
    state.controller = new AbortController();
  } else if (state.isLoading || !state.hasMore) {
    return;
  }
  const { controller, request } = state;
  state.isLoading = true;
  const start = performance.now();
  try {
    const answer = await post("api/search", { ...request.body, offset }, request.files, controller.signal);
    if (controller.signal.aborted) return;
    const milliseconds = Math.round(performance.now() - start);
    if (offset === 0) clearGrid();
    state.hasMore = answer.has_more;
    // Far down, an approximate index may find a result a second time.
    const known = new Set(state.hits.map((hit) => hit.row));
    state.loaded = offset + answer.hits.length;
    addHits(answer.hits.filter((hit) => !known.has(hit.row)), true);
    const passed = request.body.where ? "that pass the filter, " : "";
    const count = state.hits.length ? `${passed}nearest first · ${milliseconds} ms` : "";
    byId("status").textContent = count;
    if (!state.hits.length) byId("heading").textContent = "No sample passes the filter.";
    state.isLoading = false;
    if (offset === 0) window.scrollTo({ top: 0 });
    fillScreen();
  } catch (error) {
    if (error.name === "AbortError") return;
    state.isLoading = false;
    state.hasMore = false;
    if (offset === 0) clearGrid();
    byId("status").textContent = "";
    showError(byId("error"), error);
  }
}

// The observer reports changes only: a short page may leave the end in sight.
function fillScreen() {
  const isNear = byId("end").getBoundingClientRect().top < window.innerHeight + 600;
  if (isNear && state.hasMore && state.hits.length && !byId("search").hidden) loadPage(state.loaded);
}

// Before the first query: some samples, evenly spaced.
async function showExamples() {
  state.controller.abort();
  state.controller = new AbortController();
  const { collection, controller } = state;
  const count = Math.min(NUM_EXAMPLES, collection.num_rows);
  const ids = [];
  for (let place = 0; place < count; place += 1) {
    ids.push(Math.floor(((place + 0.5) * collection.num_rows) / count));
  }
  byId("status").textContent = "";
  state.hasMore = false;
  try {
    const body = { ids, indice_name: collection.name };
    const answer = await post("metadata", body, [], controller.signal);
    if (controller.signal.aborted) return;
    clearGrid();
    const number = collection.num_rows.toLocaleString("en");
    byId("heading").textContent = `Some of the ${number} pictures`;
    addHits(answer.map(({ id, metadata }) => ({ row: id, score: null, metadata })), false);
  } catch (error) {
    if (error.name !== "AbortError") showError(byId("error"), error);
  }
}

function addressOf(text) {
  const parameters = new URLSearchParams();
  if (state.collections.length > 1) parameters.set("index", state.collection.name);
  if (text) parameters.set("q", text);
  query.toParameters(parameters);
  if (byId("where").value.trim()) parameters.set("where", byId("where").value.trim());
  if (state.modality !== "image") parameters.set("find", state.modality);
  if (state.view !== "search") parameters.set("view", state.view);
  if (state.view === "map" && state.place) parameters.set("at", state.place);
  return `#${parameters}`;
}

function remember(text) {
  const address = addressOf(text);
  if (address !== (location.hash || "#")) history.pushState(null, "", address);
}

function restore() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  const name = parameters.get("index");
  const collection = state.collections.find((each) => each.name === name) ?? state.collections[0];
  useCollection(collection);
  byId("text").value = parameters.get("q") ?? "";
  byId("where").value = parameters.get("where") ?? "";
  if (byId("where").value) showFilter(true);
  useModality(parameters.get("find") === "text" ? "text" : "image");
  query.fromParameters(parameters);
  state.place = parameters.get("at") ?? "";
  showView(VIEWS.includes(parameters.get("view")) ? parameters.get("view") : "search");
  search();
}

// ------------------------------------------------------------------ results

function clearGrid() {
  state.hits = [];
  byId("grid").replaceChildren();
}

function addHits(hits, hasScores) {
  const cards = [];
  for (const hit of hits) {
    const number = state.hits.length;
    state.hits.push(hit);
    cards.push(card(hit, number, hasScores));
  }
  byId("grid").append(...cards);
}

function card(hit, number, hasScore) {
  const caption = captionOf(hit);
  const open = make("button", { type: "button", className: "open", title: caption });
  open.append(pictureOf(state.collection, hit.row, 256, caption));
  open.addEventListener("click", () => showDetail(state.hits[number]));
  const more = make("button", { type: "button", className: "like", textContent: "≈", title: "More like this", tabIndex: -1 });
  more.addEventListener("click", () => moreLike(hit.row));
  const score = hasScore ? make("span", { className: "score" }, hit.score.toFixed(3)) : null;
  const text = make("p", {}, make("span", { className: "caption" }, caption), score);
  return make("li", { className: "card" }, open, more, text);
}

function moreLike(row) {
  byId("detail").close();
  query.clear();
  query.add({ sign: 1, row });
  byId("text").value = "";
  search();
}

// ------------------------------------------------------------------ one picture

// hit: of the results, or of the map
function showDetail(hit) {
  if (!hit) return;
  state.shown = hit;
  const caption = captionOf(hit);
  byId("large").replaceChildren(pictureOf(state.collection, hit.row, 768, caption));
  byId("detail-caption").textContent = caption;
  const rows = [];
  if (hit.score !== null) rows.push(["similarity", hit.score.toFixed(4)]);
  for (const [name, value] of Object.entries(hit.metadata)) {
    // `url` of the examples is that of the picture here.
    if (name !== "caption" && !String(value).includes("/api/picture/")) rows.push([name, String(value)]);
  }
  const lines = rows.map(([name, value]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, value)));
  byId("metadata").tBodies[0].replaceChildren(...lines);
  if (!byId("detail").open) byId("detail").showModal();
}

function startDetail() {
  const dialog = byId("detail");
  const row = () => state.shown.row;
  byId("close").addEventListener("click", () => dialog.close());
  byId("more").addEventListener("click", () => moreLike(row()));
  for (const [id, sign] of [["plus", 1], ["minus", -1]]) {
    byId(id).addEventListener("click", () => {
      query.add({ sign, row: row() });
      dialog.close();
      search();
    });
  }
  byId("to-classes").addEventListener("click", () => {
    dialog.close();
    changeView("zero-shot");
    zeroShot.useRow(row(), state.collection, captionOf(state.shown));
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // the ground around it
  });
  dialog.addEventListener("close", () => {
    if (state.view === "search") cardButtons()[state.hits.indexOf(state.shown)]?.focus();
    if (state.view === "map") byId("map-points").focus({ preventScroll: true });
  });
}

// ------------------------------------------------------------------ the keyboard

function cardButtons() {
  return [...byId("grid").querySelectorAll(".open")];
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const isTyping = event.target.matches("input, textarea, select");
  if (byId("detail").open) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const number = state.hits.indexOf(state.shown);
    if (step && number >= 0) showDetail(state.hits[number + step]);
    if (event.key.toLowerCase() === "m") moreLike(state.shown.row);
    return;
  }
  if (event.key === "/" && !isTyping) {
    event.preventDefault();
    if (byId("asking").hidden) changeView("search");
    byId("text").select();
  } else if (event.key === "Escape") {
    goBack(event.target);
  } else if (event.key.startsWith("Arrow") && !byId("search").hidden) {
    moveFocus(event, isTyping);
  } else if (event.key.toLowerCase() === "m" && event.target.matches(".open")) {
    moreLike(state.hits[cardButtons().indexOf(event.target)].row);
  } else if (event.key.toLowerCase() === "m" && event.target === byId("map-points")) {
    const hit = map.pointedHit();
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

function moveFocus(event, isTyping) {
  const buttons = cardButtons();
  const place = buttons.indexOf(document.activeElement);
  if (isTyping && !(event.key === "ArrowDown" && event.target === byId("text"))) return;
  if (!buttons.length) return;
  const columns = getComputedStyle(byId("grid")).gridTemplateColumns.split(" ").length;
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  event.preventDefault();
  if (place < 0) {
    buttons[0].focus();
  } else if (place + step < 0) {
    byId("text").focus();
  } else {
    buttons[Math.min(place + step, buttons.length - 1)].focus();
  }
}

// ------------------------------------------------------------------ files

async function useFiles(files) {
  const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
  if (!pictures.length) return;
  if (!byId("zero-shot").hidden) {
    zeroShot.useFile(pictures[0], state.collection);
    return;
  }
  byId("error").hidden = true;
  try {
    for (const file of pictures.slice(0, 8)) query.add({ sign: 1, file: await prepared(file) });
  } catch (error) {
    showError(byId("error"), error);
    return;
  }
  search();
}

function startFiles() {
  const input = byId("file");
  input.addEventListener("change", () => {
    useFiles(input.files);
    input.value = "";
  });
  byId("pick").addEventListener("click", () => input.click());
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      useFiles(event.clipboardData.files);
    }
  });
  const hasFiles = (event) => [...event.dataTransfer.types].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    byId("dropping").hidden = false;
  });
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) byId("dropping").hidden = true;
  });
  document.addEventListener("drop", (event) => {
    byId("dropping").hidden = true;
    if (!hasFiles(event)) return;
    event.preventDefault();
    useFiles(event.dataTransfer.files);
  });
}

// ------------------------------------------------------------------ settings and views

function useCollection(collection) {
  if (state.collection === collection) return;
  state.collection = collection;
  byId("collection").value = collection.name;
  byId("collection-name").textContent = state.collections.length > 1 ? "" : collection.name;
  byId("notice").hidden = collection.has_pictures;
  byId("modality").hidden = !collection.modalities.includes("text");
  byId("columns").replaceChildren(...collection.columns.flatMap(columnLines));
}

function columnLines(column) {
  const name = make("button", { type: "button", className: "column", title: column.type }, column.name);
  name.addEventListener("click", () => addCondition(`${column.name} = `, false));
  const examples = column.examples.map((value) => {
    const example = make("button", { type: "button", className: "example" }, value);
    example.addEventListener("click", () => addCondition(`${column.name} = ${value}`, true));
    return example;
  });
  const kind = make("span", { className: "kind" }, column.type === "string" ? "text" : column.type);
  return [make("dt", {}, name), make("dd", {}, ...(examples.length ? examples : [kind]))];
}

function addCondition(condition, isWhole) {
  const where = byId("where");
  where.value = where.value.trim() ? `${where.value.trim()} and ${condition}` : condition;
  if (isWhole) search();
  else where.focus();
}

function useModality(modality) {
  state.modality = state.collection.modalities.includes(modality) ? modality : "image";
  for (const button of byId("modality").children) {
    button.setAttribute("aria-pressed", String(button.dataset.modality === state.modality));
  }
}

function showFilter(isShown) {
  byId("filter").hidden = !isShown;
  byId("filter-toggle").setAttribute("aria-expanded", String(isShown));
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
  remember(byId("text").value.trim());
  showOnMap();
  fillScreen();
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
    if (state.view === "map") history.replaceState(null, "", addressOf(byId("text").value.trim()));
  }, 300);
}

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
  byId("where").addEventListener("keydown", (event) => {
    if (event.key === "Enter") search();
  });
  byId("filter-toggle").addEventListener("click", () => {
    showFilter(byId("filter").hidden);
    if (!byId("filter").hidden) byId("where").focus();
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
  startControls();
  startDetail();
  startFiles();
  zeroShot.start(() => byId("file").click());
  map.start({ open: showDetail, moved: onMapMoved });
  document.addEventListener("keydown", onKey);
  window.addEventListener("popstate", restore);
  new IntersectionObserver(fillScreen, { rootMargin: "600px" }).observe(byId("end"));
  restore();
  if (window.matchMedia("(pointer: fine)").matches) byId("text").focus();
}

start();
