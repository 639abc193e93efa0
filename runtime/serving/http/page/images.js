
const MOST_KEPT = 4;  // images whose attention the server keeps for this page
const REFUSED = [400, 413, 415, 422];  // statuses that say that the file is to blame

// An image of the strip. `id` names its attention on the server, null if none is stored there; `fits`: the server has
// the memory to store it; `discarded`: it was removed; `shots`: how the panels showed it last, null before its masks
// arrived; `loading`: the request for its first masks, `controller`: cancels it, `sent`: the part of the file that was
// sent, 0 to 1; `last`: the threshold at which one segment is left, null if unknown.
function newImage(file) {
  return { file, name: file.name || "image", url: URL.createObjectURL(file), bitmap: null, id: null, fits: false,
    discarded: false, loading: null, controller: null, sent: 0, shots: null, last: null, fitted: false };
}

function strip() {
  const items = state.images.map((image) => {
    const item = document.createElement("li"), button = document.createElement("button"), thumb = document.createElement("img");
    button.type = "button";
    thumb.src = image.url; thumb.alt = "";
    const name = document.createElement("span");
    name.textContent = image.name;
    button.title = image.name;
    button.append(thumb, name);
    if (image === state.image) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => show(image));
    button.addEventListener("keydown", (e) => { if (e.key === "Delete") remove(image); });
    item.append(button);
    return item;
  });
  const at = [...$("strip").children].findIndex((item) => item.contains(document.activeElement));
  $("strip").replaceChildren(...items);
  if (at >= 0) $("strip").children[Math.min(at, items.length - 1)]?.firstChild.focus();
  $("images").hidden = items.length < 2;
  $("remove").hidden = !state.image;
  $("all").hidden = !items.length;
}

// Take the image from the strip; `state.image` stays on the screen until another one is shown.
function drop(image) {
  discard(image);
  URL.revokeObjectURL(image.url);
  for (const list of ["images", "recent"]) state[list] = state[list].filter((other) => other !== image);
  strip();
}

async function remove(image) {
  const at = state.images.indexOf(image), next = state.images[at + 1] || state.images[at - 1];
  if (!next || (image === state.image && !await show(next))) return;
  drop(image);
}

// Segment an image once; whoever asks again waits for the same masks.
function load(image) {
  image.loading ??= (async () => {
    const asked = state.panels.length ? state.panels[0].query() : new URLSearchParams({ side: SIDE });
    const { signal } = image.controller = new AbortController();
    image.sent = 0;
    try { return { asked, masks: await send(image, asked, { signal, sent: (part) => { image.sent = part; } }) }; } catch (error) { image.loading = null; throw error; }
  })();
  return image.loading;
}

// Show an image. The page changes only once its masks have arrived; until then there is a preview. Returns whether it is shown.
async function show(image) {
  const turn = ++state.turn, start = performance.now();
  if (image === state.image) { state.wait?.done(); return true; }
  if (state.image) state.image.shots = state.panels.map((panel) => panel.shot());
  const wait = image.shots ? null : waitFor(image, `Segmenting ${image.name}`);
  try {
    const found = image.shots ? null : await load(image);
    const bitmap = image.bitmap ?? await createImageBitmap(image.file).catch(() => null);
    if (turn === state.turn) wait?.done();
    if (turn !== state.turn || image.discarded) { bitmap?.close(); return false; }
    if (state.image) { state.image.bitmap?.close(); state.image.bitmap = null; }
    image.bitmap = bitmap;
    state.image = image;
    strip();
    present(image, found, (performance.now() - start) / 1000);
    return true;
  } catch (error) {
    if (turn === state.turn) wait?.done();
    if (error.gone || REFUSED.includes(error.status)) drop(image);
    if (error.name === "AbortError") say("Cancelled.");
    else if (turn === state.turn || error.status) fail(error, () => show(image), "", image.name);
    return false;
  }
}

// Put the shown image on the panels: as it was, or with its first masks.
function present(image, found, seconds) {
  zoom(0);
  if (!state.panels.length) {
    const first = new Panel(), { settings } = found.masks;
    state.panels.push(first);
    const { thresholds: [threshold], anchors, refine, method, tau } = settings;
    first.set({ threshold, anchors, refine, method, tau });
    cover(false);
    document.body.classList.add("opened");
    $("compare").disabled = false;
  }
  const [first, second] = state.panels, { shots } = image;
  state.panels.forEach((panel, i) => panel.restore(shots?.[i]));
  if (found) {
    const { masks, asked } = found;
    first.receive(masks);
    state.pace = seconds;
    say(`${count(masks.segments)} in ${seconds.toFixed(1)} s, by ${masks.model} with provider ${masks.provider}`);
    if (asked.has("refine") && `${asked}` !== `${first.query()}`) first.renew();  // the settings changed while the image was being segmented
  } else say(`${image.name}: ${count(first.sheet.segments)}`);
  if (second && !second.sheet) second.renew();
  $("undo").disabled = !state.panels.some(({ history }) => history.length);
  image.shots = state.panels.map((panel) => panel.shot());
  keepFew(image);
  fitSlider(image);
}

// Let the server forget the attention of the images that were shown longest ago; showing one again needs no attention.
function keepFew(image) {
  state.recent = [image, ...state.recent.filter((other) => other !== image)];
  for (const old of state.recent.splice(MOST_KEPT)) {
    if (old.id) forget(old.id);
    old.id = null;
  }
}

async function fitSlider(image) {
  const { anchors } = state.panels[0].values();
  // Tau has a range of its own.
  image.last ??= anchors === undefined ? null : await lastThreshold(image, { anchors }).catch(() => null);
  if (image.last !== null && image === state.image) for (const panel of state.panels) panel.limit(image.last);
  image.fitted = true;
}

// Add files to the strip and show the first one that can be.
async function openFiles(files) {
  const images = [...files].map(newImage);
  if (!images.length) return;
  state.images.push(...images);
  strip();
  for (const image of images) if (await show(image) || state.images.includes(image)) return;
}
