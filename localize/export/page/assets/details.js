// Fill the panel with facts and generated code of the chosen node.

const panel = byId("panel");

function table(rows) {
  const list = h("dl", { class: "facts" });
  rows
    .filter((row) => row && row[1] !== "" && row[1] !== null && row[1] !== undefined)
    .forEach(([name, value]) => list.append(h("dt", {}, name), h("dd", {}, value)));
  return list;
}

function names(title, list) {
  if (!list.length) return null;
  return h(
    "details",
    {},
    h("summary", {}, `${title} (${list.length})`),
    h("ul", { class: "names" }, ...list.map((name) => h("li", {}, clean(name)))),
  );
}

function code(title, source, open) {
  if (!source) return null;
  const lines = source
    .split("\n")
    .map((line) =>
      line.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, "\ufffd"),
    );
  return h(
    "details",
    { open: Boolean(open) },
    h("summary", {}, title),
    h("pre", { class: "code", tabindex: "0" }, lines.join("\n")),
  );
}

const blockWords = (block) => {
  const what =
    block.source === null
      ? clean(block.kind)
      : `${KINDS[block.kind] || "copy of"} layer ${block.source}, ${layerName(block.source)}`;
  const size = block.stride > 1 ? ` at 1/${block.stride} of the size` : "";
  return `${what}: ${block.in} \u2192 ${block.out} channels${size}${block.projection ? ", shortcut with a projection" : ""}${block.adapter ? `, behind an adapter (${clean(block.adapter)})` : ""}`;
};

function networkFacts(title, loss, k) {
  const network = loss.network;
  if (!network) return null;
  const steps = [
    ...network.merged.map((words) => `merge: ${clean(words)}`),
    ...network.blocks.map(blockWords),
    `head: ${arrows(network.head)}`,
  ];
  const terms = network.terms.map(
    (term) => `${weight(term.weight)} \u00b7 ${clean(term.name)}${term.network ? `: ${arrows(term.network)}` : ""}`,
  );
  return h(
    "section",
    {},
    h("h3", {}, title),
    table([
      ["depth", `d = ${network.depth}`],
      ["parameters", si(network.params)],
      ["MACs", si(network.macs)],
      [
        "share",
        data.modules[k].params
          ? `${weight(network.params / data.modules[k].params)} times the module's own parameters`
          : "",
      ],
      [
        "groups",
        network.groups.length
          ? `${network.groups.length}, of channels ${network.groups.map((group) => group.join(", ")).join(" | ")}`
          : "",
      ],
      ["weight", loss.weight * network.weight === 1 ? "" : weight(loss.weight * network.weight)],
    ]),
    h("ol", { class: "steps" }, ...steps.map((words) => h("li", {}, words))),
    terms.length
      ? table([["further terms", h("ul", { class: "plain" }, ...terms.map((words) => h("li", {}, words)))]])
      : null,
  );
}

function memoryFacts(k) {
  const memory = data.modules[k].memory;
  if (!memory) return [["memory", "not forecast"]];
  return [
    ["peak while it runs", `${bytes(memory.peak)} (${memory.phase}, ${clean(memory.operation) || "start"})`],
    ["kept for its backward", bytes(memory.kept)],
  ];
}

function moduleDetails(k) {
  const module = data.modules[k];
  const run = data.runs.find(([first, period, count]) => count > 1 && k >= first && k < first + period * count);
  const last = run ? run[0] + run[1] * run[2] - 1 : 0;
  const same = run ? `modules ${run[0]}\u2013${last}${run[1] > 1 ? `, every ${run[1]} of them,` : ""} are alike` : "";
  const parts = [rangeOf(module.layers), module.last ? "classifier" : ""].filter(Boolean).join(" + ");
  return [
    h("p", { class: "kind" }, `local module ${k}`),
    h("h2", {}, clean(module.name)),
    module.note ? h("p", { class: "note" }, clean(module.note)) : null,
    table([
      ["consists of", parts],
      ["input", sizes(module.input)],
      ["output", sizes(module.output)],
      [
        "cut",
        module.crossing.length
          ? `${plural(module.crossing.length, "tensor")}, detached: ${module.crossing.map(sizes).join(", ")}`
          : "none, the last module",
      ],
      ["parameters", si(module.params)],
      ["MACs", si(module.macs)],
      ["activations", `${bytes(module.bytes)} a sample`],
      ...memoryFacts(k),
      ["recomputed", module.recompute.join(", ")],
      ["alike ones", same],
    ]),
    networkFacts("Auxiliary network", module.own, k),
    module.cascade ? cascadeFacts(k) : null,
    module.own.network || module.cascade ? null : h("p", {}, "Trained by the output loss, through the classifier."),
    names("Trained parameters of the primary", module.parameters),
    code("Generated code", module.code, true),
  ];
}

function cascadeFacts(k) {
  const { cascade } = data.modules[k];
  const where = cascade.reaches.length
    ? `modules ${cascade.reaches[0]} to ${k}`
    : `module ${k} alone: nothing is before it`;
  return h(
    "div",
    {},
    networkFacts("Auxiliary network of the cascaded loss", cascade, k),
    table([["cascaded loss", `${weight(cascade.weight)} of it, reaches ${where}`]]),
    names("Parameters it reaches in earlier modules", cascade.parameters),
  );
}

function layerDetails(node) {
  const layer = data.layers[node.layer];
  const copied = data.modules
    .map((module, k) => ({ module, k }))
    .filter(({ module }) =>
      [module.own.network, module.cascade && module.cascade.network].some(
        (network) => network && network.blocks.some((block) => block.source === node.layer),
      ),
    );
  return [
    h("p", { class: "kind" }, `local layer ${node.layer}, in module ${node.module}`),
    h("h2", {}, layerName(node.layer)),
    table([
      ["class", clean(layer.type)],
      ["input", sizes(layer.input)],
      ["output", sizes(layer.output)],
      ["parameters", si(layer.params)],
      ["MACs", si(layer.macs)],
      ["activations", `${bytes(layer.bytes)} a sample`],
      [
        "copied by",
        copied.length
          ? `auxiliary networks of ${plural(copied.length, "module")}: ${spans(copied.map(({ k }) => k))}`
          : "",
      ],
    ]),
    code(`Generated code of module ${node.module}`, data.modules[node.module].code, true),
  ];
}

// Write indices with consecutive ones as a range: 1–3, 7.
function spans(list) {
  const found = [];
  for (const k of list) {
    const last = found[found.length - 1];
    if (last && last[1] === k - 1) last[1] = k;
    else found.push([k, k]);
  }
  return found.map(([from, to]) => (from === to ? from : `${from}\u2013${to}`)).join(", ");
}

function partDetails(node) {
  const module = data.modules[node.module];
  const loss = node.role === "cascade" ? module.cascade : module.own;
  const isLoss = node.kind === "loss";
  const reach = node.role === "cascade" ? [...module.cascade.parameters, ...module.parameters] : module.parameters;
  const what = isLoss ? "loss" : "auxiliary network";
  return [
    h("p", { class: "kind" }, `${what} of module ${node.module}, ${clean(module.name)}`),
    h("h2", {}, node.title),
    table(isLoss ? lossFacts(node) : partFacts(node, loss)),
    isLoss ? names("Parameters of the primary it trains", reach) : null,
    isLoss ? null : networkFacts("The whole auxiliary network", loss, node.module),
    h(
      "p",
      { class: "links" },
      link(`Module ${node.module}, with its code`, node.module, null),
      isCopy(node) ? link(`Layer ${node.source}, the original`, moduleOfLayer(node.source), node.source) : null,
    ),
  ];
}

const isCopy = (node) => node.kind === "block" && node.source !== null;
const link = (words, k, layer) =>
  h("button", { type: "button", class: "link", "data-goto": k, "data-layer": layer }, words);

function lossFacts(node) {
  const { cascade } = data.modules[node.module];
  const beyond = node.role === "cascade" && cascade.reaches.length;
  return [
    ["what", node.sub],
    ["computed from", clean(data.prediction)],
    ["reaches", beyond ? `modules ${cascade.reaches[0]}\u2013${node.module}` : `module ${node.module} alone`],
  ];
}

function partFacts(node, loss) {
  const { term, group } = node;
  const words = { block: () => blockWords(node.block), term: () => arrows(term.network) };
  const facts = [["what", (words[node.kind] || (() => node.sub))()]];
  if (group !== null && group !== undefined) {
    facts.push(["group", `${group}, channels ${loss.network.groups[group].join(", ")}`]);
  }
  if (term) facts.push(["parameters", si(term.params)], ["MACs", si(term.macs)]);
  if (isCopy(node)) {
    const source = data.layers[node.source];
    facts.push(["original", `${layerName(node.source)}, ${clean(source.type)}, ${si(source.params)} parameters`]);
    facts.push(["there", `${sizes(source.input)} \u2192 ${sizes(source.output)}`]);
  }
  return facts;
}

function detailsOf(node) {
  if (node.kind === "layer") return layerDetails(node);
  return node.role ? partDetails(node) : moduleDetails(node.module);
}

function openPanel(id, focus) {
  showPanel(detailsOf(state.nodes.get(id)), focus);
}

function showPanel(content, focus) {
  const close = h(
    "button",
    { type: "button", class: "close", "aria-label": "Close details (Escape)", title: "Close ( Esc )" },
    "\u00d7",
  );
  panel.replaceChildren(close, ...content.filter(Boolean));
  panel.scrollTop = 0;
  document.body.classList.add("has-panel");
  if (focus) panel.focus({ preventScroll: true });
}
