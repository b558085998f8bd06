// Draw the graph as SVG. Each card has a near form with all its boxes, and a far form for scales at which these are too
// small to read: without a GPU most of the time goes into drawing text, and the far form is a few shapes.

const state = { rows: [], layout: null, nodes: new Map(), cards: [], selected: null, current: null };
const world = byId("world");

function text(x, y, className, content, attributes) {
  return s("text", { x, y, class: className, ...attributes }, content);
}

function draw() {
  state.rows = rowsOf();
  state.layout = layoutAll();
  state.nodes = new Map();
  state.cards = [];
  const { rows, brackets } = state.layout;
  world.replaceChildren();
  world.setAttribute("class", "");
  const frames = rows.filter((row) => row.folded).map(drawFrame);
  world.append(s("g", { class: "frames" }, ...frames), s("g", { class: "brackets" }, ...brackets.map(drawBracket)));
  drawEnds();
  state.layout.cards.forEach(drawCard);
  state.order = [...state.nodes.keys()];
}

function label(node) {
  const words = {
    layer: "layer",
    block: "auxiliary block",
    head: "auxiliary head",
    term: "loss term network",
    loss: "loss",
  };
  return `${words[node.kind] ? `${words[node.kind]}: ` : ""}${node.title}${node.sub ? `, ${node.sub}` : ""}, module ${node.module}`;
}

// Add a box that can be reached by pointer and keys.
function register(node, element) {
  element.setAttribute("id", node.id);
  element.setAttribute("role", "button");
  element.setAttribute("tabindex", "-1");
  element.setAttribute("aria-label", label(node));
  state.nodes.set(node.id, { ...node, element });
  return element;
}

function drawNode(node) {
  const { width, height } = node;
  const rounded = node.kind === "loss" ? height / 2 : 7;
  const room = width - 20;
  const box = s("rect", { class: "box", x: -width / 2, y: -height / 2, width, height, rx: rounded });
  const title = text(0, node.sub ? -3 : 4, "name", clip(node.title, "name", room));
  const sub = node.sub ? text(0, 13, "small", clip(node.sub, "small", room)) : null;
  const element = s(
    "g",
    { class: `node ${node.kind} dims`, transform: `translate(${node.x} ${node.y})` },
    box,
    title,
    sub,
  );
  return register(node, element);
}

function path(points) {
  if (points.length < 3) return `M${points.map((point) => `${point.x} ${point.y}`).join("L")}`;
  let found = `M${points[0].x} ${points[0].y}`;
  for (let i = 1; i < points.length - 1; i += 1) {
    const end =
      i === points.length - 2
        ? points[i + 1]
        : { x: (points[i].x + points[i + 1].x) / 2, y: (points[i].y + points[i + 1].y) / 2 };
    found += `Q${points[i].x} ${points[i].y} ${end.x} ${end.y}`;
  }
  return found;
}

function drawEdge(edge, k) {
  const role = edge.kind === "aux" ? (edge.role ? "cascade" : "own") : "spine";
  const marker = edge.kind === "aux" ? "url(#tip-aux)" : "url(#tip-spine)";
  return s("path", {
    class: `edge ${edge.kind} dims`,
    "data-part": `m${k}.${role}`,
    d: path(edge.points),
    "marker-end": marker,
  });
}

function figures(k) {
  const module = data.modules[k];
  const own = `${si(module.params)} params  ${si(module.macs)} MACs`;
  return module.auxParams && view.kind !== "primary"
    ? `${own}    auxiliary ${si(module.auxParams)}  ${si(module.auxMacs)}`
    : own;
}

function drawCard(card) {
  const { left, right } = state.layout;
  const { k, inside } = card;
  const module = data.modules[k];
  const width = right - left;
  const name = `${k}  ${clean(module.name)}`;
  const shell = s("rect", { class: "card dims", x: left, y: 0, width, height: card.height, rx: 12 });
  const head = register(
    { id: `m${k}`, kind: "module", module: k, title: `module ${k}`, sub: clean(module.name) },
    s("g", { class: "node module dims" }, s("rect", { class: "box", x: left, y: 0, width, height: CARD.head, rx: 12 })),
  );
  const primary = view.kind === "primary";
  if (!primary) {
    const numbers = figures(k);
    const room = width - 2 * CARD.pad - widthOf(numbers, "small") - 24;
    const shows = room > 60;
    head.append(text(left + CARD.pad, 23, "name start", clip(name, "name", shows ? room : width - 2 * CARD.pad)));
    if (shows) head.append(text(right - CARD.pad, 23, "small end", numbers));
  }
  const near = s("g", { class: "near" }, ...(primary ? [] : [shell, head]));
  near.append(...inside.edges.map((edge) => drawEdge(edge, k)), ...inside.nodes.map(drawNode));
  const row = state.rows.find((each) => each.folded && k >= each.first && k < each.first + each.period);
  const far = drawFar(card, row ? `${name}  \u00d7${row.count}` : name);
  const group = s(
    "g",
    { class: "module-card", transform: `translate(0 ${card.y})`, "data-module": k },
    near,
    far,
    ...drawWall(card),
  );
  if (primary) state.nodes.delete(`m${k}`);
  world.append(group);
  state.cards.push({
    k,
    position: state.cards.length,
    element: group,
    far,
    top: card.y,
    bottom: card.y + card.height + CARD.gap,
  });
}

function drawFar(card, name) {
  const { left, right } = state.layout;
  const middle = card.height / 2;
  const boxes = card.inside.nodes.filter(
    (node) => node.kind !== "layer" && node.kind !== "classifier" && node.kind !== "box",
  );
  const spots = boxes.map((node) =>
    s("rect", {
      class: `spot ${node.kind}`,
      x: node.x - node.width / 2,
      y: node.y - 14,
      width: node.width,
      height: 28,
      rx: 6,
    }),
  );
  return s(
    "g",
    { class: "far" },
    s("rect", { class: "card", x: left, y: 0, width: right - left, height: card.height, rx: 12 }),
    s("rect", { class: "spot spine", x: -LAYER.width / 2, y: 6, width: LAYER.width, height: card.height - 12, rx: 8 }),
    ...spots,
    text(right, middle, "far-name", `\u00a0\u00a0${clip(name, "name", FAR_NAME)}`),
  );
}

// Draw what leads to the next card: an arrow, and between local modules a wall with a gap for it.
function drawWall(card) {
  const { cards, left, right } = state.layout;
  const next = cards[cards.indexOf(card) + 1];
  const gap = next
    ? next.y - card.y - card.height
    : state.layout.output - state.layout.ends.height / 2 - card.y - card.height;
  const start = card.height;
  const module = data.modules[card.k];
  // In the view without cards the arrow leads from box to box.
  const bare = view.kind === "primary" ? CARD.pad : 0;
  const arrow = s("path", {
    class: "edge spine dims",
    d: `M0 ${start - bare}V${start + gap + (next ? bare : 0)}`,
    "marker-end": "url(#tip-spine)",
  });
  if (!module.crossing.length || bare) return [arrow];
  const row = state.layout.rows.find((each) => each.cards.includes(card));
  const y = start + 16 + (row.folded && row.cards[row.cards.length - 1] === card ? FRAME.pad + 4 : 0);
  const bar = (from, to) => s("rect", { class: "bar", x: from, y, width: to - from, height: 8, rx: 2 });
  const more = module.crossing.length - 1;
  const words = `${sizes(module.crossing[0])}${more ? `  + ${plural(more, "more tensor")}` : ""}`;
  const labelled = s(
    "text",
    { class: "small start crossing", x: 16, y: y + 26 },
    words,
    s("tspan", { class: "detached", dx: 8 }, "detached"),
  );
  const wall = s("g", { class: "wall dims", "data-wall": card.k }, bar(left, -13), bar(13, right), labelled);
  return [arrow, wall];
}

function drawFrame(row) {
  const { left, right } = state.layout;
  const last = row.first + row.period * row.count - 1;
  const x = left - FRAME.pad;
  const width = right - left + 2 * FRAME.pad;
  const behind = s("rect", { class: "frame behind", x: x + 6, y: row.y + 6, width, height: row.height, rx: 16 });
  const front = s("rect", { class: "frame", x, y: row.y, width, height: row.height, rx: 16 });
  const box = s("rect", { class: "box", x: FRAME.tab, y: row.y + 5, width: tabWidth(row), height: 20, rx: 10 });
  const node = {
    id: `run${row.first}`,
    kind: "run",
    module: row.first,
    title: `${row.count} times`,
    sub: `modules ${row.first} to ${last} are alike; press to unfold`,
  };
  const tab = s(
    "text",
    { class: "small start", x: FRAME.tab + 12, y: row.y + 19 },
    s("tspan", { class: "times" }, `\u00d7${row.count}`),
  );
  tab.append(
    s("tspan", { dx: 10 }, `modules ${row.first}\u2013${last} are alike`),
    s("tspan", { dx: 10, class: "unfold" }, "unfold"),
  );
  return s("g", { class: "row-frame" }, behind, front, register(node, s("g", { class: "node run" }, box, tab)));
}

function drawBracket(bracket) {
  const x = state.layout.left - FRAME.pad - 12 - 9 * bracket.lane;
  const d = `M${x + 6} ${bracket.from}H${x}V${bracket.to}H${x + 6}`;
  const title = `The cascaded loss of module ${bracket.k} reaches from module ${data.modules[bracket.k].cascade.reaches[0]} on`;
  return s("path", { class: "bracket dims", "data-part": `m${bracket.k}.cascade`, d, "aria-label": title });
}

function drawEnds() {
  const { input, output, ends, cards } = state.layout;
  const [before, behind] = endWords();
  const box = { x: -ends.width / 2, y: -ends.height / 2, width: ends.width, height: ends.height, rx: ends.height / 2 };
  const end = (y, words) =>
    s(
      "g",
      { class: "end dims", transform: `translate(0 ${y})` },
      s("rect", { class: "box", ...box }),
      text(0, 4, "small", clip(words, "small", ends.width - 20)),
    );
  const stop = cards[0].y + (view.kind === "primary" ? CARD.pad : 0);
  const d = `M0 ${input + ends.height / 2}V${stop}`;
  const arrow = s("path", { class: "edge spine dims", d, "marker-end": "url(#tip-spine)" });
  world.append(end(input, before), arrow, end(output, behind));
}

function bounds() {
  const { left, right, input, output, ends, brackets } = state.layout;
  const lanes = brackets.length ? 22 + 9 * Math.max(...brackets.map((bracket) => bracket.lane)) : 0;
  const folded = state.rows.some((row) => row.folded) ? FRAME.pad + 6 : 0;
  return {
    x: left - Math.max(folded, lanes ? FRAME.pad + lanes : 0),
    y: input - ends.height / 2,
    right: right + folded,
    bottom: output + ends.height / 2,
  };
}
