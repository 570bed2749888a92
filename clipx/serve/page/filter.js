// The condition on the metadata, with the columns and some of their values to click on.

import { byId, make } from "./dom.js";

let search = null;

// onSearch: called when a person has finished a condition
export function start(onSearch) {
  search = onSearch;
  byId("where").addEventListener("keydown", (event) => {
    if (event.key === "Enter") search();
  });
  byId("filter-toggle").addEventListener("click", () => {
    show(byId("filter").hidden);
    if (!byId("filter").hidden) byId("where").focus();
  });
}

// The condition, or an empty text.
export function condition() {
  return byId("where").value.trim();
}

export function setCondition(text) {
  byId("where").value = text;
  if (text) show(true);
}

function show(isShown) {
  byId("filter").hidden = !isShown;
  byId("filter-toggle").setAttribute("aria-expanded", String(isShown));
}

// columns: { name, type, examples } of a collection
export function showColumns(columns) {
  byId("columns").replaceChildren(...columns.flatMap(columnLines));
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

function addCondition(text, isWhole) {
  const before = condition();
  byId("where").value = before ? `${before} and ${text}` : text;
  if (isWhole) search();
  else byId("where").focus();
}
