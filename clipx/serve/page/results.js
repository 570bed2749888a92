// The results in a grid: pages of a query as the person scrolls, or samples before the first query.

import { byId, captionOf, make, pictureOf, post, showError } from "./dom.js";

const PAGE = 40;
const NUM_EXAMPLES = 36;

const state = {
  collection: null,
  request: null, // of the query that is shown, repeated with an offset
  hits: [],
  loaded: 0, // results that pages have had
  hasMore: false,
  isLoading: false,
  controller: new AbortController(), // of the last request
  actions: null,
};

// actions: open(hit) shows a picture; like(row) searches for others like it
export function start(actions) {
  state.actions = actions;
  new IntersectionObserver(fillScreen, { rootMargin: "600px" }).observe(byId("end"));
}

// Show the results of a query, nearest first.
export function show(collection, request) {
  state.collection = collection;
  state.request = request;
  byId("heading").textContent = "";
  loadPage(0);
}

// Before the first query: some samples, evenly spaced.
export async function showExamples(collection) {
  state.collection = collection;
  state.hasMore = false;
  const controller = newController();
  const count = Math.min(NUM_EXAMPLES, collection.num_rows);
  const ids = [];
  for (let place = 0; place < count; place += 1) {
    ids.push(Math.floor(((place + 0.5) * collection.num_rows) / count));
  }
  byId("status").textContent = "";
  try {
    const body = { ids, indice_name: collection.name };
    const answer = await post("metadata", body, [], controller.signal);
    if (controller.signal.aborted) return;
    clear();
    const number = collection.num_rows.toLocaleString("en");
    byId("heading").textContent = `Some of the ${number} pictures`;
    addHits(answer.map(({ id, metadata }) => ({ row: id, score: null, metadata })), false);
  } catch (error) {
    if (error.name !== "AbortError") showError(byId("error"), error);
  }
}

// An older query is given up.
function newController() {
  state.controller.abort();
  state.controller = new AbortController();
  return state.controller;
}

async function loadPage(offset) {
  if (offset === 0) newController();
  else if (state.isLoading || !state.hasMore) return;
  const { controller, request } = state;
  state.isLoading = true;
  const start = performance.now();
  try {
    const body = { ...request.body, k: PAGE, offset };
    const answer = await post("api/search", body, request.files, controller.signal);
    if (controller.signal.aborted) return;
    const milliseconds = Math.round(performance.now() - start);
    if (offset === 0) clear();
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
    if (offset === 0) clear();
    byId("status").textContent = "";
    showError(byId("error"), error);
  }
}

// The observer reports changes only: a short page may leave the end in sight.
export function fillScreen() {
  const isNear = byId("end").getBoundingClientRect().top < window.innerHeight + 600;
  if (isNear && state.hasMore && state.hits.length && !byId("search").hidden) loadPage(state.loaded);
}

function clear() {
  state.hits = [];
  byId("grid").replaceChildren();
}

function addHits(hits, hasScores) {
  state.hits.push(...hits);
  byId("grid").append(...hits.map((hit) => card(hit, hasScores)));
}

function card(hit, hasScore) {
  const caption = captionOf(hit);
  const open = make("button", { type: "button", className: "open", title: caption });
  open.append(pictureOf(state.collection, hit.row, 256, caption));
  open.addEventListener("click", () => state.actions.open(hit));
  const more = make("button", { type: "button", className: "like", textContent: "≈", title: "More like this", tabIndex: -1 });
  more.addEventListener("click", () => state.actions.like(hit.row));
  const score = hasScore ? make("span", { className: "score" }, hit.score.toFixed(3)) : null;
  const text = make("p", {}, make("span", { className: "caption" }, caption), score);
  return make("li", { className: "card" }, open, more, text);
}

// ------------------------------------------------------------------ moving between them

function cardButtons() {
  return [...byId("grid").querySelectorAll(".open")];
}

// The hit of a card's button.
export function hitOf(button) {
  return state.hits[cardButtons().indexOf(button)];
}

// The hit some places after another one; undefined beyond the ends, and for a hit of the map.
export function after(hit, step) {
  const place = state.hits.indexOf(hit);
  return place < 0 ? undefined : state.hits[place + step];
}

export function focusOn(hit) {
  cardButtons()[state.hits.indexOf(hit)]?.focus();
}

// By the arrows, in a grid of any number of columns; above its first row is the box.
export function moveFocus(event, isTyping) {
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
