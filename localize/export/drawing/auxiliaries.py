"""Draw the auxiliary networks of a local module: hidden layers, head, further terms, and the local loss."""

from __future__ import annotations

from collections.abc import Sequence

from localize.export.drawing import node_facts
from localize.export.drawing.box_text import short, span, steps, wrapped
from localize.export.drawing.drawing import Edge, Fact, Node
from localize.plan.plan import Auxiliary, AuxiliaryBlock, LocalModulePlan, Plan
from localize.plan.show import describe
from localize.text import format_count

Row = tuple[str, ...]
SIGN = "\N{MULTIPLICATION SIGN}"


def loss_of(
    plan: Plan, module: LocalModulePlan, leaves: str, *, brief: bool, like: Sequence[int]
) -> tuple[list[Node], list[Edge], tuple[Row, ...]]:
    """Draw the local loss of a module, and the auxiliary networks that it is computed from.

    Args:
        plan: The plan.
        module: The module.
        leaves: Name of the node whose value the auxiliary networks read.
        brief: Whether auxiliary networks become one line in the box of the loss instead of boxes of their own.
        like: Indices of the alike modules that the drawn one stands for, its own included.

    Returns:
        Nodes, arrows, and rows of nodes that stand side by side; the first row begins with ``leaves``.
    """
    drawing = _LossDrawing(plan, module, leaves, like)
    own, cascade = module.auxiliary, module.cascade
    whole = Node(drawing.loss, "loss", tuple(_loss_lines(module, like, brief)), _loss_facts(module), module.index)
    if brief or own is None:
        drawing.nodes.append(whole)
        drawing.edges.append(Edge(leaves, drawing.loss, "loss"))
        drawing.rows.append((drawing.loss,))
    if not brief and own is not None:
        drawing.network("own", own, whole)
    if not brief and cascade is not None and cascade.auxiliary is not None:
        drawing.network("cascaded", cascade.auxiliary, None)
    return drawing.nodes, drawing.edges, ((leaves, *drawing.rows[0]), *drawing.rows[1:])


def _loss_lines(module: LocalModulePlan, like: Sequence[int], brief: bool) -> list[str]:
    cascade = module.cascade
    what = "output loss" if module.auxiliary is None else "local loss"
    lines = [f"{what} {span(like)}"]
    if brief and module.auxiliary is not None:
        lines += wrapped(describe(module.auxiliary))
        if module.auxiliary.groups:
            lines.append(f"each of {len(module.auxiliary.groups)} groups")
        if cascade is not None and cascade.auxiliary is not None:
            lines += wrapped(f"cascaded: {describe(cascade.auxiliary)}")
    if cascade is not None and cascade.reaches:
        before = f"{len(cascade.reaches)} modules before each"
        one = len(like) == 1
        lines.append(f"reaches modules {span([*cascade.reaches, module.index])}" if one else f"reaches {before}")
    return lines


def _loss_facts(module: LocalModulePlan) -> dict[str, Fact]:
    reached = [*(module.cascade.reaches if module.cascade else ()), module.index]
    return {
        "module": module.index,
        "reaches_modules": ", ".join(map(str, reached)),
        "trains_parameter_tensors": len(module.parameters),
    }


class _LossDrawing:
    """Gathers the nodes and arrows of a module's auxiliary networks: one row for each part of the local loss."""

    def __init__(self, plan: Plan, module: LocalModulePlan, leaves: str, like: Sequence[int]) -> None:
        self.plan, self.module, self.leaves, self.like = plan, module, leaves, like
        self.loss = f"loss_{module.index}"
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.rows: list[Row] = []

    def network(self, role: str, auxiliary: Auxiliary, loss: Node | None) -> None:
        """Draw one auxiliary network from the module's output to the loss, and each of its further terms in a row.

        Args:
            role: ``"own"`` for the network of the local loss, ``"cascaded"`` for that of the cascaded loss.
            auxiliary: The network.
            loss: The node at the end of its row; None to end in a node for one part of the loss.
        """
        prefix = f"{role}_{self.module.index}"
        alike = self._alike(role)
        row = [self._block(f"{prefix}_block_{i}", role, i, auxiliary) for i in range(len(auxiliary.blocks))]
        row.append(self._head(f"{prefix}_head", role, auxiliary))
        self._connect(row, loss, self._factor(role, [network.weight for network in alike]))
        for i, term in enumerate(auxiliary.terms):
            name = f"{prefix}_term_{i}"
            lines = (short(term.name), *steps(term.network), _figures(term.params, term.macs))
            known: dict[str, Fact] = {
                "name": term.name,
                "weight": term.weight,
                "parameters": term.params,
                "macs": term.macs,
                "network": term.network,
            }
            self.nodes.append(Node(name, "term", lines, known, self.module.index))
            self._connect([name], None, self._factor(role, [network.terms[i].weight for network in alike]))

    def _connect(self, row: Sequence[str], loss: Node | None, factor: str) -> None:
        """Connect a row of nodes, and end it in the loss, or in a new node for one part of the loss."""
        k = self.module.index
        if loss is None:
            name = f"{self.loss}_part_{len(self.rows)}"
            lines = (f"part of loss {span(self.like)}", *([factor] if factor else []))
            loss = Node(name, "loss", lines, {"module": k, "factor": factor or f"{SIGN} 1"}, k)
            self.edges.append(Edge(name, self.loss, "sum"))
            factor = ""
        self.nodes.append(loss)
        ends = [self.leaves, *row]
        self.edges += [Edge(a, b, "auxiliary") for a, b in zip(ends, row, strict=False)]
        self.edges.append(Edge(row[-1], loss.name, "loss", factor))
        self.rows.append((*row, loss.name))

    def _factor(self, role: str, weights: Sequence[float]) -> str:
        """Write the factors of one part of the loss, each after a multiplication sign; empty where they are 1."""
        cascade = self.module.cascade
        outer = (cascade.independent if role == "own" else cascade.cascaded) if cascade else 1.0
        low, high = min(weights), max(weights)
        inner = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
        factors = [*([f"{outer:.3g}"] if outer != 1 else []), *([inner] if inner != "1" else [])]
        return " ".join(f"{SIGN} {factor}" for factor in factors)

    def _alike(self, role: str) -> list[Auxiliary]:
        """Return the network of this role of each module that the drawn one stands for."""
        networks = []
        for k in self.like:
            module = self.plan.modules[k]
            cascaded = module.cascade.auxiliary if module.cascade else None
            networks.append(module.auxiliary if role == "own" else cascaded)
        return [network for network in networks if network is not None]

    def _block(self, name: str, role: str, i: int, auxiliary: Auxiliary) -> str:
        block = auxiliary.blocks[i]
        sources = [network.blocks[i].source for network in self._alike(role)]
        lines = [*_title(self.plan, block, [s for s in sources if s is not None])]
        halving = f", /{block.stride}" if block.stride > 1 else ""
        lines.append(f"{block.in_channels} \N{RIGHTWARDS ARROW} {block.out_channels} channels{halving}")
        if block.projection:
            lines.append("projected shortcut")
        if block.adapter:
            lines += wrapped(f"behind {block.adapter}")
        if i == 0 and auxiliary.merged:
            lines.append(f"merges {len(auxiliary.merged)} more tensors")
        if i == 0 and auxiliary.groups:
            lines.append(f"in each of {len(auxiliary.groups)} groups")
        self.nodes.append(Node(name, "block", tuple(lines), node_facts.of_block(self.plan, block), self.module.index))
        return name

    def _head(self, name: str, role: str, auxiliary: Auxiliary) -> str:
        title = "head" if role == "own" else "cascaded head"
        lines = (title, *steps(auxiliary.head), f"d={auxiliary.depth}: {_figures(auxiliary.params, auxiliary.macs)}")
        self.nodes.append(Node(name, "head", lines, node_facts.of_auxiliary(auxiliary), self.module.index))
        return name


def _title(plan: Plan, block: AuxiliaryBlock, sources: Sequence[int]) -> list[str]:
    """Write what a hidden layer is: a plain block, or a copy of a layer; of several layers for modules drawn as one."""
    if not sources:
        return [block.kind]
    words = {"leap": "follows layer", "twin": "twin of layer", "free": "copy of layer"}.get(block.kind, "copy of layer")
    distinct = sorted(set(sources))
    if len(distinct) > 1:
        return [f"{words}", f"{distinct[0]} to {distinct[-1]}, by module"]
    index = distinct[0]
    return [f"{words} {index}", short(plan.layers[index].name if index < len(plan.layers) else "classifier")]


def _figures(params: int, macs: int) -> str:
    return f"{format_count(params)} params, {format_count(macs)} MACs"
