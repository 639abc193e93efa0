
const $ = (id) => document.getElementById(id);
// image: the image whose masks are shown. `id` names its attention on the server, null if none is stored there; `fits`:
// the server has the memory to store it; `discarded`: another image replaced it.
// waiting: a file to send once the user has signed in. turn: counts the opened files; only the last one is shown.
// tool: what a click does. undoable: the panel that was changed last.
const state = { image: null, waiting: null, token: null, panels: [], turn: 0, tool: "pin", undoable: null };

function say(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
}

function count(segments) { return `${segments.length} ${segments.length === 1 ? "segment" : "segments"}`; }

// Open a file. The page changes only once the masks of the file have arrived.
async function open(file) {
  if (!file) return;
  const turn = ++state.turn, start = performance.now();
  const image = { file, name: file.name || "image", bitmap: null, id: null, fits: false, discarded: false };
  const asked = state.image ? state.panels[0].query() : new URLSearchParams({ side: SIDE });
  const bitmap = createImageBitmap(file).catch(() => null);
  state.waiting = null;
  say("Segmenting…");
  try {
    const masks = await send(image, asked);
    image.bitmap = await bitmap;
    if (turn !== state.turn) { discard(image); return; }
    if (state.image) discard(state.image);
    state.image = image;
    if (!state.panels.length) {
      const first = new Panel();
      state.panels.push(first);
      first.set({ threshold: masks.settings.thresholds[0], anchors: masks.settings.anchors, refine: masks.settings.refine });
      for (const id of ["panels", "tools"]) $(id).hidden = false;
      $("drop").hidden = true;
      $("compare").disabled = false;
    }
    zoom(0);
    for (const panel of state.panels) Object.assign(panel, { sheet: null, cross: null, attention: null, active: -1, history: [], turn: panel.turn + 1, wanted: false });
    $("undo").disabled = true;
    const [first, second] = state.panels;
    first.receive(masks);
    say(`${count(masks.segments)} in ${((performance.now() - start) / 1000).toFixed(1)} s, by ${masks.model} with provider ${masks.provider}`);
    if (asked.has("threshold") && `${asked}` !== `${first.query()}`) first.renew();  // the settings changed while the image was being segmented
    if (second) second.renew();
    await fitSlider(image);
  } catch (error) {
    if (turn !== state.turn) return;
    if (error.status === 401) state.waiting = file;
    say(error.message, true);
  }
}

async function fitSlider(image) {
  image.last = await lastThreshold(image, state.panels[0].values()).catch(() => null);
  if (image.last !== null && image === state.image) for (const panel of state.panels) panel.limit(image.last);
  image.fitted = true;
}

function setTool(tool) {
  state.tool = tool;
  document.querySelector(`[name=tool][value=${tool}]`).checked = true;
  for (const panel of state.panels) panel.back();
}

function undo() {
  const panel = state.undoable?.history.length ? state.undoable : state.panels.find(({ history }) => history.length);
  panel?.undo();
  $("undo").disabled = !state.panels.some(({ history }) => history.length);
}

$("file").addEventListener("change", (e) => {
  const [file] = e.target.files;
  e.target.value = "";  // so that choosing the same file again is a change
  open(file);
});
$("opacity").addEventListener("input", () => state.panels.forEach((panel) => { panel.draw(); panel.tint(); }));
$("undo").addEventListener("click", undo);
$("tools").addEventListener("change", (e) => setTool(e.target.value));
$("tools").addEventListener("click", (e) => { if (e.target.dataset.zoom) zoom(+e.target.dataset.zoom); });
$("compare").addEventListener("click", () => {
  if (state.panels[1]) state.panels.pop().node.remove();
  else {
    state.panels.push(new Panel(state.panels[0]));
    apply();
    state.panels[1].renew();
  }
  const two = state.panels.length > 1;
  $("compare").setAttribute("aria-pressed", two);
  $("panels").classList.toggle("two", two);
  $("undo").disabled = !state.panels.some(({ history }) => history.length);
});
$("token").addEventListener("submit", (e) => {
  e.preventDefault();
  state.token = e.target.querySelector("input").value;
  $("token").hidden = true;
  if (state.waiting) open(state.waiting);
  else state.panels.forEach((panel) => panel.renew());
});
addEventListener("keydown", (e) => {
  if ((e.ctrlKey || e.metaKey) && !e.shiftKey && e.key.toLowerCase() === "z" && !e.target.matches("[type=password]")) { e.preventDefault(); undo(); }
});
addEventListener("dragover", (e) => { e.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", (e) => { if (!e.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (e) => { e.preventDefault(); document.body.classList.remove("over"); open(e.dataTransfer.files[0]); });
addEventListener("paste", (e) => open([...e.clipboardData.files][0]));
addEventListener("pagehide", () => {
  if (!state.image?.id) return;
  forget(state.image.id);
  state.image.id = null;  // a page that the browser restores from its cache sends the image again
});
