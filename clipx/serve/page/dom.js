// Elements, requests and pictures: what both views use.

export function byId(id) {
  return document.getElementById(id);
}

// make("li", { className: "card" }, child, "text")
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children.filter((child) => child !== null));
  return element;
}

// The answer of the server, or an Error with its message.
export async function post(path, query, files = [], signal = undefined) {
  let body = JSON.stringify(query);
  const headers = {};
  if (files.length) {
    const form = new FormData();
    form.append("query", body);
    for (const file of files) form.append("picture", file, "picture");
    body = form;
  } else {
    headers["Content-Type"] = "application/json";
  }
  return answerOf(await fetch(path, { method: "POST", body, headers, signal }));
}

export async function get(path) {
  return answerOf(await fetch(path));
}

// An ArrayBuffer.
export async function getBytes(path) {
  const response = await fetch(path);
  return response.ok ? response.arrayBuffer() : answerOf(response);
}

async function answerOf(response) {
  let answer = {};
  try {
    answer = await response.json();
  } catch (error) {
    // A proxy in between may answer by a page. A request that was given up is another matter.
    if (!(error instanceof SyntaxError)) throw error;
  }
  if (!response.ok) throw new Error(answer.error ?? `The server answered ${response.status}.`);
  return answer;
}

export function showError(element, error) {
  const isLost = error instanceof TypeError;
  element.textContent = isLost ? "The server cannot be reached. Is it still running?" : error.message;
  element.hidden = false;
}

const TAKEN = ["image/jpeg", "image/png", "image/webp"];
const LARGEST_BYTES = 8e6;
const LARGEST_SIDE = 2048;

// A file that the server takes. Others, and very large ones, are drawn again by the browser.
export async function prepared(file) {
  if (TAKEN.includes(file.type) && file.size <= LARGEST_BYTES) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name || "This file"} is no picture that this browser can read.`);
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = make("canvas", {
    width: Math.max(1, Math.round(bitmap.width * scale)),
    height: Math.max(1, Math.round(bitmap.height * scale)),
  });
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// hit: { row, score, metadata }
export function captionOf(hit) {
  return String(hit.metadata.caption ?? hit.metadata.key);
}

export function pictureAddress(collection, row, size) {
  return `api/picture/${encodeURIComponent(collection.name)}/${row}?size=${size}`;
}

// An image of a sample, or a placeholder where its picture is gone.
export function pictureOf(collection, row, size, alt) {
  const frame = make("span", { className: "picture" });
  const placeholder = make("span", { className: "gone" }, "no picture");
  if (!collection.has_pictures) {
    frame.append(placeholder);
    return frame;
  }
  const image = make("img", { alt, loading: "lazy", decoding: "async" });
  image.addEventListener("load", () => frame.classList.add("loaded"));
  image.addEventListener("error", () => image.replaceWith(placeholder));
  image.src = pictureAddress(collection, row, size);
  frame.append(image);
  return frame;
}
