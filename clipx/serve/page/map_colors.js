// Colors and sizes of the points of a map.

const NUM_HUES = 12;

function isDark() {
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

// hue in degrees; the others in 0 ... 1
function rgb(hue, saturation, lightness) {
  const reach = saturation * Math.min(lightness, 1 - lightness);
  return [0, 8, 4].map((offset) => {
    const place = (offset + hue / 30) % 12;
    return lightness - reach * Math.max(-1, Math.min(place - 3, 9 - place, 1));
  });
}

// The number of the region of each point that is shown: that of the nearest center, as in k-means.
export function regionOf(points, centers) {
  const kinds = new Uint8Array(points.count);
  points.shown.forEach((row, place) => {
    const x = points.x(row);
    const y = points.y(row);
    let bestSquare = Infinity;
    centers.forEach((center, number) => {
      const square = (center.x - x) ** 2 + (center.y - y) ** 2;
      if (square < bestSquare) {
        bestSquare = square;
        kinds[place] = number % NUM_HUES;
      }
    });
  });
  return kinds;
}

// isQuiet: other points are marked
export function pointStyle(camera, count, isQuiet) {
  const colors = [];
  for (let number = 0; number < NUM_HUES; number += 1) {
    const saturation = isQuiet ? 0.2 : 0.42;
    const lightness = isDark() ? (isQuiet ? 0.42 : 0.62) : isQuiet ? 0.64 : 0.58;
    colors.push([...rgb(215 + number * (360 / NUM_HUES) * 5, saturation, lightness), isQuiet ? 0.6 : 0.7]);
  }
  // A third of the distance to the next point on a map that were even, which grows with the zoom.
  const distance = Math.sqrt((camera.width * camera.height) / Math.max(1, count));
  const size = Math.min(16, Math.max(1.7, 0.55 * distance) * camera.zoom ** 0.55);
  return { colors, size, rim: [0, 0, 0, 0] };
}

export function markedStyle(camera) {
  const color = isDark() ? [1, 0.72, 0.3, 1] : [0.85, 0.24, 0.1, 1];
  const rim = isDark() ? [0.08, 0.09, 0.11, 1] : [1, 1, 1, 1];
  return { colors: [color], size: Math.min(22, 8 * camera.zoom ** 0.3), rim };
}
