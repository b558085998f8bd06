// Move through the graph with keys, and search. The graph is one stop of the tab key; arrow keys move within it.

const spineKinds = new Set(["module", "layer", "classifier", "box", "run"]);

function setCurrent(id, focus) {
  const before = state.nodes.get(state.current);
  if (before) before.element.setAttribute("tabindex", "-1");
  state.current = id;
  const node = state.nodes.get(id);
  node.element.setAttribute("tabindex", "0");
  if (focus) {
    bringIntoView(id, true);
    node.element.focus({ preventScroll: true });
  }
}

function stepSpine(id, step) {
  const order = state.order.filter((each) => spineKinds.has(state.nodes.get(each).kind));
  const node = state.nodes.get(id);
  if (spineKinds.has(node.kind)) return order[order.indexOf(id) + step] || null;
  // From within an auxiliary network, go to the same place in that of the next module that has one.
  const modules = state.layout.cards.map((card) => card.k);
  const inside = id.slice(id.indexOf("."));
  for (let i = modules.indexOf(node.module) + step; i >= 0 && i < modules.length; i += step) {
    if (state.nodes.has(`m${modules[i]}${inside}`)) return `m${modules[i]}${inside}`;
  }
  return null;
}

function stepBranch(id, step) {
  const node = state.nodes.get(id);
  const branch = state.order.filter(
    (each) => state.nodes.get(each).module === node.module && state.nodes.get(each).role,
  );
  const at = branch.indexOf(id);
  if (at < 0) return step > 0 ? branch[0] || null : null;
  if (at + step >= 0) return branch[at + step] || null;
  const spine = state.order.filter(
    (each) => state.nodes.get(each).module === node.module && spineKinds.has(state.nodes.get(each).kind),
  );
  return spine[spine.length - 1] || null;
}

function listenToKeys() {
  const moves = {
    ArrowDown: (id) => stepSpine(id, 1),
    ArrowUp: (id) => stepSpine(id, -1),
    ArrowRight: (id) => stepBranch(id, 1),
    ArrowLeft: (id) => stepBranch(id, -1),
    Home: () => state.order[0],
    End: () => state.order[state.order.length - 1],
  };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const element = event.target.closest(".node");
    const id = element ? element.id : state.current;
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      activate(id, true);
    } else if (moves[event.key]) {
      event.preventDefault();
      const next = moves[event.key](id);
      if (next) setCurrent(next, true);
    }
  });
  canvas.addEventListener("focusin", (event) => {
    const element = event.target.closest(".node");
    if (!element) return;
    if (element.id !== state.current) setCurrent(element.id, false);
    light(element.id);
  });
  canvas.addEventListener("focusout", () => setTimeout(relight));
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape") leave();
    else if (event.target.closest("input")) return;
    else if (event.key === "/") {
      event.preventDefault();
      byId("search").focus();
      byId("search").select();
    } else if (event.key === "+" || event.key === "=") zoomBy(1.25);
    else if (event.key === "-") zoomBy(0.8);
    else if (event.key === "0") fitAll();
  });
}

// Find modules and layers by name or number.
const index = data.modules.map((module, k) => ({
  k,
  layer: null,
  words: `${k} ${clean(module.name)}`,
  place: rangeOf(module.layers),
}));
data.modules.forEach((module, k) => {
  if (module.layers.length > 1)
    module.layers.forEach((i) => index.push({ k, layer: i, words: layerName(i), place: `layer ${i}, module ${k}` }));
});

function found(query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return [];
  const score = (entry) => {
    const words = entry.words.toLowerCase();
    const name = entry.layer === null ? words.slice(words.indexOf(" ") + 1) : words;
    if (name === wanted || String(entry.k) === wanted) return 0;
    return name.startsWith(wanted) ? 1 : words.includes(wanted) ? 2 : 3;
  };
  const shown = view.module === null ? index : index.filter((entry) => entry.k === view.module);
  return shown
    .map((entry) => [score(entry), entry])
    .filter(([rank]) => rank < 3)
    .sort((a, b) => a[0] - b[0])
    .slice(0, 12)
    .map(([, entry]) => entry);
}

function goTo(entry) {
  if (shownFor(entry.k) !== entry.k) {
    const run = state.rows.find(
      (row) => row.folded && entry.k >= row.first && entry.k < row.first + row.period * row.count,
    );
    if (run) unfolded.add(run.first);
    redraw();
  }
  const exact = `m${entry.k}.l${entry.layer}`;
  const node =
    state.nodes.get(exact) ||
    state.nodes.get(`m${entry.k}`) ||
    [...state.nodes.values()].find((each) => each.module === entry.k);
  if (!node) return;
  setCurrent(node.id, true);
  activate(node.id, false);
}

function listenToSearch() {
  const input = byId("search");
  const list = byId("results");
  let entries = [];
  let chosen = 0;
  const close = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const choose = (position) => {
    chosen = (position + entries.length) % entries.length;
    [...list.children].forEach((item, i) => item.setAttribute("aria-selected", String(i === chosen)));
    input.setAttribute("aria-activedescendant", `found${chosen}`);
    list.children[chosen].scrollIntoView({ block: "nearest" });
  };
  const take = (entry) => {
    close();
    goTo(entry);
  };
  input.addEventListener("input", () => {
    entries = found(input.value);
    list.replaceChildren(
      ...entries.map((entry, i) =>
        h("li", { id: `found${i}`, role: "option" }, h("span", {}, entry.words), h("small", {}, entry.place)),
      ),
    );
    if (!entries.length && input.value.trim()) list.append(h("li", { class: "none" }, "Nothing of this name"));
    list.hidden = !input.value.trim();
    input.setAttribute("aria-expanded", String(!list.hidden));
    if (entries.length) choose(0);
  });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && entries.length && !list.hidden) take(entries[chosen]);
    else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && entries.length)
      choose(chosen + (event.key === "ArrowDown" ? 1 : -1));
    else return;
    event.preventDefault();
  });
  list.addEventListener("pointerdown", (event) => {
    const item = event.target.closest("[role=option]");
    event.preventDefault();
    if (item) take(entries[[...list.children].indexOf(item)]);
  });
  input.addEventListener("blur", close);
}
