// The view that classifies one picture by names of classes.

import { byId, make, pictureOf, post, prepared, showError } from "./dom.js";

const state = { file: null, row: null, collection: null, last: 0 };

export function start(pickFile) {
  byId("drop").addEventListener("click", pickFile);
  byId("classes").addEventListener("submit", (event) => {
    event.preventDefault();
    classify();
  });
  byId("names").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) classify();
  });
}

export async function useFile(file, collection) {
  try {
    state.file = await prepared(file);
  } catch (error) {
    showError(byId("classify-error"), error);
    return;
  }
  state.row = null;
  state.collection = collection;
  const image = make("img", { src: URL.createObjectURL(file), alt: "your picture" });
  byId("drop").replaceChildren(image);
  classify();
}

export function useRow(row, collection, caption) {
  state.file = null;
  state.row = row;
  state.collection = collection;
  byId("drop").replaceChildren(pictureOf(collection, row, 512, caption));
  classify();
}

async function classify() {
  const names = byId("names").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const distinct = [...new Set(names)];
  byId("classify-error").hidden = true;
  if (!distinct.length) {
    byId("bars").replaceChildren(make("li", { className: "hint" }, "Type some classes, one a line."));
    byId("names").focus();
    return;
  }
  if (!state.file && state.row === null) {
    byId("bars").replaceChildren(make("li", { className: "hint" }, "Choose a picture first."));
    return;
  }
  const query = { index: state.collection.name, names: distinct, prompts: [byId("prompt").value.trim() || "{c}"] };
  if (state.row !== null) query.row = state.row;
  const number = ++state.last;
  try {
    const answer = await post("api/classify", query, state.file ? [state.file] : []);
    if (number === state.last) draw(answer.classes);
  } catch (error) {
    byId("bars").replaceChildren();
    showError(byId("classify-error"), error);
  }
}

function draw(classes) {
  const sorted = [...classes].sort((first, second) => second.probability - first.probability);
  const bars = sorted.map(({ name, probability }) => {
    const fill = make("span", { className: "fill" });
    fill.style.width = `${100 * probability}%`;
    const percent = probability < 0.001 ? "<0.1 %" : `${(100 * probability).toFixed(1)} %`;
    return make(
      "li",
      {},
      make("span", { className: "name" }, name),
      make("span", { className: "percent" }, percent),
      make("span", { className: "track" }, fill),
    );
  });
  byId("bars").replaceChildren(...bars);
}
