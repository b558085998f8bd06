"""One attempt to fit a layer to another input: its graph is run on fake tensors and repaired until it runs.

The repairs, by what makes them necessary:

- a leaf layer expects other channels: it is retyped (:mod:`passes.adapt.retype`);
- an addition's operands no longer agree: the shortcut is projected, or its projection takes the stride;
- a multiplication by a gate (squeeze-excite) no longer agrees: the gate's last layer takes the channels;
- a parameter with one entry for each channel (layer scale, class token) no longer agrees: it takes the channels;
- a split or a reshape names a number of channels: it follows them, or stays what it was
  (:mod:`passes.adapt.arguments`);
- sizes are asked of a tensor that a copy does not have: its shape follows from the input's
  (:mod:`passes.adapt.outside_shapes`);
- the input is laid out in another way: it is laid out as the layer reads it;
- a shortcut's projection is no longer needed: it goes.

A repair restarts the run, so that each run sees consistent layers.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn

from passes.adapt import repairs, retype
from passes.adapt.arguments import Numbers, replaced
from passes.adapt.copy_recipe import Body, CopyRecipe, Edits, projected_shortcuts
from passes.adapt.outside_shapes import stand_in
from passes.adapt.repairs import RepairSite, Restart, Unreachable, attempt
from passes.adapt.resolution import grid, reduction
from passes.common.fake_tensors import device_of, fake_mode
from passes.common.initializer import Initializer
from passes.common.interpreter import arguments_of, call_target
from passes.common.layer_kinds import IMAGE_POOLS, Convolution
from passes.errors import AdaptError
from passes.ir import Layout, Network, TensorSpec
from passes.layers.adapters import GRIDS, Front, ToLayout, build_front, build_projection
from passes.shapes.costs import CostMode

_ROUNDS = 64
"""Most runs of one attempt. Each restart repairs one place, and no layer has that many."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A way of meeting the downsampling that is asked for."""

    mode: Literal["native", "unit", "strided", "adapter"]
    """The layer as it is; without its downsampling; with a stride on its first spatial convolution; or unchanged, after
    an adapter."""
    front: Front | None
    """Layers in front of the copy."""
    stride: int
    """The downsampling that is asked for, a power of two."""


class Trial:
    """One attempt at one layer.

    Args:
        network: The primary network.
        numbers: Values of numbers in its graph.
        body: The graph of the layer.
        source: Index of the layer.
        spec: The input that it is to be fitted to, batch first.
        attempt: The way to try.
        edits: Edits to begin with.
    """

    def __init__(
        self,
        network: Network,
        numbers: Numbers,
        body: Body,
        source: int,
        spec: TensorSpec,
        attempt: Attempt,
        edits: Edits | None = None,
    ) -> None:
        self.captured, self.shapes, self.numbers, self.body = network.captured, network.shapes, numbers, body
        self.source, self.spec, self.attempt = source, spec, attempt
        self.edits = edits or Edits()
        self.draw = Initializer()
        self.device = device_of(self.captured.model)
        self.reference: tuple[torch.Tensor, Layout] = (torch.empty(0), spec.layout)
        self.values: dict[int, Any] = {}
        self.params: dict[int, int] = {}

    def run(self) -> CopyRecipe:
        """Run and repair the layer until nothing is left to repair.

        Raises:
            Unreachable: The layer cannot be fitted in this way.
        """
        entry = self.shapes.specs[self.body.entry]
        assert entry is not None
        if entry.layout != self.spec.layout and not {entry.layout, self.spec.layout} <= set(GRIDS):
            raise Unreachable(f"it reads {entry.layout}, not {self.spec.layout}")
        if self.attempt.mode in ("unit", "strided"):
            self.edits = self._without_downsampling()
        if self.attempt.mode == "strided":
            self.edits = self._with_stride()
        for _ in range(_ROUNDS):
            try:
                return self._once()
            except Restart as repair:
                if repair.edits == self.edits:
                    raise Unreachable("a repair did not make its operands agree") from repair
                self.edits = repair.edits
            except AdaptError as error:
                raise Unreachable(error.what) from error
        raise Unreachable("repairs did not come to an end")

    # Downsampling -----------------------------------------------------------------------------------------------------

    def _spatial_nodes(self) -> list[tuple[int, nn.Module | None, TensorSpec, TensorSpec]]:
        """Return position, module, input and output of the nodes that read and give images larger than one pixel."""
        spatial = []
        for i, node in enumerate(self.body.nodes):
            before = self.shapes.specs[node.all_input_nodes[0].name] if node.all_input_nodes else None
            after = self.shapes.specs[node.name]
            if before is None or after is None or not before.spatial or not after.spatial:
                continue
            if any(size > 1 for size in before.spatial) and any(size > 1 for size in after.spatial):
                spatial.append((i, self.captured.module(node), before, after))
        return spatial

    def _without_downsampling(self) -> Edits:
        """Return the edits that take strides and pooling out of the layer."""
        changes, bypassed = dict(self.edits.changes), set(self.edits.bypassed)
        for i, module, before, after in self._spatial_nodes():
            if reduction(before, after) == 1:
                continue
            if isinstance(module, Convolution):
                # An even kernel without a stride needs unequal padding to keep the size.
                zeros = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros"
                even = zeros and any(size % 2 == 0 for size in module.kernel_size)
                same: retype.Changes = {"padding": "same"} if even and set(module.dilation) == {1} else {}
                changes[i] = {"stride": (1,) * len(module.stride), **same}
            elif isinstance(module, IMAGE_POOLS):
                if module.kernel_size in (module.stride, 2, (2, 2)):
                    bypassed.add(i)
                else:
                    changes[i] = {"stride": 1}
        return replace(self.edits, changes=changes, bypassed=frozenset(bypassed))

    def _with_stride(self) -> Edits:
        """Return the edits that put a stride on the first spatial convolution."""
        for i, module, _, _ in self._spatial_nodes():
            if isinstance(module, nn.Conv2d) and max(module.kernel_size) > 1:
                # On a layer that had a stride of its own this also takes back what replaced it.
                return replace(self.edits, changes={**self.edits.changes, i: {"stride": (2, 2)}})
        raise Unreachable("it has no spatial convolution to put a stride on")

    # One run ----------------------------------------------------------------------------------------------------------

    def _once(self) -> CopyRecipe:
        """Run the layer once with the edits so far, and return its recipe if no repair is needed.

        Raises:
            Restart: A repair is needed.
            Unreachable: No repair helps, or the layer runs and does not do what is asked of it.
        """
        was, entry = self.shapes.specs[self.body.exit], self.shapes.specs[self.body.entry]
        assert was is not None
        assert entry is not None
        front = self.attempt.front or Front(self.spec.channels, self.spec.channels, None, self.spec.layout)
        if entry.layout != self.spec.layout:
            front = replace(front, to=entry.layout)
        # On fake tensors, so that it takes no time and no memory. Two samples: norms over a batch refuse one.
        with fake_mode(), CostMode(2) as cost, self.device, torch.no_grad():
            x = torch.empty(2, *self.spec.shape[1:], dtype=self.spec.dtype)
            module = build_front(front, self.draw)
            params = _numel(module)
            x = attempt(lambda: module(x))
            # Sizes of tensors from outside are measured in the layout of the input, before that changes.
            self.reference = x, self.spec.layout
            if front.to is not None:
                lay = ToLayout(front.layout, front.to)
                x = attempt(lambda: lay(x))
            self.values, self.params = {-1: x}, {}
            for i, node in enumerate(self.body.nodes):
                self.values[i] = self._node(i, node)
            out = self.values[self.body.position[self.body.exit]]
            # Read before projections are built once more to count their parameters.
            macs = cost.take().macs
            params += sum(_numel(build_projection(p, self.draw)) for p in self.edits.projections.values())
        if not isinstance(out, torch.Tensor) or out.ndim != len(was.shape):
            raise Unreachable("its output has another number of dimensions on this input")
        result = TensorSpec((self.spec.shape[0], *out.shape[1:]), out.dtype, was.layout)
        self._drop_needless_projections()
        # A stride on a convolution next to the main path (the keys of an attention) does not make the output smaller.
        halves = max(grid(self.spec), default=1) > 1 and grid(result)
        if halves and reduction(self.spec, result) < self.attempt.stride:
            raise Unreachable("it does not downsample")
        # Parameters of nodes that lead nowhere once others are bypassed do not count.
        live = self.body.live(self.edits)
        own = sum(count for i, count in self.params.items() if i in live)
        if not own and any(self.params.values()):
            raise Unreachable("nothing of it that learns lies between its input and its output")
        return CopyRecipe(
            source=self.source,
            input=self.spec,
            output=result,
            stride=reduction(self.spec, result),
            edits=self.edits,
            front=None if front.is_empty else front,
            repaired=self.attempt.mode != "adapter",
            projection=bool(self.edits.projections) or any(live & set(path) for path in self._projected_shortcuts()),
            params=params + own,
            macs=macs,
        )

    def _node(self, i: int, node: fx.Node) -> Any:
        """Return the value of a node, after the repairs that it needs."""
        if node.op == "get_attr":
            return self._attribute(i, node)
        args, kwargs = arguments_of(node, self._value)
        if i in self.edits.bypassed:
            return args[0]
        module = self.captured.module(node)
        if module is not None:
            return self._call(i, node, module, args, kwargs)
        args, kwargs = replaced(args, kwargs, self.edits.arguments.get(i, {}))
        site = RepairSite(
            captured=self.captured,
            shapes=self.shapes,
            numbers=self.numbers,
            body=self.body,
            edits=self.edits,
            values=self.values,
            i=i,
            args=args,
            kwargs=kwargs,
        )
        if node.target in repairs.JOINS and self._joins_tensors(node, args):
            args = self._join(site)
        elif self.attempt.mode != "adapter" and node.name not in self.shapes.numbers:
            self._prepare(site)
        try:
            return attempt(lambda: call_target(node, args, kwargs))
        except Unreachable:
            if node.name not in self.shapes.numbers and self.attempt.mode != "adapter":
                repairs.renumber(site)
            raise

    def _prepare(self, site: RepairSite) -> None:
        """Make the repairs that must come before a node runs; it might run without them, and give something else."""
        if site.node.target in repairs.CONCATENATIONS:
            repairs.widen_concatenated(site)
        elif site.node.target in retype.FUNCTIONS:
            repairs.widen_weight(site)
        else:
            repairs.follow_split(site)
            repairs.keep_numbers(site)

    def _joins_tensors(self, node: fx.Node, args: tuple[object, ...]) -> bool:
        """Return whether a node combines two tensors, not a tensor and a number."""
        operands = [a for a in node.args if isinstance(a, fx.Node)]
        return len(operands) == len(args) == 2 and all(isinstance(a, torch.Tensor) for a in args)

    def _join(self, site: RepairSite) -> tuple[torch.Tensor, ...]:
        """Return the operands of a join after their projections, or restart with a repair."""
        now = [self._projected(site.i, k, value) for k, value in enumerate(site.args)]
        try:
            repairs.join(site, now)
        except Restart as change:
            if self.attempt.mode == "adapter":
                raise Unreachable("the operands of its additions do not agree after the adapter") from change
            raise
        return tuple(now)

    def _projected(self, i: int, k: int, value: torch.Tensor) -> torch.Tensor:
        """Return operand ``k`` of node ``i`` after its projection, if it has one."""
        projection = self.edits.projections.get((i, k))
        if projection is None:
            return value
        module = build_projection(projection, self.draw)
        result: torch.Tensor = attempt(lambda: module(value))
        return result

    def _value(self, node: fx.Node) -> Any:
        """Return the value of a node; one outside the layer is replaced by the copy's input or by a stand-in."""
        if self.body.reads(node.name):
            return self._entry(node)
        if node.name in self.body.measured:
            shape = self.body.measured[node.name]
            reference, layout = self.reference
            return attempt(lambda: stand_in(reference, layout, *astuple(shape)))
        if node.name not in self.body.position:
            raise Unreachable(f"it uses {node.name}, which is computed before it")
        return self.values[self.body.position[node.name]]

    def _entry(self, node: fx.Node) -> Any:
        was, entry = self.shapes.specs[node.name], self.shapes.specs[self.body.entry]
        if was is None or entry is None or was.layout != entry.layout:
            raise Unreachable(f"it also reads {node.name}, which is laid out in another way")
        return self.values[-1]

    def _attribute(self, i: int, node: fx.Node) -> Any:
        """Return what a node reads off the model; a parameter without values, of the shape that it has here."""
        value = self.captured.attribute(str(node.target))
        if isinstance(value, nn.Parameter):
            value = nn.Parameter(torch.empty(self.edits.shapes.get(i, tuple(value.shape)), dtype=value.dtype), False)
            self.params[i] = value.numel()
        return value

    def _call(self, i: int, node: fx.Node, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the value of a leaf layer, retyped where it expects other channels than it is given."""
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        was = self.shapes.specs[node.all_input_nodes[0].name] if tensors else None
        unopened = False
        if was is not None and self.attempt.mode != "adapter":
            now = TensorSpec(tuple(tensors[0].shape), tensors[0].dtype, was.layout)
            changes = retype.fit(module, was, now)
            if changes is None and was.shape[1:] != now.shape[1:] and next(module.parameters(), None) is not None:
                unopened = next(module.children(), None) is not None
                if not unopened:
                    raise Unreachable(f"nothing is known of how {type(module).__name__} depends on its input")
            if changes:
                self.edits = self.edits.changed(i, changes)
        twin = retype.clone(module, self.edits.changes.get(i, {}), self.draw)
        self.params[i] = _numel(twin)
        try:
            return attempt(lambda: twin(*args, **kwargs))
        except Unreachable:
            if unopened:
                # In a run of its own, so that what it tries is not counted among the layer's operations.
                fitted = self.edits.changed(i, attempt(lambda: retype.fit_inside(module, args, kwargs, self.draw)))
                if fitted != self.edits:
                    raise Restart(fitted) from None
            raise

    def _projected_shortcuts(self) -> list[tuple[int, ...]]:
        return projected_shortcuts(self.captured, self.shapes, self.body)

    def _drop_needless_projections(self) -> None:
        """Restart without the projection of a shortcut whose ends have equal shapes."""
        # A shortcut is projected where width or resolution changes, and only there (He et al., CVPR 2016, section 3.2).
        if self.attempt.mode == "adapter":
            return
        for path in self._projected_shortcuts():
            if self.values[path[0]].shape == self.values[-1].shape and not set(path) <= self.edits.bypassed:
                raise Restart(replace(self.edits, bypassed=self.edits.bypassed | frozenset(path)))


def _numel(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
