// Compute coordinates with dagre: the layers of a module stand in one column, its auxiliary networks to the right of
// them, and modules one below the other. Alike modules are laid out once.

const CARD = { pad: 16, head: 36, branch: 44, gap: view.kind === "primary" ? 0 : 64 };
const FRAME = { pad: 14, head: 32, tab: 14 };
const layouts = new Map();

function dagreLayout(nodes, edges, options) {
  const graph = new dagre.graphlib.Graph();
  graph.setGraph(options);
  graph.setDefaultEdgeLabel(() => ({}));
  nodes.forEach((node) => graph.setNode(node.id, { width: node.width, height: node.height }));
  edges.forEach(([from, to]) => graph.setEdge(from, to));
  // Keep boxes in the given order, so that groups count upwards.
  dagre.layout(graph, { disableOptimalOrderHeuristic: true });
  return {
    at: (id) => graph.node(id),
    edges: graph.edges().map((edge) => ({ from: edge.v, to: edge.w, points: graph.edge(edge).points })),
  };
}

const chainOf = (nodes) => nodes.slice(1).map((node, i) => [nodes[i].id, node.id]);

// Lay out the inside of a module: x = 0 is the middle of the spine, y = 0 the top of the module.
function insideOf(k) {
  const spine = spineBoxes(k).map(sized);
  const branches = branchesOf(k).map((branch) => ({ nodes: branch.nodes.map(sized), edges: branch.edges }));
  const own = (id) => id.replace(/^m\d+/, "").replace(/\.l\d+$/, "");
  const key = JSON.stringify([
    spine.map((node) => node.height),
    branches.map((branch) => [
      branch.nodes.map((node) => [own(node.id), node.width]),
      branch.edges.map((edge) => edge.map(own)),
    ]),
  ]);
  if (!layouts.has(key)) layouts.set(key, placesOf(spine, branches));
  const places = layouts.get(key);
  const nodes = [...spine, ...branches.flatMap((branch) => branch.nodes)];
  return { ...places, nodes: nodes.map((node, i) => ({ ...node, ...places.centres[i] })) };
}

function placesOf(spine, branches) {
  const top = view.kind === "primary" ? CARD.pad : CARD.head + 6;
  const column = dagreLayout(spine, chainOf(spine), { rankdir: "TB", ranksep: 20, nodesep: 20 });
  const middle = column.at(spine[0].id).x;
  const centres = spine.map((node) => ({ x: 0, y: column.at(node.id).y + top }));
  const edges = chainOf(spine).map((_, i) => ({
    kind: "spine",
    points: [
      { x: column.at(spine[i].id).x - middle, y: centres[i].y + spine[i].height / 2 },
      { x: column.at(spine[i + 1].id).x - middle, y: centres[i + 1].y - spine[i + 1].height / 2 },
    ],
  }));
  const place = {
    centres,
    edges,
    right: LAYER.width / 2,
    bottom: centres[centres.length - 1].y + LAYER.height / 2,
    top,
  };
  branches.forEach((branch, i) => placeBranch(place, branch, i, centres[spine.length - 1]));
  return { centres, edges, height: place.bottom + CARD.pad, right: place.right + CARD.pad };
}

// Place one auxiliary network: it starts at the right edge of the last layer; a second network goes below the first.
function placeBranch(place, branch, index, last) {
  const entry = { id: "in", width: 1, height: 1 };
  const laid = dagreLayout([entry, ...branch.nodes], branch.edges, {
    rankdir: "LR",
    ranksep: 30,
    nodesep: 14,
    edgesep: 14,
  });
  const ys = branch.nodes.map((node) => laid.at(node.id).y - node.height / 2);
  const highest = Math.min(...ys);
  const lowest = Math.max(...branch.nodes.map((node) => laid.at(node.id).y + node.height / 2));
  const dx = LAYER.width / 2 + CARD.branch - 30 - laid.at("in").x;
  const wanted = index === 0 ? last.y - laid.at("in").y : place.bottom + 14 - highest;
  const dy = Math.max(wanted, place.top - highest);
  for (const node of branch.nodes) {
    const { x, y } = laid.at(node.id);
    place.centres.push({ x: x + dx, y: y + dy });
    place.right = Math.max(place.right, x + dx + node.width / 2);
  }
  for (const edge of laid.edges) {
    let points = edge.points.map((point) => ({ x: point.x + dx, y: point.y + dy }));
    if (edge.from === "in") points = [{ x: LAYER.width / 2, y: last.y }, ...points.slice(1)];
    place.edges.push({ kind: "aux", role: index, from: edge.from, points });
  }
  place.bottom = Math.max(place.bottom, lowest + dy);
}

// Lay out the cards of a row: one module, or in a frame the modules that a folded run repeats.
function rowLayout(row) {
  let y = row.folded ? FRAME.head : 0;
  const cards = [];
  for (let k = row.first; k < row.first + row.period; k += 1) {
    const inside = insideOf(k);
    cards.push({ k, inside, y, height: inside.height });
    y += inside.height + CARD.gap;
  }
  // Leave room between a frame and the wall below it.
  return { ...row, cards, height: y - CARD.gap + (row.folded ? FRAME.pad : 0), below: row.folded ? 12 : 0 };
}

function layoutAll() {
  const rows = rowsOf().map(rowLayout);
  const wide = Math.max(...endWords().map((words) => widthOf(words, "small")));
  const ends = { width: Math.min(240, Math.max(150, wide + 28)), height: 34 };
  const nodes = [
    { id: "input", ...ends },
    ...rows.map((row, i) => ({ id: `row${i}`, width: LAYER.width, height: row.height + row.below })),
    { id: "output", ...ends },
  ];
  const laid = dagreLayout(nodes, chainOf(nodes), { rankdir: "TB", ranksep: Math.max(CARD.gap, 12), nodesep: 20 });
  rows.forEach((row, i) => {
    row.y = laid.at(`row${i}`).y - (row.height + row.below) / 2;
  });
  const left = -(LAYER.width / 2 + CARD.pad);
  const needed = rows.flatMap((row) => row.cards.map((card) => Math.max(card.inside.right, left + headWidth(card.k))));
  const tabs = rows.filter((row) => row.folded).map((row) => FRAME.tab + tabWidth(row));
  const right = Math.max(...needed, ...tabs, ends.width / 2);
  const cards = rows.flatMap((row) => row.cards.map((card) => Object.assign(card, { y: card.y + row.y })));
  return {
    rows,
    cards,
    left,
    right,
    input: laid.at("input").y + (CARD.gap ? 22 : 0),
    output: laid.at("output").y,
    ends,
    brackets: bracketsOf(cards),
  };
}

// Return the texts of the boxes before the first drawn module and after the last one.
function endWords() {
  const k = view.module;
  if (k === null) return [`input  ${sizes(data.input)}`, `output  ${sizes(data.output)}`];
  const { input, output } = data.modules[k];
  const before = k > 0 ? `from module ${k - 1}` : "input";
  const behind = k < data.modules.length - 1 ? `to module ${k + 1}` : "output";
  return [`${before}  ${sizes(input)}`, `${behind}  ${sizes(output)}`];
}

function tabWidth(row) {
  const last = row.first + row.period * row.count - 1;
  return 30 + widthOf(`\u00d7${row.count}   modules ${row.first}\u2013${last} are alike   unfold`, "small");
}

// Return the width that the head of a card needs, at most 480 pixels.
function headWidth(k) {
  if (view.kind === "primary") return 0;
  return Math.min(
    480,
    widthOf(`${k}  ${clean(data.modules[k].name)}`, "name") + widthOf(figures(k), "small") + 2 * CARD.pad + 28,
  );
}

// Place the brackets of cascaded losses: each goes into the first lane where it overlaps no other bracket.
function bracketsOf(cards) {
  if (view.kind === "primary") return [];
  const byModule = new Map(cards.map((card) => [card.k, card]));
  const lanes = [];
  const found = [];
  for (const card of cards) {
    const cascade = data.modules[card.k].cascade;
    if (!cascade || !cascade.reaches.length) continue;
    const members = cascade.reaches.map(shownFor).filter((k) => byModule.has(k));
    const tops = members.map((k) => byModule.get(k).y).filter((y) => y <= card.y);
    const from = Math.min(card.y, ...tops) + 10;
    const to = card.y + card.height - 10;
    let lane = lanes.findIndex((end) => end < from);
    if (lane < 0) lane = lanes.push(0) - 1;
    lanes[lane] = to;
    found.push({ k: card.k, from, to, lane });
  }
  return found;
}
