// List the boxes and arrows of each local module, without coordinates: layers on the spine, and auxiliary networks.

const view = data.view;
const SMALL = 42;

const layerName = (index) => clean(data.layers[index].name) || `layer ${index}`;
const rangeOf = (list) =>
  list.length > 1 ? `layers ${list[0]}\u2013${list[list.length - 1]}` : list.length ? `layer ${list[0]}` : "";

const layerWords = (i) => [clean(data.layers[i].type), sizes(data.layers[i].output)].filter(Boolean).join("  ");

// All boxes on the spine are as wide as the widest text needs, between 150 and 236 pixels.
const LAYER = {
  width: Math.round(
    Math.min(
      236,
      Math.max(
        150,
        ...data.layers.map((_, i) => 26 + Math.max(widthOf(layerName(i), "name"), widthOf(layerWords(i), "small"))),
      ),
    ),
  ),
  height: 42,
};

function spineBoxes(k) {
  const module = data.modules[k];
  if (view.kind === "local" || view.kind === "auxiliary") {
    const parts = [rangeOf(module.layers), module.last ? "classifier" : ""].filter(Boolean).join(" + ");
    return [
      {
        id: `m${k}.box`,
        kind: "box",
        module: k,
        title: clean(module.name),
        sub: `${parts} \u2192 ${sizes(module.output)}`,
      },
    ];
  }
  const boxes = module.layers.map((i) => {
    return { id: `m${k}.l${i}`, kind: "layer", module: k, layer: i, title: layerName(i), sub: layerWords(i) };
  });
  if (module.last)
    boxes.push({
      id: `m${k}.c`,
      kind: "classifier",
      module: k,
      title: "classifier",
      sub: `\u2192 ${sizes(data.output)}`,
    });
  return boxes;
}

const KINDS = { copy: "copy of", leap: "copy that follows", twin: "copy and twin of", free: "copy of" };
const SHORT = { copy: "copy", leap: "follows", twin: "twins", free: "copy" };

function blockNode(block) {
  const change = block.in === block.out ? `${block.out} ch` : `${block.in}\u2009\u2192\u2009${block.out} ch`;
  const halving = block.stride > 1 ? `, 1/${block.stride}` : "";
  const title = block.source === null ? clean(block.kind) : layerName(block.source);
  const how = block.source === null ? "" : `${SHORT[block.kind] || "copy"}  `;
  const sub = `${block.adapter ? "adapter, " : ""}${how}${change}${halving}`;
  return { kind: "block", block, source: block.source, title, sub };
}

function lossNode(k, role, loss) {
  const module = data.modules[k];
  const network = loss.network;
  const name = module.last ? data.outputCriterion : data.criterion;
  const own = loss.weight * (network ? network.weight : 1);
  const terms = network
    ? network.terms.map((term) => `${weight(loss.weight * term.weight)} \u00b7 ${clean(term.name)}`)
    : [];
  const groups = network && network.groups.length ? ` of ${network.groups.length} groups` : "";
  const sub = [`${own === 1 ? "" : `${weight(own)} \u00b7 `}${clean(name)}${groups}`, ...terms].join(" + ");
  const title = role === "cascade" ? "cascaded loss" : module.last ? "output loss" : "local loss";
  return { id: `m${k}.${role}.loss`, kind: "loss", module: k, role, title, sub };
}

const arrows = (words) => clean(words).replace(/ > /g, " \u203a ");

// Return nodes and edges of one loss with its auxiliary network; "in" stands for the output of the module's last layer.
function lossGraph(k, role, loss) {
  const network = loss.network;
  const end = lossNode(k, role, loss);
  if (!network || view.kind === "local") return { nodes: [end], edges: [["in", end.id]] };
  const graph = { nodes: [], edges: [] };
  const add = (part, node, after) => {
    const made = { id: `m${k}.${role}.${part}`, module: k, role, ...node };
    graph.nodes.push(made);
    graph.edges.push([after, made.id]);
    return made.id;
  };
  let start = "in";
  if (network.merged.length) {
    const sub = `${plural(network.merged.length, "more tensor")} of the cut`;
    start = add("merge", { kind: "merge", title: "merge", sub }, "in");
  }
  const groups = network.groups.length ? network.groups.map((_, g) => g) : [null];
  const ends = groups.map((group) => addChain(add, network, group, start));
  network.terms.forEach((term, i) => {
    if (!term.network) return;
    ends.push(add(`t${i}`, { kind: "term", term, title: clean(term.name), sub: arrows(term.network) }, start));
  });
  graph.nodes.push(end);
  ends.forEach((id) => graph.edges.push([id, end.id]));
  return graph;
}

// Add the hidden blocks and the head of a network, or of one of its groups of channels; return the id of the head.
function addChain(add, network, group, start) {
  const at = `g${group === null ? 0 : group}`;
  let last = start;
  network.blocks.forEach((block, i) => {
    last = add(`${at}.b${i}`, { ...blockNode(block), group }, last);
  });
  const title = group === null ? "head" : `head, group ${group}`;
  return add(`${at}.head`, { kind: "head", group, title, sub: arrows(network.head) }, last);
}

function branchesOf(k) {
  if (view.kind === "primary") return [];
  const module = data.modules[k];
  const found = [lossGraph(k, "own", module.own)];
  if (module.cascade) found.push(lossGraph(k, "cascade", module.cascade));
  return found;
}

function sized(node) {
  if (node.kind === "layer" || node.kind === "box" || node.kind === "classifier") return { ...node, ...LAYER };
  const wide = Math.max(widthOf(node.title, "name"), widthOf(node.sub, "small"));
  return { ...node, width: Math.round(Math.min(250, Math.max(96, wide + 24))), height: SMALL };
}

// Runs of alike modules that the reader has unfolded, by the index of their first module.
const unfolded = new Set();
let folding = view.fold && view.module === null;

// List the rows to draw: a folded run of alike modules is one row that shows its first period.
function rowsOf() {
  if (view.module !== null) return [{ first: view.module, period: 1, count: 1, folded: false }];
  const rows = [];
  for (const [first, period, count] of data.runs) {
    if (folding && count > 1 && !unfolded.has(first)) rows.push({ first, period, count, folded: true });
    else
      for (let k = first; k < first + period * count; k += 1)
        rows.push({ first: k, period: 1, count: 1, folded: false });
  }
  return rows;
}

// Return the module that is drawn for module k: k itself, or in a folded run the first module like it; null if none.
function shownFor(k) {
  for (const row of state.rows) {
    const last = row.first + row.period * row.count;
    if (k >= row.first && k < last) return row.first + ((k - row.first) % row.period);
  }
  return null;
}
