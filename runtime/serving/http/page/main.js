
const $ = (id) => document.getElementById(id);
// images: those of the strip. image: the one whose masks are shown. turn: counts the images that were asked for; only the
// last one is shown. tool: what a click does. undoable: the panel that was changed last. recent: images by their last
// use. wait: what is waited for. pace: seconds that the last image took. again: what failed last. watching: a timer,
// while the server does not answer.
const state = { images: [], image: null, token: null, panels: [], turn: 0, tool: "pin", undoable: null, recent: [], wait: null, pace: 0, again: null, watching: null };

function say(text, error = false) {
  $("status").textContent = text;
  $("status").classList.toggle("error", error);
  if (!error) $("again").hidden = true;
}

function count(segments) { return `${segments.length} ${segments.length === 1 ? "segment" : "segments"}`; }

const MOVES = "Image with its masks. Arrow keys move a cross. ";
const ELSE = " Shift and Enter join, Alt and Enter split, Escape returns to the masks, question mark lists all keys.";
const CANVAS = {
  pin: `${MOVES}Enter pins the mask under it.${ELSE}`, join: `${MOVES}Enter joins the mask under it.${ELSE}`,
  split: `${MOVES}Enter splits the mask under it.${ELSE}`, look: `${MOVES}Enter shows the attention of that point.${ELSE}`,
};

function setTool(tool) {
  state.tool = tool;
  document.querySelector(`[name=tool][value=${tool}]`).checked = true;
  for (const panel of state.panels) panel.back();
  for (const { canvas } of state.panels) canvas.setAttribute("aria-label", CANVAS[tool]);
}

function undo() {
  const panel = state.panels.includes(state.undoable) && state.undoable.history.length ? state.undoable : state.panels.find(({ history }) => history.length);
  panel?.undo();
  $("undo").disabled = !state.panels.some(({ history }) => history.length);
}

$("file").addEventListener("change", (e) => {
  const files = [...e.target.files];
  e.target.value = "";  // so that choosing the same file again is a change
  openFiles(files);
});
$("opacity").addEventListener("input", () => state.panels.forEach((panel) => panel.draw()));
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
  state.again?.();
});
$("again").addEventListener("click", () => { $("again").hidden = true; state.again?.(); });
$("cancel").addEventListener("click", () => state.wait?.cancel());
$("remove").addEventListener("click", () => remove(state.image));
$("keys").addEventListener("click", () => $("help").showModal());
$("all").querySelector("form").addEventListener("submit", (e) => {
  e.preventDefault();
  const formats = [...e.target.querySelectorAll(":checked")].map(({ name }) => name);
  $("all").open = false;
  if (formats.length) downloadAll(formats); else say("Choose at least one kind of file for the ZIP.", true);
});
for (const button of document.querySelectorAll("[data-sample]")) {
  const { sample } = button.dataset, get = () => ask(`/samples/${sample}.jpg`, "blob");
  get().then((blob) => { button.querySelector("img").src = URL.createObjectURL(blob); }, () => {});
  button.addEventListener("click", async function open() {
    try { openFiles([new File([await get()], `${sample}.jpg`, { type: "image/jpeg" })]); } catch (error) { fail(error, open); }
  });
  if (location.hash === `#${sample}`) button.click();
}
addEventListener("keydown", (e) => {
  if ((e.ctrlKey || e.metaKey) && !e.shiftKey && e.key.toLowerCase() === "z" && !e.target.matches("[type=password]")) { e.preventDefault(); undo(); }
});
addEventListener("dragover", (e) => { e.preventDefault(); document.body.classList.add("over"); });
addEventListener("dragleave", (e) => { if (!e.relatedTarget) document.body.classList.remove("over"); });
addEventListener("drop", (e) => { e.preventDefault(); document.body.classList.remove("over"); openFiles(e.dataTransfer.files); });
addEventListener("paste", (e) => openFiles(e.clipboardData.files));
addEventListener("pagehide", () => {
  for (const image of state.images) {
    if (image.id) forget(image.id);
    image.id = null;  // a page that the browser restores from its cache sends the image again
  }
});
