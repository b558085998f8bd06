"""Placement: copies of layers in a row, each fitted to the output of the one before it, downsampled by a policy."""

from __future__ import annotations

from collections.abc import Sequence

from passes.adapt.adapter import Adapter
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.resolution import Policy, owed, performed
from passes.errors import AdaptError
from passes.ir import TensorSpec
from passes.layers.adapters import Downsampling


def place(adapter: Adapter, layer: int, selected: Sequence[int], policy: Policy) -> tuple[list[CopyRecipe], list[str]]:
    """Fit the selected layers in a row, the first to the output of ``layer``.

    Where a layer cannot be fitted, the nearest one that can takes its place: a later one first, then an earlier one.

    Args:
        adapter: Fits layers of the network.
        layer: The layer whose output the first copy reads.
        selected: Indices of the layers to copy, in order.
        policy: When a copy downsamples.

    Returns:
        The recipes, and notes in words on layers that were left out or replaced.
    """
    network = adapter.network
    downsampling = adapter.downsampling
    spec = network.layers[layer].output
    recipes: list[CopyRecipe] = []
    notes: list[str] = []
    before, carried = layer, 0
    for position, source in enumerate(selected):
        after = next((other for other in selected[position + 1 :] if other > source), len(network.layers))
        candidates = [*range(source, after), *range(source - 1, before, -1)]
        recipe, halvings, failure = _nearest(adapter, spec, carried, before, candidates, policy, downsampling)
        if recipe is None:
            notes.append(f"layer {source} left out ({failure})")
            continue
        if recipe.source != source:
            notes.append(f"layer {recipe.source} instead of {source} ({failure})")
        recipes.append(recipe)
        spec, before = recipe.output, recipe.source
        # A copy halves once at most, so what it leaves undone is owed by the next.
        carried = max(0, halvings - recipe.stride.bit_length() + 1)
    return recipes, notes


def _nearest(
    adapter: Adapter,
    spec: TensorSpec,
    carried: int,
    before: int,
    candidates: Sequence[int],
    policy: Policy,
    downsampling: Downsampling,
) -> tuple[CopyRecipe | None, int, str]:
    """Return the recipe of the first candidate that fits ``spec``, the halvings owed, and the first failure.

    The recipe is None where no candidate can be fitted.
    """
    failure = ""
    for candidate in candidates:
        halvings = owed(policy, adapter.network, spec, carried, before, candidate)
        try:
            stride = 2 ** performed(policy, halvings)
            return adapter.adapt(candidate, spec, stride, downsampling), halvings, failure
        except AdaptError as error:
            failure = failure or str(error.why)
    return None, 0, failure
