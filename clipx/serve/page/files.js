// Pictures of the person's own: picked, pasted, or dropped anywhere on the page.

import { byId } from "./dom.js";

// use: called with a list of files, not empty
export function start(use) {
  const usePictures = (files) => {
    const pictures = [...files].filter((file) => file.type.startsWith("image/") || !file.type);
    if (pictures.length) use(pictures);
  };
  const input = byId("file");
  input.addEventListener("change", () => {
    usePictures(input.files);
    input.value = "";
  });
  byId("pick").addEventListener("click", pick);
  document.addEventListener("paste", (event) => {
    if (event.clipboardData.files.length) {
      event.preventDefault();
      usePictures(event.clipboardData.files);
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
    usePictures(event.dataTransfer.files);
  });
}

export function pick() {
  byId("file").click();
}
