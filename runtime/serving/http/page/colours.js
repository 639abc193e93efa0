
"use strict";
// The colours of the overlays that the package draws.
const PALETTE = Array.from({ length: 256 }, (_, i) => {
  const h = (0.58 + i * 0.381966) % 1 * 6, s = [0.85, 0.6, 0.95][i % 3], v = [0.95, 1, 0.7][i % 3];
  return [5, 3, 1].map((n) => {
    const k = (n + h) % 6;
    return Math.round(255 * (v - v * s * Math.max(0, Math.min(k, 4 - k, 1))));
  });
});
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
const BAND = 3;  // pixels of the dark band inside the border of a pinned mask

function blend(from, to, share) { return from * (1 - share) + to * share; }

// The opacity of a mask: the chosen one stands out.
function shareOf(label, chosen, opacity) {
  return chosen < 0 ? opacity : label === chosen ? Math.min(1, opacity + 0.3) : opacity * 0.35;
}

// Draw masks over the pixels of an image. Pinned masks have a dark band inside their border.
function paint(pixels, labels, opacity, chosen = -1, pinned = new Set()) {
  const { width, height, data } = pixels, out = new ImageData(width, height);
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i], colour = PALETTE[label & 255], p = 4 * i, x = i % width;
    const edge = (x && labels[i - 1] !== label) || (i >= width && labels[i - width] !== label);
    const share = shareOf(label, chosen, opacity);
    for (let c = 0; c < 3; c++) out.data[p + c] = edge ? 255 : blend(data[p + c], colour[c], share);
    if (!edge && pinned.has(label) && inBand(labels, i, x, width)) for (let c = 0; c < 3; c++) out.data[p + c] *= 0.2;
    out.data[p + 3] = 255;
  }
  return out;
}

function inBand(labels, i, x, width) {
  const label = labels[i], below = i + BAND * width, above = i - BAND * width;
  return x < BAND || x >= width - BAND || above < 0 || below >= labels.length || labels[i - BAND] !== label
    || labels[i + BAND] !== label || labels[above] !== label || labels[below] !== label;
}

// Draw an attention map, whose red channel holds the values, over the pixels of an image.
function paintHeat(map, pixels) {
  const { data } = pixels, out = new ImageData(pixels.width, pixels.height);
  for (let p = 0; p < data.length; p += 4) {
    const root = Math.sqrt(map.data[p] / 255), t = root * 3.999, low = Math.floor(t), share = 0.25 + 0.6 * root;
    for (let c = 0; c < 3; c++) out.data[p + c] = blend(0.4 * data[p + c], blend(HEAT[low][c], HEAT[low + 1][c], t - low), share);
    out.data[p + 3] = 255;
  }
  return out;
}

// The mean colour of the pixels of each mask, from which the legend takes its colours: Map of label → [r, g, b].
function meanColours(pixels, labels) {
  const sums = new Map();
  for (let i = 0; i < labels.length; i++) {
    let sum = sums.get(labels[i]);
    if (!sum) sums.set(labels[i], sum = [0, 0, 0, 0]);
    for (let c = 0; c < 3; c++) sum[c] += pixels.data[4 * i + c];
    sum[3]++;
  }
  for (const [label, [r, g, b, n]] of sums) sums.set(label, [r / n, g / n, b / n]);
  return sums;
}

// The colour that a mask has on the canvas, on average.
function shown(label, mean, opacity) {
  return `rgb(${PALETTE[label & 255].map((value, c) => Math.round(blend(mean[c], value, opacity)))})`;
}

function pixelsOf({ bitmap }, width, height) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  if (bitmap) context.drawImage(bitmap, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}
