// Fill the panel when no node is chosen: facts of the whole network, legend, meaning of the figures, keys.

const MEASURED =
  "Shapes, parameters and MACs (multiply-accumulates of convolutions and linear layers, one sample) are counted on the " +
  "traced network. Memory is that of all tensors alive, from a step that is run without values; workspaces of kernels " +
  "and what an allocator wastes come on top. The share of operations on the chart is no time.";
const KEYS = [
  ["\u2191 \u2193", "along the spine"],
  ["\u2192 \u2190", "into an auxiliary network and back"],
  ["Enter", "details"],
  ["Esc", "close"],
  ["/", "search"],
  ["+ \u2212 0", "zoom, show all"],
];
const foldable = data.runs.some((run) => run[2] > 1);

function aboutDetails() {
  return [
    h("p", { class: "kind" }, "the whole network"),
    h("h2", {}, `${clean(data.model)} by ${clean(data.method)}`),
    aboutFacts(),
    aboutOptions(),
    h("h3", {}, "Legend"),
    legend(),
    h("h3", {}, "What is measured, what is estimated"),
    h("p", {}, MEASURED),
    foldable ? h("p", {}, foldingWords()) : null,
    data.opaque.length ? names("Kept whole, could not be traced", data.opaque) : null,
    data.budget.length ? names("Done for the memory budget", data.budget) : null,
    h("h3", {}, "Keys"),
    h("p", { class: "keyboard" }, ...KEYS.flatMap(([keys, words]) => [h("kbd", {}, keys), ` ${words}  `])),
    code("Generated code of the whole", data.code, false),
  ];
}

function aboutFacts() {
  const { memory, original } = data;
  const part = memory.bp && !memory.why ? percent(memory.own.peak / memory.bp.peak) : "";
  const alive = memory.why ? "" : `${bytes(memory.resident)}, gradients up to ${bytes(memory.gradients)}`;
  return table([
    ["input", sizes(data.input)],
    ["output", sizes(data.output)],
    ["local losses on", clean(data.prediction)],
    ["local layers", data.layers.length],
    ["local modules", data.modules.length],
    ["primary", `${si(data.params)} parameters, ${si(data.macs)} MACs`],
    ["made of", original ? `${si(original.params)} parameters, ${si(original.macs)} MACs` : ""],
    ["auxiliary", data.auxParams ? `${si(data.auxParams)} parameters, ${si(data.auxMacs)} MACs` : "none"],
    ["run once more", data.repeatedMacs ? `${si(data.repeatedMacs)} MACs of the primary, by cascades` : ""],
    ["peak memory", memory.why ? "" : `${bytes(memory.own.peak)} (${clean(memory.at)})`],
    ["backpropagation", part ? `${bytes(memory.bp.peak)}; local learning takes ${part} of it` : ""],
    ["alive throughout", alive],
  ]);
}

function aboutOptions() {
  if (!data.options.length) return null;
  const rows = data.options.map(([name, value]) => [clean(name), clean(value)]);
  return h("details", {}, h("summary", {}, `Options of ${clean(data.method)} (${rows.length})`), table(rows));
}

function legend() {
  const losses = view.kind !== "primary";
  const networks = losses && view.kind !== "local" && data.auxParams;
  const cascades = losses && data.modules.some((module) => module.cascade && module.cascade.reaches.length);
  const keys = [
    ["layer", "layer of the primary network", true],
    ["block", "auxiliary network: copies of later layers, plain blocks, head", networks],
    ["loss", "loss: point at it to see what its gradient reaches", losses],
    ["wall", "cut: values pass, gradients do not", losses && data.modules.length > 1],
    ["cascade", "reach of a cascaded loss, with earlier modules", cascades],
    ["run", "alike modules drawn once; press to unfold", foldable],
  ];
  const shown = keys.filter(([, , present]) => present);
  const items = shown.map(([kind, words]) => h("li", {}, h("span", { class: `swatch ${kind}` }), words));
  return h("ul", { class: "legend" }, ...items);
}

function foldingWords() {
  if (!folding) return "Alike modules can be folded.";
  if (view.asked) return "Alike modules are folded, as asked.";
  if (view.fold) return `Alike modules are folded, since there are more than ${view.foldFrom - 1} modules.`;
  return "Alike modules are folded.";
}
