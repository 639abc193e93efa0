
// A sheet is the label map that a panel shows, with what the user did to it. Sheets are never changed, only replaced,
// so the history can hold them: { width, height, labels: Uint16Array, segments: [{ label, area }] (largest first),
// pinned: Set of labels, thresholds: Map of label → threshold of its last split, edited: whether the labels differ
// from those of the server }.
const LEAST_PART = 0.02;  // of a mask: smaller parts do not count as parts when it is split

// COCO's run-length string → run lengths in column order, background first.
function runs(text) {
  const counts = [];
  for (let i = 0; i < text.length;) {
    let value = 0, shift = 0, digit;
    do {
      digit = text.charCodeAt(i++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

function labelMap({ width, height, segments }) {
  const columns = new Uint16Array(width * height), labels = new Uint16Array(width * height);
  for (const { label, segmentation } of segments) {
    let place = 0;
    runs(segmentation.counts).forEach((count, i) => {
      if (i % 2) columns.fill(label, place, place + count);
      place += count;
    });
  }
  for (let x = 0; x < width; x++) for (let y = 0; y < height; y++) labels[y * width + x] = columns[x * height + y];
  return labels;
}

function areas(labels) {
  const found = new Map();
  for (const label of labels) found.set(label, (found.get(label) || 0) + 1);
  return found;
}

function sheetOf(masks) {
  const { width, height, segments } = masks;
  return { width, height, labels: labelMap(masks), segments: segments.map(({ label, area }) => ({ label, area })),
    pinned: new Set(), thresholds: new Map(), edited: false };
}

// The sheet with other labels. Pins of labels that no pixel has any more are dropped.
function changed(sheet, labels, pinned, thresholds = sheet.thresholds) {
  const segments = [...areas(labels)].map(([label, area]) => ({ label, area })).sort((a, b) => b.area - a.area || a.label - b.label);
  const left = new Set(segments.map(({ label }) => label));
  return { ...sheet, labels, segments, thresholds, pinned: new Set([...pinned].filter((label) => left.has(label))), edited: true };
}

function firstFree(taken) {
  let label = 0;
  while (taken.has(label)) label++;
  taken.add(label);
  return label;
}

// Lay the pinned masks of a sheet over new masks of the same image. Every mask keeps its label if it can.
function overlaid(sheet, masks) {
  const fresh = sheetOf(masks);
  if (!sheet?.pinned.size || sheet.width !== fresh.width || sheet.height !== fresh.height) return fresh;
  const { pinned, thresholds } = sheet, taken = new Set([...pinned, ...fresh.segments.map(({ label }) => label)]);
  const names = new Map(fresh.segments.map(({ label }) => [label, pinned.has(label) ? firstFree(taken) : label]));
  const labels = fresh.labels.map((label, i) => pinned.has(sheet.labels[i]) ? sheet.labels[i] : names.get(label));
  return changed(fresh, labels, pinned, thresholds);
}

function withPin(sheet, label, on = !sheet.pinned.has(label)) {
  const pinned = new Set(sheet.pinned);
  if (on) pinned.add(label); else pinned.delete(label);
  return { ...sheet, pinned };
}

// Join mask `label` to mask `into`, which is pinned then.
function joined(sheet, into, label) {
  return changed(sheet, sheet.labels.map((found) => found === label ? into : found), new Set([...sheet.pinned, into]));
}

// Split a mask along the borders of finer masks, given as labels; null if they do not divide it.
function divided(sheet, label, fine, threshold) {
  const inside = new Map();
  let area = 0;
  sheet.labels.forEach((found, i) => {
    if (found !== label) return;
    area++;
    inside.set(fine[i], (inside.get(fine[i]) || 0) + 1);
  });
  const parts = [...inside].filter(([, count]) => count >= LEAST_PART * area).sort((a, b) => b[1] - a[1]).map(([part]) => part);
  if (parts.length < 2) return null;
  const taken = new Set(sheet.segments.map((segment) => segment.label));
  const names = new Map(parts.map((part, i) => [part, i ? firstFree(taken) : label]));
  const labels = sheet.labels.map((found, i) => found === label ? names.get(fine[i]) ?? label : found);
  const thresholds = new Map([...sheet.thresholds, ...[...names.values()].map((name) => [name, threshold])]);
  return { sheet: changed(sheet, labels, new Set([...sheet.pinned, ...names.values()]), thresholds), parts: parts.length };
}
