
// Show what the page waits for: a preview of the image, if there is one, and the progress. Returns an object with `part`
// to report progress, `cancelled`, and `done`, which puts back what was there before.
function waitFor(image, text) {
  const start = performance.now(), box = $("waiting"), bar = box.querySelector("progress");
  let share = null, detail = "";
  state.wait?.done();
  const tell = () => {
    const seconds = (performance.now() - start) / 1000, sent = image ? image.sent : 1;
    if (sent < 1) share = sent; else if (image) share = state.pace ? Math.min(0.95, seconds / state.pace) : null;
    if (share === null) bar.removeAttribute("value"); else bar.value = share;
    $("step").textContent = sent < 1 ? `Sending ${image.name}: ${Math.round(100 * sent)} %` : `${text}${detail && `, ${detail}`}: ${Math.floor(seconds)} s`;
  };
  const timer = setInterval(tell, 200), preview = box.querySelector("img");
  const wait = {
    cancelled: false,
    cancel: () => { wait.cancelled = true; image?.controller?.abort(); },
    part: (part, what) => { share = part; detail = what; tell(); },
    done: () => {
      clearInterval(timer);
      if (state.wait !== wait) return;
      state.wait = null;
      box.hidden = true;
      if (image) cover(false);
    },
  };
  state.wait = wait;
  preview.hidden = !image;
  if (image) { preview.src = image.url; preview.alt = `Preview of ${image.name}`; cover(true); }
  box.hidden = false;
  say(`${text}…`);
  tell();
  return wait;
}

// Hide what the preview of an image stands in for, or show it again.
function cover(on) {
  for (const id of ["panels", "tools"]) $(id).hidden = on || !state.panels.length;
  $("drop").hidden = on || state.panels.length > 0;
}

// Say what went wrong and, if it can help, offer to try again.
function fail(error, again, more = "", name = "") {
  const whole = error.message.replace(/^image: /, "").replace(/\.?$/, "."), told = REFUSED.includes(error.status) && name ? `${name}: ${whole}` : whole;
  say(more ? `${told} ${more}` : told, true);
  state.again = again;
  $("again").hidden = !error.lost && !(error.status >= 500);
  if (error.lost) watchServer();
}

// Ask a server that did not answer every few seconds whether it is there again.
const WATCH_MS = 3000;
function watchServer() {
  if (state.watching) return;
  state.watching = setInterval(async () => {
    const alive = await fetch("/v2/health/live").then(({ ok }) => ok, () => false);
    if (!alive || !state.watching) return;
    clearInterval(state.watching);
    state.watching = null;
    if ($("again").hidden) return;
    $("status").textContent = "The server answers again. Try again.";
    $("status").classList.remove("error");
  }, WATCH_MS);
}
