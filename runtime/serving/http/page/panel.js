
const SIDE = 1024;  // longest side on the screen, in pixels; downloads have the size of the image

// One view of the image with settings of its own.
class Panel extends Editing {
  constructor(from) {
    super();
    this.node = $("panel").content.firstElementChild.cloneNode(true);
    this.canvas = this.node.querySelector("canvas");
    this.frame = this.node.querySelector(".frame");
    this.context = this.canvas.getContext("2d");
    this.told = this.node.querySelector(".told");
    this.inputs = Object.fromEntries([...this.node.querySelectorAll("[data-name]")].map((e) => [e.dataset.name, e]));
    for (const [name, input] of Object.entries(this.inputs)) {
      input.id = `${name}-${state.panels.length}`;
      const label = this.node.querySelector(`[data-for="${name}"]`);
      if (label) label.htmlFor = input.id;
      // While a slider moves, request masks without refinement, which takes longest; once it rests, request the final ones.
      input.addEventListener("input", () => { this.remember(true); this.show(); if (input.type === "range") this.renew(true); });
      input.addEventListener("change", () => { this.remember(true); this.moved = false; this.last = this.values(); this.renew(); });
    }
    this.sheet = null; this.means = null; this.history = [];
    this.chosen = -1;  // the mask under the pointer
    this.active = -1;  // the mask that others are joined to
    this.cross = null; this.attention = null;
    this.busy = false; this.wanted = false; this.moving = false; this.moved = false;
    this.turn = 0;  // counts what makes running requests for masks out of date
    this.canvas.addEventListener("pointermove", (e) => e.pointerType === "mouse" && hover(...this.place(e)));
    this.canvas.addEventListener("pointerleave", () => hover(null));
    this.canvas.addEventListener("click", (e) => { if (!view.dragged) this.use(...this.place(e), e); });
    this.canvas.addEventListener("keydown", (e) => this.key(e));
    this.node.addEventListener("click", (e) => e.target.dataset.do && this.act(e.target.dataset.do));
    watchFrame(this.frame);
    $("panels").append(this.node);
    if (from) { this.set(from.values()); this.limit(+from.inputs.threshold.max); }
  }

  get labels() { return this.sheet.labels; }

  values() {
    const { threshold, anchors, refine, tau } = this.inputs, { method } = this;
    return method === "diffseg" ? { threshold: +threshold.value, anchors: +anchors.value, refine: refine.value }
      : { method, tau: +tau.value, refine: refine.value };
  }

  // The settings of the other methods keep their values, but have no control.
  set({ method = "diffseg", threshold = 1, anchors = 16, refine, tau = 0.5 }) {
    const { inputs } = this, merging = method === "diffseg", kmeans = inputs.refine.querySelector("[value=kmeans]");
    this.method = method;
    for (const [name, shown] of [["threshold", merging], ["anchors", merging], ["tau", !merging]])
      for (const part of this.node.querySelectorAll(`[data-for=${name}], [data-name=${name}], [data-of=${name}]`)) part.hidden = !shown;
    kmeans.hidden = kmeans.disabled = method === "diffcut";
    inputs.tau.max = Math.max(1, Math.ceil(tau));
    inputs.tau.value = tau;
    inputs.threshold.max = Math.max(+inputs.threshold.max, threshold);
    inputs.threshold.value = threshold;
    inputs.anchors.value = anchors;
    inputs.refine.value = refine;
    this.last = this.values();
    this.show();
  }

  // End the threshold's slider where one segment is left, or at its present value if that is larger.
  limit(most) {
    const { threshold } = this.inputs, value = +threshold.value;
    threshold.max = Math.max(Math.ceil(20 * most) / 20, Math.ceil(20 * value) / 20, 0.1);
    threshold.value = value;
    this.show();
  }

  show() {
    for (const output of this.node.querySelectorAll("output")) output.value = this.inputs[output.dataset.of].value;
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height].map((v) => Math.max(0, Math.min(v, 0.999999)));
  }

  query(side = SIDE, moving = false) {
    return new URLSearchParams({ ...this.values(), ...(side ? { side } : {}), ...(moving ? { refine: "none" } : {}) });
  }

  // Request masks for the current settings. While a request is running, remember only that another one is needed.
  async renew(moving = false) {
    this.moving = moving;
    this.wanted = true;
    if (this.busy) return;
    this.busy = true;
    while (this.wanted) {
      this.wanted = false;
      const start = performance.now(), { image } = state, { turn } = this;
      try {
        const masks = await masksFor(image, this.query(SIDE, this.moving));
        if (turn !== this.turn) continue;
        this.receive(masks);
        if (!this.wanted) say(`${count(this.sheet.segments)}; new masks in ${Math.round(performance.now() - start)} ms`);
      } catch (error) {
        if (turn !== this.turn || this.wanted) continue;
        fail(error, () => this.renew(), "The masks on the screen were made with the settings before this change.");
      }
    }
    this.busy = false;
  }

  // What is needed to show this image again as it is now.
  shot() { return { sheet: this.sheet, values: this.values(), history: this.history, active: this.active }; }

  // Show an image as it was, or, without a shot, nothing until masks are received.
  restore(shot = { sheet: null, values: this.values(), history: [], active: -1 }) {
    this.turn++; this.wanted = false; this.moved = false;
    this.cross = null; this.attention = null;
    this.history = shot.history; this.active = shot.active;
    this.set(shot.values);
    if (shot.sheet) this.put(shot.sheet); else this.sheet = null;
  }

  // Show masks from the server; pinned masks stay.
  receive(masks) { this.put(overlaid(this.sheet, masks)); }

  // Show a sheet: after an edit, new masks, or another image.
  put(sheet) {
    const { width, height } = sheet;
    if (this.image !== state.image || this.canvas.width !== width || this.canvas.height !== height) {
      this.image = state.image;
      this.canvas.width = width; this.canvas.height = height;
      this.frame.style.width = `min(100%, calc(70vh * ${width / height}))`;  // small images are enlarged
      this.pixels = pixelsOf(state.image, width, height);
    }
    if (this.sheet?.labels !== sheet.labels) { this.means = meanColours(this.pixels, sheet.labels); this.attention = null; }
    this.sheet = sheet;
    if (!sheet.pinned.has(this.active)) this.active = -1;
    this.list();
    this.choose(-1);
  }

  list() {
    const items = this.sheet.segments.slice(0, 100).map((segment) => {
      const item = document.createElement("li"), button = document.createElement("button"), swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.dataset.label = segment.label;
      button.type = "button";
      button.dataset.label = segment.label;
      button.setAttribute("aria-pressed", this.sheet.pinned.has(segment.label));
      button.append(swatch, this.share(segment));
      for (const kind of ["focus", "pointerenter"]) button.addEventListener(kind, () => { if (!this.attention) this.choose(segment.label); });
      for (const kind of ["blur", "pointerleave"]) button.addEventListener(kind, () => { if (!this.attention) this.choose(-1); });
      button.addEventListener("click", (e) => this.edit(segment.label, e));
      item.append(button);
      return item;
    });
    const list = this.node.querySelector(".list"), focused = list.contains(document.activeElement) && document.activeElement.dataset.label;
    list.replaceChildren(...items);
    if (focused) list.querySelector(`button[data-label="${focused}"]`)?.focus();
  }

  // Give the legend the colours that the masks have on the canvas.
  tint() {
    for (const swatch of this.node.querySelectorAll(".swatch")) {
      const label = +swatch.dataset.label;
      swatch.style.background = shown(label, this.means.get(label), shareOf(label, this.chosen, +$("opacity").value));
    }
  }

  share({ area }) { return `${(100 * area / (this.sheet.width * this.sheet.height)).toFixed(1)} %`; }

  choose(label) {
    this.chosen = label;
    const segment = this.sheet.segments.find((s) => s.label === label), pinned = this.sheet.pinned.has(label);
    this.told.textContent = segment ? `segment ${label}: ${this.share(segment)} of the image${pinned ? ", pinned" : ""}` : count(this.sheet.segments);
    this.draw();
  }

  labelAt(x, y) { return this.labels[Math.floor(y * this.sheet.height) * this.sheet.width + Math.floor(x * this.sheet.width)]; }

  point(x, y) {
    if (!this.sheet || this.attention) return;
    const label = x === null ? -1 : this.labelAt(x, y);
    if (label !== this.chosen) this.choose(label);
  }

  draw() {
    if (!this.sheet) return;
    this.node.querySelector("[data-do=masks]").hidden = !this.attention;
    const { labels, pinned } = this.sheet;
    if (!this.attention) this.tint();
    this.context.putImageData(this.attention || paint(this.pixels, labels, +$("opacity").value, this.chosen, pinned), 0, 0);
    if (!this.cross) return;
    const [x, y] = [this.cross[0] * this.canvas.width, this.cross[1] * this.canvas.height], arm = this.canvas.width / 50;
    for (const [colour, line] of [["black", 5], ["white", 2]]) {
      this.context.strokeStyle = colour;
      this.context.lineWidth = line * Math.max(1, this.canvas.width / 800);
      this.context.beginPath();
      this.context.moveTo(x - arm, y); this.context.lineTo(x + arm, y);
      this.context.moveTo(x, y - arm); this.context.lineTo(x, y + arm);
      this.context.stroke();
    }
  }

  // Show the attention of a point, as in figure 2 of the DiffSeg paper.
  async look(x, y) {
    const { image } = state;
    try {
      const map = await createImageBitmap(await fromKept(image, this.query(), (id) =>
        ask(`/v1/images/${id}/attention?${new URLSearchParams({ x, y, side: SIDE })}`, "blob")));
      if (image !== state.image || state.tool !== "look") return;
      const { width, height } = this.canvas, scratch = new OffscreenCanvas(width, height).getContext("2d");
      scratch.drawImage(map, 0, 0, width, height);
      this.attention = paintHeat(scratch.getImageData(0, 0, width, height), this.pixels);
      this.cross = [x, y];
      this.told.textContent = `${this.method === "diffcut" ? "similarity to" : "attention of"} the point at ${Math.round(100 * x)} %, ${Math.round(100 * y)} %`;
      this.draw();
    } catch (error) { if (image === state.image) fail(error, () => this.look(x, y)); }
  }

  back() {
    this.attention = null; this.cross = null;
    if (this.sheet) this.choose(-1);
  }

  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, move = moves[event.key];
    const zooms = { "+": 2, "=": 2, "-": 0.5, 0: 0 };
    if (!this.sheet || event.ctrlKey || event.metaKey) return;
    if (move) {
      this.attention = null;
      this.cross = (this.cross || [0.5, 0.5]).map((v, i) => Math.max(0, Math.min(0.999, v + move[i] * (event.shiftKey ? 0.1 : 0.02))));
      hover(...this.cross);
      reveal(...this.cross);
      this.draw();
    } else if (event.key === "Enter" || event.key === " ") this.use(...(this.cross || [0.5, 0.5]), event);
    else if (event.key === "Escape") setTool("pin");
    else if (event.key === "?") $("help").showModal();
    else if (event.key.toLowerCase() === "a") setTool("look");
    else if (event.key in zooms) zoom(zooms[event.key], ...(this.cross || [0.5, 0.5]));
    else return;
    event.preventDefault();
  }

  async act(what) {
    if (what === "masks") { setTool("pin"); this.canvas.focus(); return; }
    try {
      const { files: [file] } = await outputs(state.image, this.shot(), [what]);
      download(file.name, file.blob);
      say(`${file.name} is ready`);
    } catch (error) { fail(error, () => this.act(what)); }
  }
}

function hover(x, y) { for (const panel of state.panels) panel.point(x, y); }
