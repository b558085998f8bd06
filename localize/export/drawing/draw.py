"""Turn a plan into a drawing: texts of boxes, and arrows between them. Decides nothing about colours and shapes.

Boxes are layers and auxiliary networks, so a plan suffices. Operations are drawn for a single module only.
"""

from __future__ import annotations

from collections.abc import Sequence

from localize.export.drawing import node_facts
from localize.export.drawing.auxiliaries import loss_of
from localize.export.drawing.box_text import short, shown, span, wrapped
from localize.export.drawing.drawing import Drawing, Edge, Group, Node
from localize.export.drawing.fold import Repeat, layer_runs, runs
from localize.export.drawing.operations import OpenedModule, open_module
from localize.export.request import View
from localize.plan.plan import LocalModulePlan, Plan
from localize.text import format_bytes, format_count
from passes.ir import Network

SEVERAL = "\N{MULTIPLICATION SIGN}"


def draw(plan: Plan, view: View, network: Network | None = None) -> Drawing:
    """Draw a plan.

    Args:
        plan: The plan.
        view: The part of it that is shown.
        network: The captured network; with it, a view of a single module shows the operations of each layer. None to
            draw layers as boxes.
    """
    artist = _Artist(plan, view, network)
    if view.module is None:
        artist.all_modules()
    else:
        artist.one_module(plan.modules[view.module])
    return artist.finished()


class _Artist:
    """Gathers nodes, arrows and frames from the input to the output."""

    def __init__(self, plan: Plan, view: View, network: Network | None) -> None:
        self.plan, self.view, self.network = plan, view, network
        self.nodes: list[Node] = []
        self.edges: list[Edge] = []
        self.members: list[str | Group] = []

    def all_modules(self) -> None:
        """Draw every module; of repeated ones that are folded, those that stand for the others."""
        leaves = self.input(str(self.plan.input))
        for run in runs(self.plan, fold=self.view.fold):
            groups = []
            for index in run.shown:
                group, leaves = self.module(self.plan.modules[index], leaves, run.like(index))
                groups.append(group)
            if self.view.kind == "primary":
                members = [member for group in groups for member in group.members]
            else:
                members = list(groups)
            if run.count > 1 and (run.period > 1 or self.view.kind == "primary"):
                whole = range(run.first, run.last + 1)
                title = f"{SEVERAL}{run.count}: local modules {span(whole)}"
                members = [Group(f"repeat_{run.first}", "repeat", title, tuple(members))]
            self.members += members
        self.output(leaves)

    def one_module(self, module: LocalModulePlan) -> None:
        """Draw one module, with a node for the module before it and one for the module after it."""
        before = self.plan.modules[module.index - 1] if module.index else None
        first = self.plan.layers[module.layers[0]] if module.layers else None
        reads = str(first.input) if first else str(self.plan.layers[-1].output)
        leaves = self.input(reads, f"from module {before.index}" if before else "input")
        group, leaves = self.module(module, leaves, [module.index])
        self.members.append(group)
        if module.index == len(self.plan.modules) - 1:
            self.output(leaves)
            return
        after = self.plan.modules[module.index + 1]
        self.add(Node("after", "output", (f"to module {after.index}", short(after.name)), {"name": after.name}))
        self.edges.append(Edge(leaves, "after", "cut", self.crossing(module)))
        self.members.append("after")

    def input(self, size: str, title: str = "input") -> str:
        """Add the node of the input, and return its name."""
        self.add(Node("input", "input", (title, size), {"size": size}))
        self.members.append("input")
        return "input"

    def output(self, leaves: str) -> None:
        """Add the node of the primary network's output."""
        size = str(self.plan.output)
        self.add(Node("output", "output", ("output", size), {"size": size}))
        self.edges.append(Edge(leaves, "output", "flow"))
        self.members.append("output")

    def add(self, node: Node) -> None:
        """Add a node."""
        self.nodes.append(node)

    def module(self, module: LocalModulePlan, enters: str, like: Sequence[int]) -> tuple[Group, str]:
        """Draw a local module.

        Args:
            module: The module.
            enters: Name of the node that its input comes from.
            like: Indices of the alike modules that it stands for, its own included.

        Returns:
            The frame of the module, and the name of the node that its output leaves.
        """
        k, view = module.index, self.view.kind
        whole = view in ("local", "auxiliary")
        members, leaves, opened_to = self.boxed(module, like) if whole else self.spine(module)
        first = opened_to.entries if opened_to else (next(iter(_names(members))),)
        kind, label = ("cut", self.crossing_into(module)) if enters != "input" and k else ("flow", "")
        self.edges += [Edge(enters, entry, kind, label) for entry in first]  # type: ignore[arg-type]
        rows: tuple[tuple[str, ...], ...] = ()
        if view != "primary" and self.plan.auxiliary_params:
            nodes, edges, rows = loss_of(self.plan, module, leaves, brief=view == "local", like=like)
            self.nodes += nodes
            self.edges += edges
            members = (*members, *(node.name for node in nodes))
        title = f"local module{'s' if len(like) > 1 else ''} {span(like)}" + (
            f"  {SEVERAL}{len(like)}" if len(like) > 1 else ""
        )
        if not whole:
            title += f"  {short(module.name)}"
        return Group(f"module_{k}", "module", title, members, rows), leaves

    def boxed(self, module: LocalModulePlan, like: Sequence[int]) -> tuple[tuple[str | Group, ...], str, None]:
        """Draw a local module as one box."""
        known = node_facts.of_module(self.plan, module)
        layers = len(module.layers)
        last = module.index == len(self.plan.modules) - 1
        parts = [f"{layers} layer{'s' if layers != 1 else ''}"] if layers else []
        lines = [
            *_range(self.plan, module, like),
            " + ".join([*parts, *(["classifier"] if last else [])]),
            f"\N{RIGHTWARDS ARROW} {known['output']}",
            f"{format_count(int(known['parameters']))} params, {format_count(int(known['macs']))} MACs",
            f"{format_bytes(int(known['activation_bytes']))} activations",
        ]
        name = f"box_{module.index}"
        self.add(Node(name, "module", tuple(lines), known, module.index))
        return (name,), name, None

    def spine(self, module: LocalModulePlan) -> tuple[tuple[str | Group, ...], str, OpenedModule | None]:
        """Draw the layers of a local module one below the other, with the classifier after those of the last module."""
        if self.view.module is not None and self.network is not None:
            inside = open_module(self.plan, module, self.network)
            self.nodes += inside.nodes
            self.edges += inside.edges
            return inside.members, inside.leaves, inside
        members: list[str | Group] = []
        leaves = ""
        layers = [self.plan.layers[i] for i in module.layers]
        for run in layer_runs(layers, fold=self.view.fold):
            names = []
            for position in run.shown:
                leaves = self.layer([layers[i].index for i in run.like(position)], module.index, leaves)
                names.append(leaves)
            members += _repeated(run, names, layers[run.first].index)
        if module.index == len(self.plan.modules) - 1:
            leaves = self.classifier(module.index, leaves)
            members.append(leaves)
        return tuple(members), leaves, None

    def layer(self, like: Sequence[int], module: int, enters: str) -> str:
        """Draw one local layer, for itself and for those folded into it, and return its name."""
        layer = self.plan.layers[like[0]]
        names = (
            [short(layer.name)]
            if len(like) == 1
            else [short(layer.name), f"to {short(self.plan.layers[like[-1]].name)}"]
        )
        several = f"  {SEVERAL}{len(like)}" if len(like) > 1 else ""
        lines = (
            *names,
            f"layer {span(like)}{several}",
            f"\N{RIGHTWARDS ARROW} {_crossing(layer.output, layer.width)}",
            f"{format_count(layer.params)} params, {format_count(layer.macs)} MACs",
        )
        name = f"layer_{layer.index}"
        self.add(Node(name, "layer", lines, node_facts.of_layer(layer), module))
        if enters:
            self.edges.append(Edge(enters, name, "flow"))
        return name

    def classifier(self, module: int, enters: str) -> str:
        """Draw the classifier, and return its name."""
        known = node_facts.of_classifier(self.plan)
        figures = f"{format_count(self.plan.classifier_params)} params, {format_count(self.plan.classifier_macs)} MACs"
        lines = ("classifier", f"\N{RIGHTWARDS ARROW} {self.plan.output}", figures)
        self.add(Node("classifier", "classifier", lines, known, module))
        if enters:
            self.edges.append(Edge(enters, "classifier", "flow"))
        return "classifier"

    def crossing_into(self, module: LocalModulePlan) -> str:
        """Write the shape of what crosses the cut before a module."""
        return self.crossing(self.plan.modules[module.index - 1])

    def crossing(self, module: LocalModulePlan) -> str:
        """Write the shape of what crosses the cut after a module."""
        layer = self.plan.layers[module.layers[-1]]
        return f"cut: {_crossing(layer.output, layer.width)}"

    def finished(self) -> Drawing:
        """Return the whole drawing, with a title and the facts of the plan."""
        plan = self.plan
        options = ", ".join(f"{name}={value}" for name, value in plan.options.items() if value is not None)
        title = (
            shown(f"{plan.model} by {plan.method}"),
            *wrapped(options, 100),
            f"L={len(plan.layers)} local layers, K={len(plan.modules)} local modules; {format_count(plan.params)} "
            f"parameters, {format_count(plan.macs)} MACs; auxiliary networks {format_count(plan.auxiliary_params)} "
            f"parameters, {format_count(plan.auxiliary_macs)} MACs",
        )
        return Drawing(title, tuple(self.nodes), tuple(self.edges), tuple(self.members), node_facts.of_plan(plan))


def _names(members: Sequence[str | Group]) -> list[str]:
    return [name for member in members for name in (member.nodes() if isinstance(member, Group) else (member,))]


def _range(plan: Plan, module: LocalModulePlan, like: Sequence[int]) -> list[str]:
    """Write the name of a module; for several modules drawn as one, the names of the first and the last."""
    if len(like) == 1:
        return [short(module.name)]
    return [short(module.name), f"to {short(plan.modules[like[-1]].name)}"]


def _crossing(output: object, width: int) -> str:
    return f"{output} and {width - 1} more" if width > 1 else str(output)


def _repeated(run: Repeat, names: Sequence[str], first: int) -> list[str | Group]:
    if run.count == 1 or run.period == 1:
        return [*names]
    return [Group(f"layers_{first}", "repeat", f"{SEVERAL}{run.count}", tuple(names))]
