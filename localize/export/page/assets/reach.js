// Highlight what belongs together: all that the gradient of a loss reaches, the layer that a block copies, or the
// module under the cursor.

const tip = byId("tip");

const isOf = (role) => (node) =>
  node.kind === "layer" ||
  node.kind === "classifier" ||
  node.kind === "box" ||
  node.kind === "module" ||
  node.role === role;

// List the ids of what a loss trains: its module and auxiliary network, and the earlier modules that a cascade reaches.
function reachOf(node) {
  const found = new Set();
  const module = data.modules[node.module];
  const nodes = [...state.nodes.values()];
  nodes.filter((each) => each.module === node.module && isOf(node.role)(each)).forEach((each) => found.add(each.id));
  if (node.role === "cascade") {
    for (const k of module.cascade.reaches) {
      const shown = shownFor(k);
      nodes.filter((each) => each.module === shown && isOf("none")(each)).forEach((each) => found.add(each.id));
    }
  }
  return found;
}

function clearLight() {
  world.classList.remove("reaching");
  world.querySelectorAll(".lit, .source").forEach((element) => element.classList.remove("lit", "source"));
  markChart(null);
}

function lightReach(node) {
  const ids = reachOf(node);
  world.classList.add("reaching");
  ids.forEach((id) => state.nodes.get(id).element.classList.add("lit"));
  const modules = new Set([...ids].map((id) => state.nodes.get(id).module));
  for (const card of state.cards) {
    if (!modules.has(card.k)) continue;
    card.element
      .querySelectorAll(`.card, .edge.spine[data-part], [data-part="m${node.module}.${node.role}"]`)
      .forEach((element) => element.classList.add("lit"));
  }
  world
    .querySelectorAll(`.bracket[data-part="m${node.module}.${node.role}"]`)
    .forEach((element) => element.classList.add("lit"));
}

function lightSource(node) {
  const shown = shownFor(moduleOfLayer(node.source));
  const card = state.layout.cards.find((each) => each.k === shown);
  if (!card) return;
  const layers = [...state.nodes.values()].filter(
    (each) => each.module === shown && (each.kind === "layer" || each.kind === "box"),
  );
  const exact = layers.find((each) => each.layer === node.source);
  const position = data.modules[moduleOfLayer(node.source)].layers.indexOf(node.source);
  const target = exact || layers[Math.min(Math.max(position, 0), layers.length - 1)];
  if (target) target.element.classList.add("source");
  node.element.classList.add("source");
}

function moduleOfLayer(layer) {
  return data.modules.findIndex((module) => module.layers.includes(layer));
}

function light(id) {
  clearLight();
  const node = state.nodes.get(id);
  if (!node) return;
  if (node.kind === "loss") lightReach(node);
  if (node.kind === "block" && node.source !== null) lightSource(node);
  markChart(node.module);
}

// Show a few words next to the cursor; the panel has the details.
function factsOf(node) {
  const module = data.modules[node.module];
  if (node.kind === "layer") {
    const layer = data.layers[node.layer];
    return [
      `${sizes(layer.input)} \u2192 ${sizes(layer.output)}`,
      `${si(layer.params)} parameters, ${si(layer.macs)} MACs`,
      `${bytes(layer.bytes)} of activations a sample`,
    ];
  }
  if (node.kind === "loss") {
    const cascade = node.role === "cascade" && module.cascade.reaches.length;
    const where = cascade ? `modules ${module.cascade.reaches[0]}\u2013${node.module}` : `module ${node.module} alone`;
    return [node.sub, `its gradient reaches ${where}`];
  }
  if (node.kind === "block") {
    const about = [blockWords(node.block)];
    if (node.source !== null) about.push("the layer it copies is marked on the spine");
    if (node.block.adapter) about.push(`behind an adapter: ${clean(node.block.adapter)}`);
    return about;
  }
  if (node.kind === "module" || node.kind === "box") {
    const memory = module.memory ? [`${bytes(module.memory.peak)} at its peak`] : [];
    return [
      [rangeOf(module.layers), module.last ? "classifier" : ""].filter(Boolean).join(" + "),
      figures(node.module),
      ...memory,
    ];
  }
  if (node.kind === "classifier") return [`${si(data.classifier.params)} parameters, ${si(data.classifier.macs)} MACs`];
  return node.sub ? [node.sub] : [];
}

function showTip(node, x, y) {
  const box = byId("stage").getBoundingClientRect();
  tip.replaceChildren(
    h("strong", {}, node.kind === "module" ? `${node.module}  ${clean(data.modules[node.module].name)}` : node.title),
    ...factsOf(node).map((line) => h("span", {}, line)),
  );
  tip.hidden = false;
  const left =
    x - box.left + 14 + tip.offsetWidth > box.width ? x - box.left - tip.offsetWidth - 10 : x - box.left + 14;
  const top = y - box.top + 18 + tip.offsetHeight > box.height ? y - box.top - tip.offsetHeight - 10 : y - box.top + 18;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  tip.hidden = true;
}

function listenToHovering() {
  let under = null;
  canvas.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch" || event.buttons) return;
    const element = event.target.closest(".node");
    const card = event.target.closest(".module-card");
    const id = element ? element.id : null;
    if (id === null) {
      if (under) {
        under = null;
        hideTip();
        relight();
      }
      const head = card && eye.scale < SCALES.far ? state.nodes.get(`m${card.dataset.module}`) : null;
      if (head) showTip(head, event.clientX, event.clientY);
      else hideTip();
      markChart(card ? Number(card.dataset.module) : null);
      return;
    }
    if (id !== under) {
      under = id;
      light(id);
    }
    showTip(state.nodes.get(id), event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => {
    under = null;
    hideTip();
    relight();
  });
}

// When no node is under the cursor, highlight the focused node, or else the subject of the panel.
function relight() {
  const focused =
    document.activeElement && document.activeElement.closest ? document.activeElement.closest(".node") : null;
  if (focused) light(focused.id);
  else if (state.selected && state.nodes.has(state.selected)) light(state.selected);
  else clearLight();
}
