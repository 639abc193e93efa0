
const FINER = 0.8, FINEST = 12;  // a split tries thresholds of FINER to the power of 1 to FINEST times the one before, or FINEST taus
const MOST_UNDO = 50, MOST_TAU = 2;

// What a panel lets the user do to its masks, and how it is undone.
class Editing {
  // What a click, a tap or Enter does at a place.
  use(x, y, event) {
    if (!this.sheet) return;
    if (state.tool === "look" && !event.shiftKey && !event.altKey) { this.look(x, y); return; }
    this.edit(this.labelAt(x, y), event);
  }

  edit(label, { shiftKey, altKey }) {
    this.attention = null;
    const tool = altKey ? "split" : shiftKey ? "join" : state.tool;
    if (tool === "split") this.split(label);
    else if (tool === "join") this.join(label);
    else {
      this.remember();
      this.put(withPin(this.sheet, label));
      this.active = this.sheet.pinned.has(label) ? label : -1;
      this.choose(label);
      say(this.active < 0 ? `segment ${label} is no longer pinned` : `segment ${label} is pinned: new masks leave it as it is`);
    }
  }

  join(label) {
    const { active } = this;
    if (active === label) return;
    this.remember();
    if (active < 0) {
      this.put(withPin(this.sheet, label, true));
      this.active = label;
      say(`segment ${label} is pinned; click the masks to join to it`);
    } else {
      this.put(joined(this.sheet, active, label));
      this.active = active;
      say(`segment ${label} was joined to segment ${active}`);
    }
    this.choose(this.active);
  }

  // Split a mask at the largest threshold below its own, or the least tau above it, at which parts of it are told apart.
  async split(label) {
    const { sheet } = this, { image } = state, { refine, ...rest } = this.values();
    const name = "threshold" in rest ? "threshold" : "tau", from = sheet.thresholds.get(label) ?? rest[name];
    const at = async (step, how) => {
      const finer = name === "threshold" ? from * FINER ** step : from + (MOST_TAU - from) * step / FINEST;
      const masks = await masksFor(image, new URLSearchParams({ ...rest, [name]: finer, refine: how, side: SIDE }));
      return divided(sheet, label, labelMap(masks), finer);
    };
    say(`Looking for parts of segment ${label}…`);
    try {
      let found = null, step = 0;
      for (let low = 1, high = FINEST; low <= high;) {
        const middle = Math.floor((low + high) / 2), parts = await at(middle, "none");
        if (parts) { found = parts; step = middle; high = middle - 1; } else low = middle + 1;
      }
      if (found && refine !== "none") found = await at(step, refine) || found;
      if (this.sheet !== sheet) return;
      if (!found) { say(`segment ${label} has no parts that can be told apart`); return; }
      this.remember();
      this.put(found.sheet);
      this.active = -1;
      this.choose(label);
      say(`segment ${label} was split into ${found.parts}`);
    } catch (error) { if (this.sheet === sheet) fail(error, () => this.split(label)); }
  }

  // Note the state before a change. A slider that moves is one change.
  remember(slider = false) {
    if (slider && this.moved) return;
    this.moved = slider;
    this.history.push({ sheet: this.sheet, values: this.last, active: this.active });
    this.history = this.history.slice(-MOST_UNDO);
    state.undoable = this;
    $("undo").disabled = false;
  }

  undo() {
    const before = this.history.pop();
    if (!before) return;
    this.turn++; this.wanted = false; this.moved = false;
    this.set(before.values);
    this.active = before.active;
    this.put(before.sheet);
    say("The last change was undone.");
  }
}
