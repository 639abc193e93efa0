
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

// The name of the image's file without its ending.
function stem({ name }) { return name.replace(/\.[^.]*$/, "") || "image"; }

// The masks of an image at its own size: { masks, labels }, from the server, or from the sheet if the user edited them.
async function finalMasks(image, { values, sheet }) {
  const query = new URLSearchParams(values);
  if (sheet?.edited && image.bitmap) {
    return editedMasks(sheet, { width: image.bitmap.width, height: image.bitmap.height }, { settings: values, edited: true });
  }
  const masks = await fullMasks(image, query, "application/json", "json");
  if (!sheet?.edited) return { masks, labels: labelMap(masks) };
  return editedMasks(sheet, { width: masks.width, height: masks.height }, { settings: values, edited: true });
}

function asCanvas(pixels) {
  const canvas = new OffscreenCanvas(pixels.width, pixels.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// Each mask cut out of the image, within its box; pixels outside the mask are transparent.
async function cutouts(pixels, labels, { segments }, name) {
  const files = [], digits = String(Math.max(segments.length - 1, 1)).length;
  for (const { label, bbox: [left, top, width, height] } of segments) {
    const part = new ImageData(width, height);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const from = (top + y) * pixels.width + left + x;
        if (labels[from] === label) part.data.set(pixels.data.subarray(4 * from, 4 * from + 4), 4 * (y * width + x));
      }
    }
    files.push({ name: `${name}.${String(label).padStart(digits, "0")}.png`, blob: await asCanvas(part).convertToBlob() });
  }
  return files;
}

// The files of an image: { files: [{ name, blob }], masks }. Formats: "overlay", "labels", "json" and "cutouts".
async function outputs(image, shot, formats) {
  const name = stem(image), decoded = !image.bitmap;
  image.bitmap ??= await createImageBitmap(image.file).catch(() => null);
  try {
    const { masks, labels } = await finalMasks(image, shot), pixels = pixelsOf(image, masks.width, masks.height), files = [];
    if (formats.includes("overlay")) {
      const canvas = asCanvas(paint(pixels, labels, +$("opacity").value));
      files.push({ name: `${name}.overlay.png`, blob: await canvas.convertToBlob({ type: "image/png" }) });
    }
    if (formats.includes("labels")) files.push({ name: `${name}.labels.png`, blob: await greyPng(labels, masks) });
    if (formats.includes("json")) files.push({ name: `${name}.json`, blob: asJson(masks) });
    if (formats.includes("cutouts")) files.push(...await cutouts(pixels, labels, masks, name));
    return { files, masks };
  } finally { if (decoded && image !== state.image) { image.bitmap?.close(); image.bitmap = null; } }
}

function asJson(value) { return new Blob([JSON.stringify(value, null, 1)], { type: "application/json" }); }

// The masks of several images as one COCO data set: `found` has one { name, masks } per image.
function coco(found) {
  return {
    images: found.map(({ name, masks: { width, height } }, i) => ({ id: i + 1, file_name: name, width, height })),
    annotations: found.flatMap(({ masks }, i) => masks.segments.map(({ label, area, bbox, segmentation }) => (
      { id: (i + 1) * 65536 + label, image_id: i + 1, category_id: 1, segmentation, area, bbox, iscrowd: 0 }))),
    categories: [{ id: 1, name: "segment", supercategory: "" }],
  };
}

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

// One ZIP with the files of all images. Images that fail are left out, and named.
async function downloadAll(formats) {
  const images = [...state.images], files = [], found = [], problems = [], used = new Set();
  const wait = waitFor(null, "Making the ZIP");
  for (const [i, image] of images.entries()) {
    if (wait.cancelled) break;
    const name = image.name;
    wait.part(i / images.length, `image ${i + 1} of ${images.length}: ${name}`);
    try {
      const shot = image === state.image ? state.panels[0].shot() : image.shots?.[0] ?? { values: state.panels[0]?.values() ?? {} };
      const made = await outputs(image, shot, formats);
      found.push({ name, masks: made.masks });
      for (const file of made.files) files.push({ ...file, name: unused(file.name, used) });
    } catch (error) {
      if (error.lost || error.status === 401) { wait.done(); fail(error, () => downloadAll(formats)); return; }
      problems.push(`${name}: ${error.message}`);
    }
  }
  wait.done();
  if (wait.cancelled) { say("Cancelled."); return; }
  if (formats.includes("coco") && found.length) files.push({ name: unused("coco.json", used), blob: asJson(coco(found)) });
  if (files.length) download("masks.zip", await zipped(files));
  const told = files.length ? `masks.zip is ready: ${files.length} ${files.length === 1 ? "file" : "files"} of ${found.length} ${found.length === 1 ? "image" : "images"}` : "No masks were made";
  say([told, ...problems.map((problem) => `left out ${problem}`)].join("; "), problems.length > 0);
}

// The name with a number before its ending if it is taken: two images may have the same name.
function unused(name, used) {
  const [, start, end] = name.match(/^(.*?)((?:\.[^.]*)?)$/);
  let found = name;
  for (let i = 2; used.has(found); i++) found = `${start} (${i})${end}`;
  used.add(found);
  return found;
}
