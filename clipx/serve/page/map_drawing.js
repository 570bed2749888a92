// Draws the points of a map with WebGL: all of them, and the results of a query over them.

const VERTICES = `
attribute vec2 place; // 0 to 1
attribute float kind; // number of a color
uniform vec2 center;
uniform vec2 scale; // of the map, to the frame from -1 to 1
uniform float size; // in pixels
uniform vec4 colors[16];
varying vec4 color;
varying float edge; // of a disc with a radius of 1, that a pixel takes

void main() {
  gl_Position = vec4((place * 2.0 - 1.0 - center) * scale, 0.0, 1.0);
  gl_PointSize = size + 1.0;
  color = colors[int(kind)];
  edge = 2.0 / (size + 1.0);
}`;

const FRAGMENTS = `
precision mediump float;
uniform vec4 rim; // of width 0 where it is transparent
varying vec4 color;
varying float edge;

void main() {
  float distance = length(gl_PointCoord * 2.0 - 1.0);
  float cover = 1.0 - smoothstep(1.0 - edge, 1.0, distance);
  float inside = 1.0 - rim.a * smoothstep(0.62 - edge, 0.62, distance);
  vec4 mixed = mix(rim, color, inside);
  gl_FragColor = vec4(mixed.rgb * mixed.a * cover, mixed.a * cover);
}`;

const NUM_KINDS = 16;

// Whether WebGL is more than a program of the processor.
export function hasGraphicsCard() {
  const gl = document.createElement("canvas").getContext("webgl", { failIfMajorPerformanceCaveat: true });
  if (!gl) return false;
  // Some browsers tell by its name only, in an extension that others have no more.
  let name = gl.getParameter(gl.RENDERER);
  const extension = name === "WebKit WebGL" ? gl.getExtension("WEBGL_debug_renderer_info") : null;
  if (extension) name = gl.getParameter(extension.UNMASKED_RENDERER_WEBGL);
  gl.getExtension("WEBGL_lose_context")?.loseContext(); // a page has a few contexts only
  return !/swiftshader|llvmpipe|softpipe|software/i.test(name);
}

export class MapDrawing {
  // gl: context of the canvas; onRestored: called when the browser has taken it away and given a
  // new one, which has no points
  constructor(canvas, gl, onRestored) {
    this.canvas = canvas;
    this.gl = gl;
    this.start();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => {
      this.start();
      onRestored();
    });
  }

  start() {
    const { gl } = this;
    const program = gl.createProgram();
    for (const [type, source] of [[gl.VERTEX_SHADER, VERTICES], [gl.FRAGMENT_SHADER, FRAGMENTS]]) {
      const shader = gl.createShader(type);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      throw new Error("The map cannot be drawn by this browser's WebGL.");
    }
    gl.useProgram(program);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    this.uniform = {};
    for (const name of ["center", "scale", "size", "colors", "rim"]) {
      this.uniform[name] = gl.getUniformLocation(program, name);
    }
    this.place = gl.getAttribLocation(program, "place");
    this.kind = gl.getAttribLocation(program, "kind");
    gl.enableVertexAttribArray(this.place);
    gl.enableVertexAttribArray(this.kind);
    this.all = this.layer();
    this.marked = this.layer();
  }

  layer() {
    return { places: this.gl.createBuffer(), kinds: this.gl.createBuffer(), count: 0 };
  }

  // places: Uint16Array of x and y; kinds: Uint8Array of the number of a color for each
  fill(layer, places, kinds) {
    const { gl } = this;
    gl.bindBuffer(gl.ARRAY_BUFFER, layer.places);
    gl.bufferData(gl.ARRAY_BUFFER, places, gl.STATIC_DRAW);
    gl.bindBuffer(gl.ARRAY_BUFFER, layer.kinds);
    gl.bufferData(gl.ARRAY_BUFFER, kinds, gl.STATIC_DRAW);
    layer.count = kinds.length;
  }

  // style: { colors: [[r, g, b, a], ...], rim: [r, g, b, a], size } in 0 ... 1 and CSS pixels
  draw(camera, allStyle, markedStyle) {
    const { gl, canvas } = this;
    const ratio = canvas.width / camera.width;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.uniform.center, camera.x, camera.y);
    gl.uniform2f(this.uniform.scale, (2 * camera.scale) / camera.width, (2 * camera.scale) / camera.height);
    this.drawLayer(this.all, allStyle, ratio);
    this.drawLayer(this.marked, markedStyle, ratio);
  }

  drawLayer(layer, style, ratio) {
    if (!layer.count) return;
    const { gl, uniform } = this;
    const colors = new Float32Array(4 * NUM_KINDS);
    style.colors.slice(0, NUM_KINDS).forEach((color, kind) => colors.set(color, 4 * kind));
    gl.uniform4fv(uniform.colors, colors);
    gl.uniform4fv(uniform.rim, style.rim);
    gl.uniform1f(uniform.size, style.size * ratio);
    gl.bindBuffer(gl.ARRAY_BUFFER, layer.places);
    gl.vertexAttribPointer(this.place, 2, gl.UNSIGNED_SHORT, true, 0, 0);
    gl.bindBuffer(gl.ARRAY_BUFFER, layer.kinds);
    gl.vertexAttribPointer(this.kind, 1, gl.UNSIGNED_BYTE, false, 0, 0);
    gl.drawArrays(gl.POINTS, 0, layer.count);
  }
}
