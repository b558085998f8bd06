"""One attempt to place a layer behind another input: its graph is run on fake tensors and repaired until it runs.

Repairs, by what is met:

- a leaf layer expects other channels: it is retyped (:mod:`passes.retype`);
- an addition's operands no longer agree: the shortcut is projected, or its projection takes the stride;
- a multiplication by a gate (squeeze-excite) no longer agrees: the gate's last layer takes the channels;
- a parameter with an entry a channel (layer scale) no longer agrees: it takes the channels;
- a shortcut's projection is no longer needed: it goes.

A repair of something earlier restarts the run, so each run sees consistent layers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from passes import retype
from passes.errors import AdaptError, first_line
from passes.ir import Network, TensorSpec
from passes.recipe import Body, Edits, Front, Projection, Recipe, build_front, build_projection
from passes.resolution import reduction
from passes.shapes import CostMode, fake_mode
from passes.shortcuts import projected_shortcuts, shortcut
from passes.weights import Initializer

_JOINS = {
    operator.add, operator.iadd, operator.sub, operator.isub, operator.mul, operator.imul,
    torch.add, torch.sub, torch.mul, "add", "add_", "sub", "sub_", "mul", "mul_",
}  # fmt: skip
_ROUNDS = 16
"""Restarts before an attempt is given up: each one repairs a join, and no layer has so many."""

T = TypeVar("T")


class Unreachable(Exception):
    """Repair cannot go on; the message says why."""


class _Restart(Exception):
    """A change was found that an earlier node needs."""

    def __init__(self, edits: Edits) -> None:
        super().__init__()
        self.edits = edits


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way of meeting the downsampling asked for."""

    mode: Literal["native", "unit", "strided", "adapter"]
    """The layer as it is; without its downsampling; with a stride on its first spatial convolution; or unchanged behind
    an adapter."""
    front: Front | None
    """What stands in front of it."""


class Trial:
    """One attempt at one layer."""

    def __init__(self, network: Network, body: Body, source: int, spec: TensorSpec, attempt: Attempt) -> None:
        self.captured, self.shapes, self.body = network.captured, network.shapes, body
        self.source, self.spec, self.attempt = source, spec, attempt
        self.edits = Edits()
        self.draw = Initializer()
        self.device = next((p.device for p in self.captured.model.parameters()), torch.device("cpu"))
        self.values: dict[int, Any] = {}
        self.params: dict[int, int] = {}

    def run(self) -> Recipe:
        """Runs and repairs until nothing is left to repair.

        Raises:
            Unreachable: It cannot be done this way.
        """
        entry = self.shapes.specs[self.body.entry]
        assert entry is not None
        if entry.layout != self.spec.layout:
            raise Unreachable(f"it reads {entry.layout}, not {self.spec.layout}")
        if self.attempt.mode in ("unit", "strided"):
            self.edits = self._without_downsampling()
        if self.attempt.mode == "strided":
            self.edits = self._with_stride()
        for _ in range(_ROUNDS):
            try:
                return self._once()
            except _Restart as found:
                if found.edits == self.edits:
                    raise Unreachable("a repair did not make its operands agree") from found
                self.edits = found.edits
            except AdaptError as error:
                raise Unreachable(error.what) from error
        raise Unreachable("repairs did not come to an end")

    # Downsampling -----------------------------------------------------------------------------------------------------

    def _spatial_nodes(self) -> list[tuple[int, nn.Module | None, TensorSpec, TensorSpec]]:
        """Position, module, input and output of the nodes that read and give images larger than one pixel."""
        found = []
        for i, node in enumerate(self.body.nodes):
            before = self.shapes.specs[node.all_input_nodes[0].name] if node.all_input_nodes else None
            after = self.shapes.specs[node.name]
            if before is None or after is None or not before.spatial or not after.spatial:
                continue
            if any(size > 1 for size in before.spatial) and any(size > 1 for size in after.spatial):
                found.append((i, self.captured.module(node), before, after))
        return found

    def _without_downsampling(self) -> Edits:
        changes, bypassed = dict(self.edits.changes), set(self.edits.bypassed)
        for i, module, before, after in self._spatial_nodes():
            if reduction(before, after) == 1:
                continue
            if isinstance(module, _ConvNd):
                # An even kernel without a stride needs unequal padding to keep the size.
                zeros = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
                even = zeros and any(size % 2 == 0 for size in module.kernel_size)
                same: retype.Changes = {"padding": "same"} if even and set(module.dilation) == {1} else {}
                changes[i] = {"stride": (1,) * len(module.stride), **same}
            elif isinstance(module, (nn.MaxPool2d, nn.AvgPool2d)):
                if module.kernel_size in (module.stride, 2, (2, 2)):
                    bypassed.add(i)
                else:
                    changes[i] = {"stride": 1}
        return replace(self.edits, changes=changes, bypassed=frozenset(bypassed))

    def _with_stride(self) -> Edits:
        for i, module, _, _ in self._spatial_nodes():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                # On a layer that had a stride of its own this also takes back what replaced it.
                return replace(self.edits, changes={**self.edits.changes, i: {"stride": (2, 2)}})
        raise Unreachable("it has no spatial convolution to put a stride on")

    # One run ----------------------------------------------------------------------------------------------------------

    def _once(self) -> Recipe:
        front = self.attempt.front if self.attempt.front and not self.attempt.front.is_empty else None
        was = self.shapes.specs[self.body.exit]
        assert was is not None
        with fake_mode(), CostMode(2) as cost, self.device, torch.no_grad():
            x: Any = torch.empty(2, *self.spec.shape[1:], dtype=self.spec.dtype)
            params = 0
            if front is not None:
                module = build_front(front, self.draw)
                params += _numel(module)
                x = attempt(lambda: module(x))
            self.values, self.params = {-1: x}, {}
            for i, node in enumerate(self.body.nodes):
                self.values[i] = self._node(i, node)
            out = self.values[self.body.position[self.body.exit]]
            macs = cost.take().macs
            params += sum(_numel(build_projection(p, self.draw)) for p in self.edits.projections.values())
        if not isinstance(out, torch.Tensor) or out.ndim != len(was.shape):
            raise Unreachable("its output has another rank behind this input")
        self._drop_needless_projections()
        live = self.body.live(self.edits)
        result = TensorSpec((self.spec.shape[0], *out.shape[1:]), out.dtype, was.layout)
        return Recipe(
            self.source,
            self.spec,
            result,
            reduction(self.spec, result),
            self.edits,
            front,
            self.attempt.mode != "adapter",
            bool(self.edits.projections) or any(live & set(path) for path in self._projected_shortcuts()),
            params + sum(count for i, count in self.params.items() if i in live),
            macs,
        )

    def _node(self, i: int, node: fx.Node) -> Any:
        if node.op == "get_attr":
            return self._attribute(i, node)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._value)
        if i in self.edits.bypassed:
            return args[0]
        module = self.captured.module(node)
        if module is not None:
            return self._call(i, node, module, args, kwargs)
        if node.target in _JOINS:
            args = self._join(i, node, args)
        if node.op == "call_method":
            return attempt(lambda: getattr(args[0], str(node.target))(*args[1:], **kwargs))
        target: Any = node.target
        return attempt(lambda: target(*args, **kwargs))

    def _value(self, node: fx.Node) -> Any:
        if self.body.reads(node.name):
            return self._entry(node)
        if node.name not in self.body.position:
            raise Unreachable(f"it uses {node.name}, which is computed before it")
        return self.values[self.body.position[node.name]]

    def _entry(self, node: fx.Node) -> Any:
        was, entry = self.shapes.specs[node.name], self.shapes.specs[self.body.entry]
        if was is None or entry is None or was.layout != entry.layout:
            raise Unreachable(f"it also reads {node.name}, which is laid out in another way")
        return self.values[-1]

    def _attribute(self, i: int, node: fx.Node) -> Any:
        value = self.captured.attribute(str(node.target))
        if isinstance(value, nn.Parameter):
            value = torch.empty(self.edits.shapes.get(i, tuple(value.shape)), dtype=value.dtype)
            self.params[i] = value.numel()
        return value

    def _call(self, i: int, node: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        was = self.shapes.specs[node.all_input_nodes[0].name] if tensors else None
        if was is not None and self.attempt.mode != "adapter":
            now = TensorSpec(tuple(tensors[0].shape), tensors[0].dtype, was.layout)
            changes = retype.fit(module, was, now)
            if changes is None and was.shape[1:] != now.shape[1:] and next(module.parameters(), None) is not None:
                raise Unreachable(f"nothing is known of how {type(module).__name__} depends on its input")
            if changes:
                self.edits = self._changed(i, changes)
        twin = retype.clone(module, self.edits.changes.get(i, {}), self.draw)
        self.params[i] = _numel(twin)
        return attempt(lambda: twin(*args, **kwargs))

    def _changed(self, i: int, changes: retype.Changes) -> Edits:
        return replace(self.edits, changes={**self.edits.changes, i: {**self.edits.changes.get(i, {}), **changes}})

    # Joins ------------------------------------------------------------------------------------------------------------

    def _join(self, i: int, node: fx.Node, args: tuple[Any, ...]) -> tuple[Any, ...]:
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        if len(operands) != 2 or len(args) != 2 or not all(isinstance(a, torch.Tensor) for a in args):
            return args
        was = [self.shapes.specs[n.name] for n in operands]
        now = [self._projected(i, k, value) for k, value in enumerate(args)]
        if was[0] is None or was[1] is None or _agree(was[0].shape, was[1].shape, now[0].shape, now[1].shape):
            return tuple(now)
        if self.attempt.mode == "adapter":
            raise Unreachable("its joins do not agree behind the adapter")
        for k in (0, 1):
            self._widen_parameter(operands[k], was[1 - k], now[1 - k])
            self._widen_gate(operands[k], now[k], now[1 - k])
        specs = [TensorSpec(tuple(v.shape), v.dtype, w.layout) for v, w in zip(now, was, strict=True) if w is not None]
        raise _Restart(self._project(i, operands, specs, was[0].shape == was[1].shape))

    def _projected(self, i: int, k: int, value: torch.Tensor) -> torch.Tensor:
        projection = self.edits.projections.get((i, k))
        if projection is None:
            return value
        module = build_projection(projection, self.draw)
        result: torch.Tensor = attempt(lambda: module(value))
        return result

    def _widen_parameter(self, node: fx.Node, was: TensorSpec | None, now: torch.Tensor) -> None:
        while node.op != "get_attr" and len(node.all_input_nodes) == 1:
            node = node.all_input_nodes[0]
        i = self.body.position.get(node.name, -1)
        if node.op != "get_attr" or i not in self.params or was is None:
            return
        old, new = was.channels, now.shape[was.channel_dim]
        shape = tuple(new if size == old else size for size in self.values[i].shape)
        if old != new and shape != tuple(self.values[i].shape) and shape.count(new) == 1:
            raise _Restart(replace(self.edits, shapes={**self.edits.shapes, i: shape}))

    def _widen_gate(self, node: fx.Node, gate: torch.Tensor, gated: torch.Tensor) -> None:
        if gate.ndim != 4 or any(size != 1 for size in gate.shape[2:]) or all(size == 1 for size in gated.shape[2:]):
            return
        while node.name in self.body.position:
            module = self.captured.module(node)
            changes = retype.produce(module, gated.shape[1]) if module is not None else None
            if changes is not None:
                raise _Restart(self._changed(self.body.position[node.name], changes))
            if len(node.all_input_nodes) != 1:
                return
            node = node.all_input_nodes[0]

    def _project(self, i: int, operands: list[fx.Node], now: list[TensorSpec], alike: bool) -> Edits:
        join = self.body.nodes[i].name
        if not alike or now[0].layout == "other":
            raise Unreachable(f"the operands of {join} do not agree")
        paths = [shortcut(self.captured, self.shapes, self.body, node) for node in operands]
        # The identity is projected before a shortcut that is one already, and that before a branch.
        side = min((0, 1), key=lambda k: 2 if (path := paths[k]) is None else bool(path))
        source, target = now[side], now[1 - side]
        stride = reduction(source, target)
        if tuple(-(-size // stride) for size in source.spatial) != target.spatial:
            raise Unreachable(f"the operands of {join} differ in resolution")
        convolutions = [p for p in paths[side] or () if isinstance(self.captured.module(self.body.nodes[p]), nn.Conv2d)]
        if convolutions and source.channels == target.channels:
            return self._changed(convolutions[0], {"stride": (stride, stride)})
        if (i, side) in self.edits.projections:
            raise Unreachable(f"a projection at {join} did not make its operands agree")
        projection = Projection(source.channels, target.channels, stride, source.layout)
        return replace(self.edits, projections={**self.edits.projections, (i, side): projection})

    def _projected_shortcuts(self) -> list[tuple[int, ...]]:
        return projected_shortcuts(self.captured, self.shapes, self.body)

    def _drop_needless_projections(self) -> None:
        # A shortcut is projected where width or resolution changes, and only there (He et al., CVPR 2016, section 3.2).
        if self.attempt.mode == "adapter":
            return
        for path in self._projected_shortcuts():
            if self.values[path[0]].shape == self.values[-1].shape and not set(path) <= self.edits.bypassed:
                raise _Restart(replace(self.edits, bypassed=self.edits.bypassed | frozenset(path)))


def _agree(was_a: tuple[int, ...], was_b: tuple[int, ...], a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    """Whether two shapes still broadcast the way they did: equal where equal, one where one."""
    if len(was_a) == len(was_b) and len(a) == len(b):
        return all(p == q or (1 in (p, q) and w != v) for p, q, w, v in zip(a, b, was_a, was_b, strict=True))
    try:
        return tuple(torch.broadcast_shapes(a, b)) == tuple(a if len(a) >= len(b) else b)
    except RuntimeError:
        return False


def attempt(run: Callable[[], T]) -> T:
    """Runs a piece of somebody's network on shapes it was not made for.

    Raises:
        Unreachable: It refused them, in whatever way.
    """
    try:
        return run()
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise Unreachable(first_line(error)) from error


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
