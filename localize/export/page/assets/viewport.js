// Zoom and pan. Cards out of sight are not drawn, nor is text too small to read: drawing text again is what makes
// zooming three times as slow as panning.

const canvas = byId("graph");
const eye = { x: 0, y: 0, scale: 1, pending: false };
const FAR_NAME = 190;
const SCALES = { least: 0.008, most: 3, far: 0.42, small: 0.62 };

function stageSize() {
  return { width: canvas.clientWidth || 800, height: canvas.clientHeight || 600 };
}

function look() {
  if (eye.pending) return;
  eye.pending = true;
  requestAnimationFrame(() => {
    eye.pending = false;
    show();
  });
}

function show() {
  const { width, height } = stageSize();
  const box = bounds();
  const margin = 90;
  eye.x = Math.min(width - margin - box.x * eye.scale, Math.max(margin - box.right * eye.scale, eye.x));
  eye.y = Math.min(height - margin - box.y * eye.scale, Math.max(margin - box.bottom * eye.scale, eye.y));
  world.setAttribute("transform", `translate(${eye.x} ${eye.y}) scale(${eye.scale})`);
  const far = eye.scale < SCALES.far;
  canvas.classList.toggle("is-far", far);
  canvas.classList.toggle("is-small", eye.scale < SCALES.small);
  if (far) canvas.style.setProperty("--letters", `${12 / eye.scale}px`);
  const top = -eye.y / eye.scale - 60;
  const bottom = (height - eye.y) / eye.scale + 60;
  for (const card of state.cards) {
    const seen = card.bottom > top && card.top < bottom;
    if (card.seen !== seen) {
      card.seen = seen;
      card.element.classList.toggle("unseen", !seen);
    }
    if (far) thin(card);
  }
  hideTip();
}

// Name only some cards where cards are lower than a line of text.
function thin(card) {
  const every = Math.ceil(13 / ((card.bottom - card.top) * eye.scale));
  const named = card.position % every === 0;
  if (card.named !== named) {
    card.named = named;
    card.far.classList.toggle("unnamed", !named);
  }
}

function zoomAt(x, y, factor) {
  const scale = Math.min(SCALES.most, Math.max(SCALES.least, eye.scale * factor));
  eye.x = x - ((x - eye.x) * scale) / eye.scale;
  eye.y = y - ((y - eye.y) * scale) / eye.scale;
  eye.scale = scale;
  look();
}

function zoomBy(factor) {
  const { width, height } = stageSize();
  zoomAt(width / 2, height / 2, factor);
}

function fitAll() {
  const { width, height } = stageSize();
  const box = bounds();
  const scale = (room) =>
    Math.max(SCALES.least, Math.min((room - 32) / (box.right - box.x), (height - 32) / (box.bottom - box.y), 1.2));
  // At small scales names stand to the right of the cards.
  const names = scale(width) < SCALES.far ? Math.min(FAR_NAME + 30, width / 2) : 0;
  eye.scale = scale(width - names);
  eye.x = (width - names - (box.right + box.x) * eye.scale) / 2;
  eye.y = (height - (box.bottom + box.y) * eye.scale) / 2;
  show();
}

// Choose the first view: the whole graph if it can be read, else its beginning at the full width of the window.
function fitStart() {
  const { width, height } = stageSize();
  const box = bounds();
  const all = Math.min((width - 32) / (box.right - box.x), (height - 32) / (box.bottom - box.y));
  if (all >= 0.8) {
    fitAll();
    return;
  }
  eye.scale = Math.min(1, Math.max(0.85, (width - 32) / (box.right - box.x)));
  const wide = (box.right - box.x) * eye.scale;
  eye.x = wide > width - 32 ? 16 - box.x * eye.scale : (width - (box.right + box.x) * eye.scale) / 2;
  eye.y = 16 - box.y * eye.scale;
  show();
}

function middleOf(id) {
  const node = state.nodes.get(id);
  if (node.kind === "run") {
    const row = state.layout.rows.find((each) => each.folded && each.first === node.module);
    return { x: 0, y: row.y + 15 };
  }
  const card = state.layout.cards.find((each) => each.k === node.module);
  return node.kind === "module" ? { x: 0, y: card.y + CARD.head / 2 } : { x: node.x, y: node.y + card.y };
}

// Bring a node into sight with the smallest move; nodes far away come to the upper third of the window.
function bringIntoView(id, readable) {
  const { width, height } = stageSize();
  if (readable && eye.scale < SCALES.small) eye.scale = 0.9;
  const at = middleOf(id);
  const x = at.x * eye.scale + eye.x;
  const y = at.y * eye.scale + eye.y;
  if (x < 130 || x > width - 130) eye.x += Math.min(width / 2, LAYER.width + 40) - x;
  if (y < 60 || y > height - 80) eye.y += height / 3 - y;
  show();
}

const withinCanvas = (event) => {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
};

function turnWheel(event) {
  event.preventDefault();
  const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? stageSize().height : 1;
  const at = withinCanvas(event);
  if (event.ctrlKey || event.metaKey || event.altKey) {
    // Browsers report pinching on a trackpad as small turns of the wheel with the control key.
    zoomAt(at.x, at.y, Math.exp(-event.deltaY * unit * (event.ctrlKey ? 0.008 : 0.003)));
    return;
  }
  eye.x -= (event.shiftKey ? event.deltaY : event.deltaX) * unit;
  eye.y -= (event.shiftKey ? 0 : event.deltaY) * unit;
  look();
}

function listenToPointers() {
  const pointers = new Map();
  let start = null;
  canvas.addEventListener("wheel", turnWheel, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    pointers.set(event.pointerId, withinCanvas(event));
    start = { ...withinCanvas(event), moved: false };
  });
  canvas.addEventListener("pointermove", (event) => {
    const before = pointers.get(event.pointerId);
    if (!before) return;
    if (event.pointerType === "mouse" && event.buttons === 0) {
      pointers.delete(event.pointerId);
      return;
    }
    const now = withinCanvas(event);
    if (!start.moved && Math.hypot(now.x - start.x, now.y - start.y) < 5) return;
    if (!start.moved) canvas.setPointerCapture(event.pointerId);
    start.moved = true;
    canvas.classList.add("is-dragged");
    if (pointers.size === 2) pinch(pointers, event.pointerId, now);
    else movedBy(now.x - before.x, now.y - before.y);
    pointers.set(event.pointerId, now);
  });
  const end = (event) => {
    pointers.delete(event.pointerId);
    canvas.classList.remove("is-dragged");
    // The click event follows right after.
    setTimeout(() => {
      if (start && !pointers.size) start.moved = false;
    });
  };
  canvas.addEventListener("pointerup", end);
  canvas.addEventListener("pointercancel", end);
  // Ignore the click that ends a drag.
  const stop = (event) => start && start.moved && event.stopImmediatePropagation();
  canvas.addEventListener("click", stop, true);
}

function movedBy(x, y) {
  eye.x += x;
  eye.y += y;
  look();
}

function pinch(pointers, moving, now) {
  const [still] = [...pointers].filter(([id]) => id !== moving).map(([, at]) => at);
  const before = pointers.get(moving);
  const factor =
    Math.hypot(now.x - still.x, now.y - still.y) / Math.max(1, Math.hypot(before.x - still.x, before.y - still.y));
  zoomAt((now.x + still.x) / 2, (now.y + still.y) / 2, factor);
}
