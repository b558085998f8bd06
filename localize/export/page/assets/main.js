// Start the page, handle buttons, and prepare printing.

function heading() {
  document.querySelector("#heading h1").textContent = clean(data.model);
  const pairs = (list) => list.map(([key, value]) => `${clean(key)}=${clean(value)}`).join(", ");
  const chosen = pairs(data.options.filter((option) => option[2]));
  byId("method").replaceChildren(h("b", {}, clean(data.method)), chosen ? ` (${chosen})` : "");
  byId("method").title = pairs(data.options);
  const memory = data.memory;
  const peak = memory.why ? null : bytes(memory.own.peak);
  const beside = !memory.why && memory.bp ? `${percent(memory.own.peak / memory.bp.peak)} of BP` : "";
  const figure = (name, value, note) =>
    h("div", {}, h("dt", {}, name), h("dd", {}, value, note ? h("small", {}, note) : ""));
  byId("figures").replaceChildren(
    figure("Modules", String(data.modules.length), `of ${plural(data.layers.length, "layer")}`),
    figure("Primary", si(data.params), `${si(data.macs)} MACs`),
    figure("Auxiliary", si(data.auxParams), data.auxParams ? `${si(data.auxMacs)} MACs` : ""),
    ...(peak ? [figure("Peak memory", peak, beside)] : []),
  );
}

function select(id) {
  world.querySelectorAll(".selected").forEach((element) => element.classList.remove("selected"));
  state.selected = id;
  if (!id) return;
  const { element, kind } = state.nodes.get(id);
  element.classList.add("selected");
  if (kind === "module") element.closest(".module-card").classList.add("selected");
}

function activate(id, focus) {
  const node = state.nodes.get(id);
  if (!node) return;
  if (node.kind === "run") {
    unfolded.add(node.module);
    redraw();
    say(`unfolded: ${node.title}`);
    const next = state.nodes.has(`m${node.module}`) ? `m${node.module}` : state.order[0];
    setCurrent(next, focus);
    return;
  }
  setCurrent(id, false);
  select(id);
  openPanel(id, focus);
  keepInSight(id);
  light(id);
}

// Announce words to screen readers.
function say(words) {
  byId("hint").textContent = words;
}

// Scroll a node back into sight after the panel has opened over it.
function keepInSight(id) {
  requestAnimationFrame(() => {
    if (state.nodes.has(id)) bringIntoView(id, false);
  });
}

function leave() {
  if (byId("search") === document.activeElement) {
    byId("search").value = "";
    byId("search").blur();
  }
  const back = state.selected;
  select(null);
  document.body.classList.remove("has-panel");
  panel.replaceChildren();
  hideTip();
  if (back && state.nodes.has(back)) state.nodes.get(back).element.focus({ preventScroll: true });
  clearLight();
}

// Draw again after folding or unfolding; the current node stays in sight if it still exists.
function redraw() {
  const before = state.current;
  const chosen = state.selected;
  state.selected = null;
  draw();
  setCurrent(state.nodes.has(before) ? before : state.order[0], false);
  if (chosen && state.nodes.has(chosen)) select(chosen);
  show();
  const button = byId("fold");
  button.setAttribute("aria-pressed", String(folding));
}

function listenToButtons() {
  byId("in").addEventListener("click", () => zoomBy(1.25));
  byId("out").addEventListener("click", () => zoomBy(0.8));
  byId("whole").addEventListener("click", fitAll);
  byId("about").addEventListener("click", () => {
    select(null);
    clearLight();
    showPanel(aboutDetails(), true);
  });
  byId("fold").hidden = view.module !== null || !data.runs.some((run) => run[2] > 1);
  byId("fold").addEventListener("click", () => {
    folding = !(folding && !unfolded.size);
    unfolded.clear();
    redraw();
    say(folding ? "alike modules are folded" : "all modules are drawn");
    fitStart();
  });
  byId("theme").addEventListener("click", () => setTheme(isDark() ? "light" : "dark"));
  canvas.addEventListener("click", (event) => {
    const element = event.target.closest(".node");
    if (element) activate(element.id, false);
    else if (event.target.closest(".module-card")) {
      const k = event.target.closest(".module-card").dataset.module;
      if (state.nodes.has(`m${k}`)) activate(`m${k}`, false);
    }
  });
  panel.addEventListener("click", (event) => {
    if (event.target.closest(".close")) leave();
    const link = event.target.closest("[data-goto]");
    if (link)
      goTo({
        k: Number(link.dataset.goto),
        layer: link.dataset.layer === undefined ? null : Number(link.dataset.layer),
      });
  });
}

const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme;
  byId("theme").textContent = isDark() ? "Light" : "Dark";
}

// Lay out for paper: each row becomes a picture of its own, as wide as the page, since a picture higher than a page is
// cut where the page ends. Patterns and arrow heads stay in an element that is displayed, or they would not be drawn.
function layOutForPrint() {
  const box = bounds();
  const { rows, input, output, ends } = state.layout;
  const bottoms = rows.flatMap((row) =>
    row.cards.map((card, i) =>
      row.folded && i === row.cards.length - 1 ? row.y + row.height + 10 : card.y + card.height + 4,
    ),
  );
  const slices = [];
  let top = input - ends.height / 2 - 4;
  for (const bottom of bottoms) {
    slices.push([top, bottom]);
    top = bottom;
  }
  slices.push([top, output + ends.height / 2 + 4]);
  const pictures = slices.map(([from, to]) => {
    const picture = s("svg", {
      class: "slice",
      viewBox: `${box.x - 4} ${from} ${box.right - box.x + 8} ${to - from}`,
      "aria-hidden": "true",
    });
    const shell = s("g");
    [...world.children].forEach((child) => {
      const card = state.cards.find((each) => each.element === child);
      if (!card || (card.bottom > from && card.top - CARD.gap < to)) shell.append(child.cloneNode(true));
    });
    shell.querySelectorAll("[id]").forEach((element) => element.removeAttribute("id"));
    shell.querySelectorAll("[tabindex]").forEach((element) => element.removeAttribute("tabindex"));
    shell
      .querySelectorAll(".unseen, .selected, .source, .lit")
      .forEach((element) => element.classList.remove("unseen", "selected", "source", "lit"));
    picture.append(shell);
    return picture;
  });
  byId("print").replaceChildren(...pictures);
}

function start() {
  heading();
  setTheme(null);
  draw();
  setCurrent(state.order[0], false);
  byId("fold").setAttribute("aria-pressed", String(folding));
  listenToButtons();
  listenToPointers();
  listenToHovering();
  listenToKeys();
  listenToSearch();
  // Open the overview next to the graph if there is room for both.
  const { x, right } = bounds();
  if (stageSize().width - 372 > 0.85 * (right - x) + 32) {
    showPanel(view.module === null ? aboutDetails() : moduleDetails(view.module), false);
  }
  drawChart();
  fitStart();
  prefersDark.addEventListener("change", () => setTheme(null));
  addEventListener("beforeprint", layOutForPrint);
  addEventListener("afterprint", () => byId("print").replaceChildren());
  new ResizeObserver(() => look()).observe(byId("stage"));
  let drawn = chart.box.clientWidth;
  new ResizeObserver(() => {
    if (chart.box.clientWidth === drawn) return;
    drawn = chart.box.clientWidth;
    requestAnimationFrame(drawChart);
  }).observe(chart.box);
}

start();
