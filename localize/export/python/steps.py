"""Write the steps of a localized model as Python: a method for each local module, and methods that run them in turn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import fx

from localize.compiler.wiring import wire
from localize.export.python.modules import Modules
from localize.export.python.nodes import Lines
from localize.export.python.opened_code import CallSite
from localize.export.python.output import output_text
from localize.export.python.surroundings import Surroundings
from localize.export.python.templates import abbreviated
from localize.export.python.tree import access
from localize.export.python.values import RESERVED, identifier, quoted, words
from localize.methods.networks.local_loss import Batch, Supervising
from localize.plan.show import describe
from localize.runtime.cascade import before, entering, last_reads, window_of
from localize.runtime.local_graph import HEAD_WEIGHT, LocalGraphModule
from localize.runtime.local_module import LocalModule
from passes.codegen.generate import opened
from passes.codegen.recompute import buffers_kept, buffers_of

LEARNABLE = '''\
def learnable(loss):
    """A loss whose backward finds nothing to train, instead of failing, where all of it is frozen."""
    return loss if loss.requires_grad or not torch.is_grad_enabled() else loss.detach().requires_grad_()
'''
BUFFERS = '''\
def buffers_in(*modules):
    """The buffers of modules, as pairs of the module that holds each, and its name."""
    return [(owner, name) for module in modules for owner in module.modules() for name in owner._buffers]
'''
_TAKEN = RESERVED | {"y", "loss", "logits", "beyond", "upstream", "batch", "result", "own"}


class Steps:
    """Writes the methods of the generated class.

    Args:
        local: The localized model.
        modules: Writer of modules, which has written the primary network already.
        constants: Expressions for the tensors that the model's forward makes, by their name in the graph.
    """

    def __init__(self, local: LocalGraphModule, modules: Modules, constants: dict[str, str]) -> None:
        self.local, self.modules, self.constants = local, modules, constants
        self.network = local.compiled.network
        self.all = local.local_modules
        self.last_read = last_reads(self.all)
        self.names: dict[str, str] = {}
        self.specs = dict(self.network.shapes.specs)
        if local.output_criterion is None:
            self.names[self.all[-1].outputs[0]] = "logits"
        modules.support.add("learnable", LEARNABLE)

    def write(self) -> list[str]:
        """Write the lines of all methods."""
        wiring = wire(self.network, [module.plan.layers for module in self.all])
        lines: list[str] = []
        for module, wires in zip(self.all, wiring, strict=True):
            lines += [*self._layers(module, wires.members), ""]
        for module in self.all:
            if len(window_of(self.all, module.plan.index)) > 1:
                lines += [*self._cascade(module), ""]
        return [*lines, *self._steps(), "", *self._forward()]

    # One local module -------------------------------------------------------------------------------------------------

    def _layers(self, module: LocalModule, members: Sequence[str]) -> list[str]:
        shared = self.network.partition.shared
        captured = self.network.captured
        graph = opened(captured, members, shared, module.inputs, module.outputs)
        surroundings = Surroundings(
            self.modules.support, self.modules.foreign, self.local, "self.training", self._site, self.constants
        )
        first = next((name for name in module.inputs if self._is_tensor(name)), "")
        names = ["x" if name == first else self._variable(name) for name in module.inputs]
        names = [
            f"{name}_" if name == "x" and own != first else name for name, own in zip(names, module.inputs, strict=True)
        ]
        written = Lines(graph, surroundings, dict(zip(module.inputs, names, strict=True)))
        head = f"def {self._method(module)}({', '.join(['self', *names])}):"
        return [*self._comment(module), head, *abbreviated(written.body)]

    def _site(self, node: fx.Node) -> CallSite:
        return self.modules.calls.site(node)

    def _comment(self, module: LocalModule) -> list[str]:
        plan = module.plan
        shapes = [
            ", ".join(self._shape(n) for n in names if self._is_tensor(n)) for names in (module.inputs, module.outputs)
        ]
        layers = (
            f"local layers {plan.layers[0]} to {plan.layers[-1]}"
            if len(plan.layers) > 1
            else "local layer " + "".join(map(str, plan.layers))
        )
        layers = layers if plan.layers else "the classifier"
        lines = [f"# Local module {plan.index}, {words(plan.name)} ({layers}): {shapes[0]} -> {shapes[1]}"]
        own = describe(plan.auxiliary) if plan.auxiliary else "none; its loss is that of the output"
        lines.append(f"# Auxiliary network: {words(own)}")
        if plan.cascade is not None and plan.cascade.reaches:
            lines.append(f"# A second loss reaches back to module {plan.cascade.reaches[0]}")
        if plan.note:
            lines.append(f"# {words(plan.note)}")
        return lines

    def _shape(self, name: str) -> str:
        return str(self.specs[name])

    def _is_tensor(self, name: str) -> bool:
        return self.specs[name] is not None

    def _method(self, module: LocalModule) -> str:
        return f"run_{module.plan.index}_{identifier(module.plan.name, 'module').lower()}"

    def _variable(self, name: str) -> str:
        """Return the variable of a value, the same in all methods."""
        if name not in self.names:
            base = "x" if name == self.network.captured.input else identifier(re.sub(r"@", "_before_", name)).lower()
            variable, count = base, 1
            while variable in self.names.values() or variable in _TAKEN or (variable == "x" and base != "x"):
                count += 1
                variable = f"{base}_{count}"
            self.names[name] = variable
        return self.names[name]

    def _cascade(self, module: LocalModule) -> list[str]:
        window = window_of(self.all, module.plan.index)
        given = [self._variable(name) for name in entering(window, ())]
        buffers = self._statistics(window)
        lines = []
        for member in window:
            lines.append(self._call(member, [self._variable(name) for name in member.inputs]))
        if buffers:
            self.modules.support.need(buffers_kept)
            self.modules.support.add("buffers_in", BUFFERS)
            lines = [f"with buffers_kept(buffers_in({', '.join(buffers)})):", *(f"    {line}" for line in lines)]
        reads = ", ".join(self._variable(name) for name in window[-1].outputs[: window[-1].reads])
        doc = f'"""Modules {window[0].plan.index} to {window[-1].plan.index} once more, in one graph."""'
        head = f"def cascade_{module.plan.index}({', '.join(['self', *given])}):"
        return [head, *(f"    {line}" for line in (doc, *lines, f"return {reads}"))]

    def _statistics(self, window: Sequence[LocalModule]) -> list[str]:
        """Write expressions for the modules whose buffers may change while a window of modules runs."""
        places = {id(module): path for path, module in reversed([*self.local.named_modules(remove_duplicate=False)])}
        owners: dict[int, str] = {}
        for owner, name in (buffer for member in window for buffer in buffers_of(member.stage)):
            # Tensors that the model's forward makes are constants of the generated class.
            if id(owner) in places and name not in owner._non_persistent_buffers_set:
                owners.setdefault(id(owner), access("self", places[id(owner)], self.local))
        return list(owners.values())

    def _call(self, module: LocalModule, arguments: Sequence[str]) -> str:
        results = ", ".join(self._variable(name) for name in module.outputs)
        return f"{results} = self.{self._method(module)}({', '.join(arguments)})"

    # A step -----------------------------------------------------------------------------------------------------------

    def _steps(self) -> list[str]:
        lines = [
            "def steps(self, x, y):",
            '    """One training step: yields name, loss and logits of each local module, input to output.',
            "",
            "    Call backward() on each loss before taking the next: its graph is freed before the next module runs.",
            '    """',
        ]
        if any(isinstance(n, Supervising) for m in self.all for n in (m.auxiliary, m.cascaded) if n is not None):
            self.modules.support.need(Batch)
        held: dict[str, None] = {self.all[0].inputs[0]: None}
        for module in self.all:
            lines += [f"    {line}" for line in self._step(module, held)]
        return lines

    def _step(self, module: LocalModule, held: dict[str, None]) -> list[str]:
        plan = module.plan
        lines = [f"# {plan.index} {words(plan.name)}"]
        window = window_of(self.all, plan.index)
        if len(window) > 1:
            given = [self._entering(*key) for key in entering(window, held).values()]
            lines.append(f"upstream = self.cascade_{plan.index}({', '.join(given)})")
        lines += self._kept(module, held)
        changed = {*module.overwrites, self.network.captured.input}
        # Values from earlier modules are detached already. One that the module changes in place is detached again, so
        # that the change does not reach the history of the tensor that others hold.
        given = [self._detached(name) if name in changed else self._variable(name) for name in module.inputs]
        lines.append(self._call(module, given))
        gone = [name for name in held if self.last_read[name] <= plan.index]
        for name in gone:
            del held[name]
        lines += self._let_go([self._variable(name) for name in gone])
        own = [self._variable(name) for name in module.outputs[: module.reads]]
        lines += self._loss(module, own, cascaded=False)
        if plan.cascade is not None:
            reads = own if len(window) < 2 else ["upstream"]
            if reads == ["upstream"] and len(own) > 1:
                reads = [f"upstream[{i}]" for i in range(len(own))]
            lines += self._loss(module, reads, cascaded=True)
            lines.append(f"loss = {plan.cascade.independent!r} * loss + {plan.cascade.cascaded!r} * beyond")
        if module is not self.all[-1]:
            done = ["beyond"] * (plan.cascade is not None) + ["upstream"] * (len(window) > 1)
            lines += self._hand_over(module, held, done)
        lines.append(f"yield {quoted(plan.name)}, learnable(loss), logits")
        return lines if module is self.all[-1] else [*lines, "del loss, logits"]

    def _hand_over(self, module: LocalModule, held: dict[str, None], done: list[str]) -> list[str]:
        """Detach what later modules read; delete the other values, and the variables of ``done``."""
        lines = []
        for name in module.outputs:
            if name not in self.last_read:
                done = [*done, self._variable(name)]
                continue
            held[name] = None
            if self._is_tensor(name):
                lines.append(f"{self._variable(name)} = {self._variable(name)}.detach()")
        return [*lines, *self._let_go(done)]

    def _let_go(self, names: Sequence[str]) -> list[str]:
        # The images, x, are read by every loss.
        unread = [name for name in dict.fromkeys(names) if name != "x"]
        return [f"del {', '.join(unread)}"] if unread else []

    def _kept(self, module: LocalModule, held: dict[str, None]) -> list[str]:
        """Write copies of the values that a module changes in place, if a cascade reads them later."""
        lines = []
        for name in sorted(module.overwrites):
            key = before(name, module)
            if key in self.last_read:
                held[key] = None
                self.specs[key] = self.specs[name]
                lines.append(f"{self._variable(key)} = {self._variable(name)}.detach().clone()")
        return lines

    def _entering(self, key: str, copied: bool) -> str:
        text = self._detached(key)
        return f"{text}.clone()" if copied and self._is_tensor(key) else text

    def _detached(self, name: str) -> str:
        """Write a value as an input of a module that may change it in place: detached from its graph."""
        return f"{self._variable(name)}.detach()" if self._is_tensor(name) else self._variable(name)

    def _loss(self, module: LocalModule, reads: Sequence[str], *, cascaded: bool) -> list[str]:
        """Write the lines for the prediction of a module and its loss."""
        name = quoted(module.plan.name)
        logits, loss = "logits", "beyond" if cascaded else "loss"
        network: Any = module.cascaded if cascaded else module.auxiliary
        if module.auxiliary is not None:
            path = f"self.module_{module.plan.index}.{'cascaded' if cascaded else 'auxiliary'}"
            if isinstance(network, Supervising):
                given = ", ".join([f"Batch(x, y, self.criterion, {name})", *reads])
                call = f"{path}.supervise({given})"
                return [f"{loss} = {call}[1]" if cascaded else f"{logits}, {loss} = {call}"]
            if cascaded:
                return [f"{loss} = self.criterion({path}({', '.join(reads)}), y)"]
            return [f"{logits} = {path}({', '.join(reads)})", f"{loss} = self.criterion({logits}, y)"]
        if self.local.output_criterion is not None:
            output = output_text(self.network.captured.structure, reads, self.modules.support)
            if cascaded:
                return [f"{loss} = self.output_criterion({output}, y)"]
            return [f"{logits} = {output}", f"{loss} = self.output_criterion({logits}, y)"]
        lines = [f"{logits} = {reads[0]}"] if not cascaded and reads[0] != logits else []
        lines.append(f"{loss} = self.criterion({reads[0]}, y)")
        names = module.outputs[: module.reads]
        for head, text in zip(names[1:], reads[1:], strict=True):
            if self._is_tensor(head) and self._shape(head) == self._shape(names[0]):
                lines.append(f"{loss} = {loss} + {HEAD_WEIGHT!r} * self.criterion({text}, y)")
        return lines

    def _forward(self) -> list[str]:
        lines = [
            "def forward(self, x):",
            '    """The primary network\'s output; in training no gradient passes between local modules."""',
        ]
        for module in self.all:
            given = [
                f"self.cut({self._variable(n)})" if self._is_tensor(n) else self._variable(n) for n in module.inputs
            ]
            lines.append(f"    {self._call(module, given)}")
        cut = [
            "def cut(self, value):",
            '    """What one local module hands to the next."""',
            "    return value.detach() if self.training else value",
        ]
        return [*lines, f"    return {self._variable(self.all[-1].outputs[0])}", "", *cut]
