
// The part of the image that all panels show. A point p of the image, as a fraction of its width or height, is at
// x + scale · p of the frame.
const view = { scale: 1, x: 0, y: 0, dragged: false };
const MOST_ZOOM = 16;
const SLACK = 6;  // pixels that a pointer may move in a click

function apply() {
  const least = 1 - view.scale;
  view.x = Math.max(least, Math.min(0, view.x));
  view.y = Math.max(least, Math.min(0, view.y));
  for (const { canvas, frame } of state.panels) {
    canvas.style.transform = view.scale === 1 ? "" : `translate(${100 * view.x}%, ${100 * view.y}%) scale(${view.scale})`;
    frame.classList.toggle("zoomed", view.scale > 1);
  }
  $("scale").value = `${Math.round(100 * view.scale)} %`;
}

// Zoom by a factor about a point of the image; a factor of 0 shows the whole image.
function zoom(factor, x = (0.5 - view.x) / view.scale, y = (0.5 - view.y) / view.scale) {
  const scale = factor ? Math.max(1, Math.min(MOST_ZOOM, view.scale * factor)) : 1;
  view.x += (view.scale - scale) * x;
  view.y += (view.scale - scale) * y;
  view.scale = scale;
  apply();
}

// Move the view so that a point of the image can be seen.
function reveal(x, y) {
  if (view.scale === 1) return;
  view.x = Math.max(0.05 - view.scale * x, Math.min(0.95 - view.scale * x, view.x));
  view.y = Math.max(0.05 - view.scale * y, Math.min(0.95 - view.scale * y, view.y));
  apply();
}

// Drag to move, Ctrl and the wheel or two fingers to zoom.
function watchFrame(frame) {
  const pointers = new Map();
  const fraction = (point) => {
    const box = frame.getBoundingClientRect();
    return [(point.clientX - box.left) / box.width, (point.clientY - box.top) / box.height];
  };
  let start = null, distance = 0;
  frame.addEventListener("pointerdown", (e) => {
    if (e.isPrimary) pointers.clear();  // one that was released elsewhere
    pointers.set(e.pointerId, e);
    if (pointers.size === 1) { start = e; view.dragged = false; }
    distance = 0;
  });
  frame.addEventListener("pointermove", (e) => {
    const before = pointers.get(e.pointerId);
    if (!before) return;
    if (pointers.size === 2) {
      pointers.set(e.pointerId, e);
      const [a, b] = [...pointers.values()], now = Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
      const [x, y] = fraction({ clientX: (a.clientX + b.clientX) / 2, clientY: (a.clientY + b.clientY) / 2 });
      if (distance) zoom(now / distance, (x - view.x) / view.scale, (y - view.y) / view.scale);
      distance = now;
      view.dragged = true;
      return;
    }
    if (view.scale === 1 || (!view.dragged && Math.hypot(e.clientX - start.clientX, e.clientY - start.clientY) < SLACK)) return;
    if (!view.dragged) { frame.setPointerCapture(e.pointerId); frame.classList.add("dragged"); }
    view.dragged = true;
    const [from, to] = [fraction(before), fraction(e)];
    view.x += to[0] - from[0];
    view.y += to[1] - from[1];
    pointers.set(e.pointerId, e);
    apply();
  });
  for (const kind of ["pointerup", "pointercancel"]) {
    frame.addEventListener(kind, (e) => { pointers.delete(e.pointerId); distance = 0; frame.classList.remove("dragged"); });
  }
  frame.addEventListener("wheel", (e) => {
    if (!e.ctrlKey && !e.metaKey) return;
    e.preventDefault();
    const [x, y] = fraction(e);
    zoom(Math.exp(-e.deltaY / 300), (x - view.x) / view.scale, (y - view.y) / view.scale);
  }, { passive: false });
}
