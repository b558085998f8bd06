"""Adaptation: the architecture of a local layer, fitted to another input.

The copy must read what it is given and shrink it as asked. A few ways are tried in turn
(:mod:`passes.adapt.trial` tries one): the layer as it is; without its own downsampling; with a stride on its first
spatial convolution; after a pooling layer. Where no repair makes it run, the copy stays unchanged, and an adapter in
front of it restores the channels that it expects; the recipe says so (:attr:`CopyRecipe.repaired`).

Layers of one network may disagree on layouts (Swin has images, then tokens): a copy is given its input in its own
layout.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import cached_property
from typing import Literal

from torch import fx, nn

from passes.adapt import retype
from passes.adapt.arguments import Numbers
from passes.adapt.copy_recipe import Body, CopyRecipe, Edits, body_of
from passes.adapt.repairs import Unreachable
from passes.adapt.resolution import downsampling_of, reduction
from passes.adapt.trial import Attempt, Trial
from passes.common.interpreter import arguments_of
from passes.common.layer_kinds import BATCH_NORMS, SAMPLE_NORMS
from passes.errors import AdaptError
from passes.ir import Network, TensorSpec
from passes.layers.adapters import Downsampling, Front


class Adapter:
    """Fits layers of one network to other inputs.

    Recipes are kept, since layers of one signature share them.

    Args:
        network: The network.

    >>> from passes.pipeline import analyse
    >>> model = nn.Sequential(
    ...     nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ... )
    >>> adapter = Adapter(analyse(model, (2, 3, 16, 16)))
    >>> recipe = adapter.adapt(1, TensorSpec((2, 32, 8, 8), layout="NCHW"), stride=2, downsampling="stride")
    >>> str(recipe.output), recipe.edits.changes
    ('16x3x3', {0: {'stride': (2, 2), 'in_channels': 32}})
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self._recipes: dict[Hashable, CopyRecipe | str] = {}
        self._bodies: dict[int, Body] = {}
        self._signatures: dict[int, Hashable] = {}
        self._numbers = Numbers(network.captured, network.shapes)

    @cached_property
    def downsampling(self) -> Downsampling:
        """The way in which the network halves resolution, see :func:`passes.adapt.resolution.downsampling_of`."""
        return downsampling_of(self.network)

    def body(self, index: int) -> Body:
        """Return the graph of a layer, see :func:`passes.adapt.copy_recipe.body_of`."""
        if index not in self._bodies:
            self._bodies[index] = body_of(self.network, index)
        return self._bodies[index]

    def adapt(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> CopyRecipe:
        """Fit layer ``source`` to an input of ``spec``, which it downsamples by ``stride``.

        Args:
            source: Index of the local layer.
            spec: The input, batch first.
            stride: A power of two.
            downsampling: The way in which the network halves resolution.

        Raises:
            AdaptError: Neither repair nor an adapter in front makes the layer run; the reason of each attempt is said.
        """
        key = (self._signature(source), spec, stride, downsampling)
        if key not in self._recipes:
            self._recipes[key] = self._first_recipe(source, spec, stride, downsampling)
        recipe = self._recipes[key]
        if isinstance(recipe, str):
            raise AdaptError(
                f"layer {source} cannot be fitted to an input of {spec} ({spec.layout})",
                where=self.network.layers[source].name,
                why=recipe,
            )
        return replace(recipe, source=source)

    def adapt_classifier(self, spec: TensorSpec, width: int | None = None) -> CopyRecipe:
        """Fit the primary network's classifier to an input of ``spec``; the recipe's source is L, the number of layers.

        Args:
            spec: The input, batch first.
            width: Width of the classifier's hidden layers; None keeps theirs. Without effect where it has none.

        Raises:
            AdaptError: No repair makes the classifier run on this input.
        """
        index = len(self.network.layers)
        key = (index, spec, width)
        if key not in self._recipes:
            try:
                self._recipes[key] = self._trial(index, spec, Attempt("native", None, 1), self._narrowed(width)).run()
            except Unreachable as reason:
                self._recipes[key] = str(reason)
        recipe = self._recipes[key]
        if isinstance(recipe, str):
            what = f"the classifier cannot be fitted to an input of {spec} ({spec.layout})"
            raise AdaptError(what, why=recipe, remedy="Leave head='linear'")
        return recipe

    def output_layer(self) -> nn.Module | None:
        """Return the classifier's last linear layer or 1x1 convolution; None where it ends in another module."""
        layers = self._classifier_layers()
        module = layers[-1][1] if layers else None
        pointwise = isinstance(module, nn.Conv2d) and max(module.kernel_size) == 1
        return module if pointwise or isinstance(module, nn.Linear) else None

    def classifier_norm(self) -> Literal["batch", "layer"] | None:
        """Return the kind of the last norm before the classifier's first mixing operation; None where there is none."""
        nodes, costs = self.body(len(self.network.layers)).nodes, self.network.shapes.costs
        norm: Literal["batch", "layer"] | None = None
        for node in nodes:
            if costs[node.name].mixing:
                break
            module = self.network.captured.module(node)
            if isinstance(module, BATCH_NORMS):
                norm = "batch"
            elif isinstance(module, SAMPLE_NORMS) or "Norm" in type(module).__name__:
                norm = "layer"
        return norm

    def _narrowed(self, width: int | None) -> Edits:
        """Return the edits that give the classifier's hidden layers another width."""
        if width is None:
            return Edits()
        hidden = self._classifier_layers()[:-1]
        changes = {i: retype.produce(module, width) for i, module in hidden if module is not None}
        return Edits(changes={i: change for i, change in changes.items() if change is not None})

    def _classifier_layers(self) -> list[tuple[int, nn.Module | None]]:
        """Return the positions of the classifier's mixing operations, and the modules that do them."""
        nodes, costs = self.body(len(self.network.layers)).nodes, self.network.shapes.costs
        return [(i, self.network.captured.module(node)) for i, node in enumerate(nodes) if costs[node.name].mixing]

    def _trial(self, source: int, spec: TensorSpec, attempt: Attempt, edits: Edits | None = None) -> Trial:
        return Trial(self.network, self._numbers, self.body(source), source, spec, attempt, edits)

    def _first_recipe(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> CopyRecipe | str:
        """Return the recipe of the first attempt that succeeds, or else the reasons of all."""
        reasons = []
        for attempt in self._attempts(source, spec, stride, downsampling):
            try:
                return self._trial(source, spec, attempt).run()
            except Unreachable as reason:
                reasons.append(f"{attempt.mode}: {reason}")
        return "; ".join(reasons)

    def _attempts(self, source: int, spec: TensorSpec, stride: int, downsampling: Downsampling) -> list[Attempt]:
        """Return the ways of meeting the downsampling, the best first."""
        layer = self.network.layers[source]
        native = reduction(layer.input, layer.output)
        pool: Downsampling = "avg_pool" if downsampling == "stride" else downsampling
        alike = [Attempt("native", None, stride)] if stride == native else []
        # In a network that halves by pooling (VGG), a layer pools what its convolution gives. A copy pools what it
        # reads, also where the layer has a pooling of its own: the convolution then works at the lower resolution.
        attempts = alike if stride == 1 or downsampling == "stride" else []
        if stride > 1:
            rest = Front(spec.channels, spec.channels, pool, spec.layout, stride // 2) if stride > 2 else None
            strided = Attempt("strided", rest, stride)
            pooled = Attempt("unit", Front(spec.channels, spec.channels, pool, spec.layout, stride), stride)
            attempts = [*attempts, strided, pooled] if downsampling == "stride" else [pooled, *alike, strided]
        elif native > 1:
            attempts.append(Attempt("unit", None, stride))
        # The last resort: an unchanged copy, whose input is brought to the channels and the resolution that it expects.
        front = Front(
            spec.channels,
            layer.input.channels,
            pool if stride > native else None,
            spec.layout,
            max(2, stride // native),
        )
        attempts.append(Attempt("adapter", front, 1))
        return attempts

    def _signature(self, index: int) -> Hashable:
        """Return what two layers must have in common for one recipe to serve both."""
        if index not in self._signatures:
            body, shapes, captured = self.body(index), self.network.shapes, self.network.captured
            parts = []
            for node in body.nodes:
                target: object = node.target if node.op.startswith("call") else node.op
                module = captured.module(node)
                if module is not None:
                    tensors = (*module.named_parameters(), *module.named_buffers())
                    target = (type(module), repr(module), tuple((name, tuple(t.shape)) for name, t in tensors))
                references = arguments_of(node, lambda parent: _reference(body, parent))
                parts.append((node.op, target, repr(references), shapes.specs[node.name]))
            read = tuple(shapes.specs[name] for name in (body.entry, *sorted(body.others)))
            self._signatures[index] = (tuple(parts), read, body.position[body.exit])
        return self._signatures[index]


def _reference(body: Body, node: fx.Node) -> object:
    """Return what stands for an argument in a signature: where it is computed, not what it is called."""
    if node.name in body.measured:
        return body.measured[node.name]
    return -1 if body.reads(node.name) else body.position.get(node.name, -2)
