// The parts of a query and their chips. A part has a sign and a text, a row, or a file.

import { byId, make, pictureAddress } from "./dom.js";

export class Query {
  // onChange: called when a person has changed a chip
  constructor(onChange) {
    this.parts = [];
    this.onChange = onChange;
  }

  add(part) {
    this.parts.push(part);
  }

  clear() {
    this.parts = [];
  }

  // Terms and files of a request, with the text that is still in the box.
  request(text) {
    const terms = [];
    const files = [];
    for (const part of this.parts) {
      const term = { sign: part.sign };
      if (part.file) {
        term.picture = files.length;
        files.push(part.file);
      } else if (part.row !== undefined) {
        term.row = part.row;
      } else {
        term.text = part.text;
      }
      terms.push(term);
    }
    if (text) terms.push({ sign: 1, text });
    return { terms, files };
  }

  // For the address of the page; files have none.
  toParameters(parameters) {
    for (const part of this.parts) {
      const sign = part.sign > 0 ? "+" : "-";
      if (part.text !== undefined) parameters.append("text", sign + part.text);
      if (part.row !== undefined) parameters.append("row", sign + part.row);
    }
  }

  fromParameters(parameters) {
    this.parts = [];
    const signOf = (value) => (value.startsWith("-") ? -1 : 1);
    for (const value of parameters.getAll("text")) {
      this.add({ sign: signOf(value), text: value.slice(1) });
    }
    for (const value of parameters.getAll("row")) {
      const row = Number.parseInt(value.slice(1), 10);
      if (row >= 0) this.add({ sign: signOf(value), row });
    }
  }

  draw(collection) {
    const chips = this.parts.map((part) => this.chip(part, collection));
    byId("chips").replaceChildren(...chips);
  }

  chip(part, collection) {
    const isNear = part.sign > 0;
    const sign = make("button", {
      type: "button",
      className: "sign",
      textContent: isNear ? "+" : "−",
      title: isNear ? "Near; click for far" : "Far; click for near",
    });
    sign.addEventListener("click", () => {
      part.sign = -part.sign;
      this.onChange();
    });
    const remove = make("button", { type: "button", className: "remove", textContent: "×", title: "Remove" });
    remove.addEventListener("click", () => {
      this.parts = this.parts.filter((other) => other !== part);
      this.onChange();
    });
    return make("li", { className: isNear ? "chip" : "chip far" }, sign, chipContent(part, collection), remove);
  }
}

function chipContent(part, collection) {
  if (part.text !== undefined) return make("span", { className: "words" }, part.text);
  if (part.file) {
    part.address ??= URL.createObjectURL(part.file);
    return make("img", { src: part.address, alt: "your picture" });
  }
  if (!collection.has_pictures) return make("span", { className: "words" }, `row ${part.row}`);
  return make("img", { src: pictureAddress(collection, part.row, 64), alt: `picture ${part.row}` });
}
