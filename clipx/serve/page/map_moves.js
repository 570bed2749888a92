// Mouse, wheel, fingers and keys on the map.

const CLICK_PIXELS = 5; // that a pointer may move between down and up of a click
const KEY_PIXELS = 80;
const WHEEL = 0.0016; // doublings of the zoom per pixel that a wheel scrolls

export class MapMoves {
  // events: moved() after a change of the camera; pointed(left, top, kind) under a mouse at rest;
  // chosen(left, top, kind) by a click or tap; middle() when keys have moved; entered() by Enter
  constructor(canvas, camera, events) {
    this.canvas = canvas;
    this.camera = camera;
    this.events = events;
    this.pointers = new Map(); // id -> place of each pointer that is down
    this.isClick = false;
    canvas.addEventListener("pointerdown", (event) => this.onDown(event));
    canvas.addEventListener("pointermove", (event) => this.onMove(event));
    canvas.addEventListener("pointerup", (event) => this.onUp(event));
    canvas.addEventListener("pointercancel", (event) => this.pointers.delete(event.pointerId));
    canvas.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !this.pointers.size) this.events.pointed(-1e6, -1e6, "mouse");
    });
    canvas.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    canvas.addEventListener("keydown", (event) => this.onKey(event));
  }

  placeOf(event) {
    const frame = this.canvas.getBoundingClientRect();
    return { left: event.clientX - frame.left, top: event.clientY - frame.top };
  }

  onDown(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.placeOf(event));
    this.isClick = this.pointers.size === 1;
    this.start = this.placeOf(event);
  }

  onMove(event) {
    const place = this.placeOf(event);
    const before = this.pointers.get(event.pointerId);
    if (!before) {
      if (event.pointerType === "mouse") this.events.pointed(place.left, place.top, "mouse");
      return;
    }
    if (this.isClick && Math.hypot(place.left - this.start.left, place.top - this.start.top) < CLICK_PIXELS) return;
    this.isClick = false;
    if (this.pointers.size === 1) this.camera.pan(place.left - before.left, place.top - before.top);
    else this.pinch(event.pointerId, before, place);
    this.pointers.set(event.pointerId, place);
    this.events.moved();
  }

  // The other finger is the center of the zoom, so that what is under both stays there.
  pinch(id, before, place) {
    const [, other] = [...this.pointers].find(([key]) => key !== id);
    const distance = (point) => Math.max(1, Math.hypot(point.left - other.left, point.top - other.top));
    this.camera.zoomAt(other.left, other.top, distance(place) / distance(before));
  }

  onUp(event) {
    const isKnown = this.pointers.delete(event.pointerId);
    if (!isKnown || !this.isClick) return;
    this.isClick = false;
    const place = this.placeOf(event);
    this.events.chosen(place.left, place.top, event.pointerType || "mouse");
  }

  onWheel(event) {
    event.preventDefault();
    const { left, top } = this.placeOf(event);
    // Some browsers count lines; a pinch on a touchpad arrives as small steps with the Ctrl key.
    const pixels = event.deltaY * (event.deltaMode === 1 ? 33 : 1) * (event.ctrlKey ? 6 : 1);
    this.camera.zoomAt(left, top, 2 ** (-pixels * WHEEL));
    this.events.moved();
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const steps = { ArrowLeft: [1, 0], ArrowRight: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const zooms = { "+": 1.5, "=": 1.5, "-": 1 / 1.5 };
    if (event.key in steps) {
      const [right, down] = steps[event.key];
      this.camera.pan(right * KEY_PIXELS, down * KEY_PIXELS);
    } else if (event.key in zooms) {
      this.camera.zoomAt(this.camera.width / 2, this.camera.height / 2, zooms[event.key]);
    } else if (event.key === "0") {
      this.camera.reset();
    } else if (event.key === "Enter") {
      event.preventDefault(); // the same key would press the button that the dialog focuses
      this.events.entered();
      return;
    } else if (event.key === "Escape") {
      this.events.pointed(-1e6, -1e6, "mouse");
      return;
    } else {
      return;
    }
    event.preventDefault();
    this.events.moved();
    this.events.middle();
  }
}
