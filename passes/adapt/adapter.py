"""Adaptation: a local layer's architecture behind another input, by repair where possible.

For each layer a few ways of meeting the downsampling asked for are tried in turn (:mod:`passes.adapt.trial` runs
one): the layer as it is; its own downsampling taken out; a stride on its first spatial convolution; a pooling layer
in front. Where repair cannot reach, an adapter in front of an unchanged copy restores the channels it expects, and
that is said.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

from torch import fx, nn

from passes.adapt import retype
from passes.adapt.arguments import Numbers
from passes.adapt.copy_recipe import Body, CopyRecipe, Edits, body_of
from passes.adapt.repairs import Unreachable
from passes.adapt.resolution import downsampling_of, reduction
from passes.adapt.trial import Attempt, Trial
from passes.common.layer_kinds import BATCH_NORMS, SAMPLE_NORMS
from passes.errors import AdaptError
from passes.ir import Network, TensorSpec
from passes.layers.adapters import Downsampling, Front


class Adapter:
    """Adapts layers of one network; keeps recipes, since layers of one signature share them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self._recipes: dict[Any, CopyRecipe | str] = {}
        self._bodies: dict[int, Body] = {}
        self._signatures: dict[int, Any] = {}
        self._numbers = Numbers(network.captured, network.shapes)

    @cached_property
    def downsampling(self) -> Downsampling:
        """How the network halves resolution, see :func:`passes.adapt.resolution.downsampling_of`."""
        return downsampling_of(self.network)

    def body(self, index: int) -> Body:
        """The graph of a layer, see :func:`passes.adapt.copy_recipe.body_of`."""
        if index not in self._bodies:
            self._bodies[index] = body_of(self.network, index)
        return self._bodies[index]

    def adapt(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> CopyRecipe:
        """Fits layer ``source`` behind an input of ``spec``, downsampling it by ``stride``.

        Args:
            source: Index of the local layer.
            spec: The input, batch first.
            stride: A power of two.
            downsampling: How the network halves resolution.

        Raises:
            AdaptError: Neither repair nor an adapter in front can place the layer; says what each attempt met.
        """
        key = (self._signature(source), spec, stride, downsampling)
        if key not in self._recipes:
            self._recipes[key] = self._find(source, spec, stride, downsampling)
        found = self._recipes[key]
        if isinstance(found, str):
            raise AdaptError(
                f"layer {source} cannot be placed behind an input of {spec} ({spec.layout})",
                where=self.network.layers[source].name,
                why=found,
            )
        return replace(found, source=source)

    def adapt_classifier(self, spec: TensorSpec, width: int | None = None) -> CopyRecipe:
        """Fits the primary network's classifier behind an input of ``spec``: the recipe's source is L.

        Args:
            spec: The input, batch first.
            width: Width of its hidden layers; None for their own. Without effect where it has none.

        Raises:
            AdaptError: Repair cannot place it; says why.
        """
        index = len(self.network.layers)
        key = (index, spec, width)
        if key not in self._recipes:
            try:
                self._recipes[key] = self._trial(index, spec, Attempt("native", None, 1), self._narrowed(width)).run()
            except Unreachable as reason:
                self._recipes[key] = str(reason)
        found = self._recipes[key]
        if isinstance(found, str):
            what = f"the classifier cannot be placed behind an input of {spec} ({spec.layout})"
            raise AdaptError(what, why=found, remedy="Leave head='linear'")
        return found

    def output_layer(self) -> nn.Module | None:
        """The classifier's last linear layer, or convolution over one pixel; None where it ends in another module."""
        layers = self._classifier_layers()
        module = layers[-1][1] if layers else None
        pointwise = isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        return module if pointwise or isinstance(module, nn.Linear) else None

    def classifier_norm(self) -> Literal["batch", "layer"] | None:
        """What normalizes the features that the output layer reads, within the classifier; the last one counts."""
        nodes, costs = self.body(len(self.network.layers)).nodes, self.network.shapes.costs
        found: Literal["batch", "layer"] | None = None
        for node in nodes:
            if costs[node.name].mixing:
                break
            module = self.network.captured.module(node)
            if isinstance(module, BATCH_NORMS):
                found = "batch"
            elif isinstance(module, SAMPLE_NORMS) or "Norm" in type(module).__name__:
                found = "layer"
        return found

    def _narrowed(self, width: int | None) -> Edits:
        """The classifier's hidden layers, of another width."""
        if width is None:
            return Edits()
        hidden = self._classifier_layers()[:-1]
        changes = {i: retype.produce(module, width) for i, module in hidden if module is not None}
        return Edits(changes={i: change for i, change in changes.items() if change is not None})

    def _classifier_layers(self) -> list[tuple[int, nn.Module | None]]:
        """Positions of the classifier's mixing operations, and the modules that do them."""
        nodes, costs = self.body(len(self.network.layers)).nodes, self.network.shapes.costs
        return [(i, self.network.captured.module(node)) for i, node in enumerate(nodes) if costs[node.name].mixing]

    def _trial(self, source: int, spec: TensorSpec, attempt: Attempt, edits: Edits | None = None) -> Trial:
        return Trial(self.network, self._numbers, self.body(source), source, spec, attempt, edits)

    def _find(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> CopyRecipe | str:
        reasons = []
        for attempt in self._attempts(source, spec, stride, downsampling):
            try:
                return self._trial(source, spec, attempt).run()
            except Unreachable as reason:
                reasons.append(f"{attempt.mode}: {reason}")
        return "; ".join(reasons)

    def _attempts(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> list[Attempt]:
        layer = self.network.layers[source]
        native = reduction(layer.input, layer.output)
        pool: Downsampling = "avg_pool" if downsampling == "stride" else downsampling
        alike = [Attempt("native", None, stride)] if stride == native else []
        # A layer that halves by pooling pools what its convolution gives; a copy pools what it reads.
        attempts = alike if stride == 1 or downsampling == "stride" else []
        if stride > 1:
            rest = Front(spec.channels, spec.channels, pool, spec.layout, stride // 2) if stride > 2 else None
            strided = Attempt("strided", rest, stride)
            pooled = Attempt("unit", Front(spec.channels, spec.channels, pool, spec.layout, stride), stride)
            attempts = [*attempts, strided, pooled] if downsampling == "stride" else [pooled, *alike, strided]
        elif native > 1:
            attempts.append(Attempt("unit", None, stride))
        front = Front(
            spec.channels,
            layer.input.channels,
            pool if stride > native else None,
            spec.layout,
            max(2, stride // native),
        )
        attempts.append(Attempt("adapter", front, 1))
        return attempts

    def _signature(self, index: int) -> Any:
        """What two layers must have in common for one recipe to serve both."""
        if index not in self._signatures:
            body, shapes, captured = self.body(index), self.network.shapes, self.network.captured
            parts = []
            for node in body.nodes:
                target: Any = node.target if node.op.startswith("call") else node.op
                module = captured.module(node)
                if module is not None:
                    tensors = (*module.named_parameters(), *module.named_buffers())
                    target = (type(module), repr(module), tuple((name, tuple(t.shape)) for name, t in tensors))
                references = fx.map_arg((node.args, node.kwargs), lambda n: _reference(body, n))
                parts.append((node.op, target, repr(references), shapes.specs[node.name]))
            read = tuple(shapes.specs[name] for name in (body.entry, *sorted(body.others)))
            self._signatures[index] = (tuple(parts), read, body.position[body.exit])
        return self._signatures[index]


def _reference(body: Body, node: fx.Node) -> Any:
    if node.name in body.measured:
        return body.measured[node.name]
    return -1 if body.reads(node.name) else body.position.get(node.name, -2)
