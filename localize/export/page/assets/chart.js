// Chart the bytes alive over a training step, of local learning and of backpropagation; the x axis of each is the share
// of its own operations.

const chart = { box: byId("memory"), band: null, cross: null, read: null, plot: null };

function drawChart() {
  const memory = data.memory;
  if (memory.why) {
    chart.box.replaceChildren(
      h("p", { class: "why" }, h("strong", {}, "Memory over a step is not known: "), clean(memory.why)),
    );
    return;
  }
  const width = Math.max(280, chart.box.clientWidth - 32);
  const plot = { width, height: 108, left: 58, right: 14, top: 14, bottom: 20 };
  plot.most = 1.12 * Math.max(memory.own.peak, memory.bp ? memory.bp.peak : 0);
  plot.x = (share) => plot.left + share * (plot.width - plot.left - plot.right);
  plot.y = (value) => plot.height - plot.bottom - (value / plot.most) * (plot.height - plot.top - plot.bottom);
  chart.plot = plot;
  chart.band = s("rect", { class: "band", y: plot.top, height: plot.height - plot.top - plot.bottom, width: 0 });
  chart.cross = s("line", { class: "cross", y1: plot.top, y2: plot.height - plot.bottom, visibility: "hidden" });
  const picture = s("svg", {
    class: "chart",
    width,
    height: plot.height,
    viewBox: `0 0 ${width} ${plot.height}`,
    role: "img",
    "aria-label": chartWords(),
  });
  picture.append(...axes(plot), chart.band, ...borders(plot), areaOf(memory.own, plot));
  if (memory.bp) picture.append(s("path", { class: "line bp", d: lineOf(memory.bp, plot) }));
  picture.append(s("path", { class: "line own", d: lineOf(memory.own, plot) }), ...peaks(plot), chart.cross);
  chart.read = h("p", { class: "read", "aria-live": "off" }, defaultWords());
  chart.box.replaceChildren(legendOf(memory), picture, chart.read);
  listenToChart(picture);
}

function chartWords() {
  const { own, bp } = data.memory;
  return `Peak ${bytes(own.peak)} by ${clean(data.method)}${bp ? `, ${bytes(bp.peak)} by backpropagation` : ""}`;
}

function defaultWords() {
  const { own, bp } = data.memory;
  return `x: share of the step\u2019s operations (${grouped(own.operations)}${bp ? ` and ${grouped(bp.operations)}` : ""}); point at the chart or at a module to compare`;
}

function legendOf(memory) {
  const ratio = memory.bp ? `, ${percent(memory.own.peak / memory.bp.peak)} of backpropagation` : "";
  const own = h("span", { class: "key own" }, `${clean(data.method)}: peak ${bytes(memory.own.peak)}${ratio}`);
  const bp = memory.bp ? h("span", { class: "key bp" }, `backpropagation: peak ${bytes(memory.bp.peak)}`) : null;
  const missing = memory.whyNot
    ? h("span", { class: "key none" }, `backpropagation: not known, ${clean(memory.whyNot)}`)
    : null;
  const about = h(
    "span",
    { class: "about" },
    `batch ${memory.batch}, ${clean(memory.dtype)}, ${clean(memory.optimizer)}`,
  );
  return h("p", { class: "keys" }, h("strong", {}, "Memory over a training step"), own, bp || "", missing || "", about);
}

function axes(plot) {
  const step = niceStep(plot.most / 2.6);
  const found = [];
  for (let value = 0; value < plot.most; value += step) {
    const y = plot.y(value);
    found.push(s("line", { class: "grid", x1: plot.left, x2: plot.width - plot.right, y1: y, y2: y }));
    found.push(
      s(
        "text",
        { class: "tick end", x: plot.left - 8, y: y + 3.5 },
        value ? bytes(value).replace(/\.0+(?=\D)|(\.\d*?)0+(?=\D)/, "$1") : "0",
      ),
    );
  }
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    found.push(s("text", { class: `tick ${anchor}`, x: plot.x(share), y: plot.height - 4 }, `${100 * share}\u2009%`));
  }
  return found;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
}

function lineOf(course, plot) {
  const last = course.live.length;
  return course.live
    .map((value, i) => `${i ? "L" : "M"}${plot.x((i + 0.5) / last).toFixed(1)} ${plot.y(value).toFixed(1)}`)
    .join("");
}

function areaOf(course, plot) {
  const base = plot.y(0);
  return s("path", {
    class: "area own",
    d: `M${plot.x(0)} ${base}${lineOf(course, plot).replace(/^M/, "L")}L${plot.x(1)} ${base}Z`,
  });
}

function borders(plot) {
  const { own } = data.memory;
  const starts = own.spans.filter(([, phase]) => phase === "f").map((span) => span[2]);
  return starts.map((start) =>
    s("line", {
      class: "border",
      x1: plot.x(start / own.operations),
      x2: plot.x(start / own.operations),
      y1: plot.height - plot.bottom,
      y2: plot.height - plot.bottom + 4,
    }),
  );
}

function peaks(plot) {
  const { own, bp } = data.memory;
  const both = bp
    ? [
        ["bp", bp],
        ["own", own],
      ]
    : [["own", own]];
  return both.map(([kind, course]) =>
    s("circle", {
      class: `peak ${kind}`,
      cx: plot.x((course.peakAt + 0.5) / course.operations),
      cy: plot.y(course.peak),
      r: 3.5,
    }),
  );
}

// Mark the part of the step that a module takes; for a folded module, the parts of all that it stands for.
function markChart(k) {
  if (!chart.band || !chart.plot) return;
  if (k === null || k === undefined) {
    chart.band.setAttribute("width", 0);
    chart.read.textContent = defaultWords();
    return;
  }
  const { own } = data.memory;
  const spans = own.spans.filter(([module]) => module === k);
  if (!spans.length) return;
  const from = chart.plot.x(spans[0][2] / own.operations);
  const to = chart.plot.x(spans[spans.length - 1][3] / own.operations);
  chart.band.setAttribute("x", from);
  chart.band.setAttribute("width", Math.max(2, to - from));
  const memory = data.modules[k].memory;
  chart.read.textContent = `module ${k}, ${clean(data.modules[k].name)}: peak ${bytes(memory.peak)}, keeps ${bytes(memory.kept)} for its backward`;
}

function spanAt(share) {
  const { own } = data.memory;
  const operation = Math.min(own.operations - 1, Math.max(0, Math.floor(share * own.operations)));
  return own.spans.find((span) => operation >= span[2] && operation < span[3]) || own.spans[own.spans.length - 1];
}

function listenToChart(picture) {
  const shareOf = (event) => {
    const { left, right, width } = chart.plot;
    return Math.min(
      1,
      Math.max(0, (event.clientX - picture.getBoundingClientRect().left - left) / (width - left - right)),
    );
  };
  const valueAt = (course, share) =>
    course.live[Math.min(course.live.length - 1, Math.floor(share * course.live.length))];
  picture.addEventListener("pointermove", (event) => {
    const share = shareOf(event);
    const [k, phase] = spanAt(share);
    const { own, bp } = data.memory;
    clearLight();
    const update = k >= data.modules.length;
    if (!update) {
      markChart(k);
      const shown = shownFor(k);
      const target =
        state.nodes.get(`m${shown}`) || state.nodes.get(state.order.find((id) => state.nodes.get(id).module === shown));
      if (target) target.element.classList.add("source");
    }
    const what = update
      ? "update of all parameters"
      : `module ${k}, ${clean(data.modules[k].name)}, ${phase === "f" ? "forward" : phase === "b" ? "backward" : "update"}`;
    chart.read.textContent = `${percent(share)} of the step: ${what}: ${bytes(valueAt(own, share))}${bp ? `; backpropagation: ${bytes(valueAt(bp, share))}` : ""}`;
    chart.cross.setAttribute("x1", chart.plot.x(share));
    chart.cross.setAttribute("x2", chart.plot.x(share));
    chart.cross.setAttribute("visibility", "visible");
  });
  picture.addEventListener("pointerleave", () => {
    chart.cross.setAttribute("visibility", "hidden");
    relight();
  });
  picture.addEventListener("click", (event) => {
    const [k] = spanAt(shareOf(event));
    const shown = k < data.modules.length ? shownFor(k) : null;
    const id = state.nodes.has(`m${shown}`)
      ? `m${shown}`
      : state.order.find((each) => state.nodes.get(each).module === shown);
    if (!id) return;
    bringIntoView(id, true);
    activate(id, false);
  });
}
