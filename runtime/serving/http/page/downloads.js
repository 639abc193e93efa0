
// Write run lengths as COCO's string, as the server does: the inverse of `runs`.
function runString(counts) {
  let text = "";
  counts.forEach((count, i) => {
    let rest = i > 2 ? count - counts[i - 2] : count, more;
    do {
      const digit = rest & 31;
      rest >>= 5;
      more = digit & 16 ? rest !== -1 : rest !== 0;
      text += String.fromCharCode(digit + (more ? 32 : 0) + 48);
    } while (more);
  });
  return text;
}

// The edited masks of a sheet at the size of the image, as the server's JSON has masks: labels from 0, largest first.
function editedMasks({ labels, width, height, segments }, size, facts) {
  const names = new Map(segments.map(({ label }, i) => [label, i])), full = new Uint16Array(size.width * size.height);
  const found = segments.map(() => ({ area: 0, counts: [], end: 0, box: [Infinity, Infinity, -1, -1] }));
  const rows = Array.from({ length: size.height }, (_, y) => Math.floor((y + 0.5) * height / size.height) * width);
  for (let x = 0, place = 0, last = -1; x < size.width; x++) {
    const column = Math.floor((x + 0.5) * width / size.width);
    for (let y = 0; y < size.height; y++, place++) {
      const label = names.get(labels[rows[y] + column]), mask = found[label];
      full[y * size.width + x] = label;
      if (label === last) mask.counts[mask.counts.length - 1]++;
      else mask.counts.push(place - mask.end, 1);
      mask.end = place + 1;
      mask.area++;
      const { box } = mask;
      if (x < box[0]) box[0] = x;
      if (y < box[1]) box[1] = y;
      if (x > box[2]) box[2] = x;
      if (y > box[3]) box[3] = y;
      last = label;
    }
  }
  const total = size.width * size.height;
  const list = found.map(({ area, counts, end, box: [left, top, right, bottom] }, label) => ({
    label, area, bbox: [left, top, right - left + 1, bottom - top + 1],
    segmentation: { size: [size.height, size.width], counts: runString(end < total ? [...counts, total - end] : counts) },
  }));
  return { labels: full, masks: { ...facts, ...size, segments: list.filter(({ area }) => area) } };
}

// A PNG of one channel, 8 bits if the labels allow it and 16 if not, as the server writes labels.
async function greyPng(labels, { width, height }) {
  const wide = labels.some((label) => label > 255), stride = (wide ? 2 : 1) * width + 1;
  const rows = new Uint8Array(stride * height), head = new DataView(new ArrayBuffer(13));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const label = labels[y * width + x], p = y * stride + 1 + (wide ? 2 * x : x);
      if (wide) rows[p] = label >> 8;
      rows[p + (wide ? 1 : 0)] = label;
    }
  }
  const data = await new Response(new Blob([rows]).stream().pipeThrough(new CompressionStream("deflate"))).arrayBuffer();
  head.setUint32(0, width); head.setUint32(4, height); head.setUint8(8, wide ? 16 : 8);
  const chunk = (name, bytes) => {
    const out = new Uint8Array(bytes.length + 12), words = new DataView(out.buffer);
    words.setUint32(0, bytes.length);
    out.set(new TextEncoder().encode(name), 4);
    out.set(bytes, 8);
    words.setUint32(bytes.length + 8, crc32(out.subarray(4, bytes.length + 8)));
    return out;
  };
  const signature = new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]);
  return new Blob([signature, chunk("IHDR", new Uint8Array(head.buffer)), chunk("IDAT", new Uint8Array(data)), chunk("IEND", new Uint8Array())], { type: "image/png" });
}

const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let i = 0; i < 8; i++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ -1) >>> 0;
}

function stem(image) { return image.name.replace(/\.[^.]*$/, "") || "image"; }

// The masks of an image at its own size: { masks, labels }, from the server, or from the sheet if the user edited them.
async function finalMasks(image, { values, sheet }) {
  const query = new URLSearchParams(values);
  if (!sheet?.edited) {
    const masks = await fullMasks(image, query, "application/json", "json");
    return { masks, labels: labelMap(masks) };
  }
  const facts = { settings: values, edited: true, width: 0, height: 0 };
  if (image.bitmap) return editedMasks(sheet, { width: image.bitmap.width, height: image.bitmap.height }, facts);
  const { width, height } = await fullMasks(image, query, "application/json", "json");
  return editedMasks(sheet, { width, height }, facts);
}

// One file of an image: { name, blob }. What is "overlay", "labels" or "json".
async function makeFile(image, shot, what) {
  const name = `${stem(image)}.${what}${what === "json" ? "" : ".png"}`;
  if (what === "labels" && !shot.sheet?.edited) {
    return { name, blob: await fullMasks(image, new URLSearchParams(shot.values), "image/png", "blob") };
  }
  const { masks, labels } = await finalMasks(image, shot);
  if (what === "labels") return { name, blob: await greyPng(labels, masks) };
  if (what === "json") return { name, blob: new Blob([JSON.stringify(masks, null, 1)], { type: "application/json" }) };
  const canvas = new OffscreenCanvas(masks.width, masks.height), pixels = pixelsOf(image, masks.width, masks.height);
  canvas.getContext("2d").putImageData(paint(pixels, labels, +$("opacity").value), 0, 0);
  return { name, blob: await canvas.convertToBlob({ type: "image/png" }) };
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
