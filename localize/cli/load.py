"""Localize a model by name, without memory for its parameters where that is enough."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import nn

from localize.api import localize
from localize.bench.zoo import example_of, find_model
from localize.obstacles import Obstacle
from localize.obstacles import check as obstacles_of
from localize.runtime.local_graph import LocalGraphModule
from passes.errors import LocalizeError


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A model by name, and how to localize it."""

    name: str
    """Name of the model, as :func:`~localize.bench.zoo.find_model` takes it."""
    keywords: Mapping[str, Any]
    """Keyword arguments of :func:`localize.localize`."""
    classes: int | None = None
    """Number of outputs of the model; None leaves it to the model."""
    image_size: int | None = None
    """Pixels a side; None for the size that the model is meant for."""
    seed: int = 0
    """Seed of all weights."""


@dataclass(frozen=True, slots=True)
class Localization:
    """The result of localizing a model."""

    local: LocalGraphModule | None
    """The localized model; None if it does not localize."""
    obstacles: tuple[Obstacle, ...]
    """Obstacles to localizing the model; for a model that localizes, submodules that were kept whole."""
    seconds: float
    """Seconds that localizing took."""


def try_to_localize(asked: ModelRequest) -> Localization:
    """Localize a model, or list every obstacle.

    Raises:
        ModelError: There is no such model, or it cannot be built.
    """
    last = None
    for model, example in _built(asked):
        last = localize_or_explain(model, asked.keywords, example, asked.seed)
        if last.local is not None:
            break
    assert last is not None
    return last


def localized(asked: ModelRequest) -> LocalGraphModule:
    """Localize a model without memory for its parameters; a user's own model with values if it needs them.

    Raises:
        LocalizeError: The model cannot be built or localized.
    """
    refused = None
    for model, example in _built(asked):
        try:
            return _localize(model, asked.keywords, example, asked.seed)
        except LocalizeError as error:
            refused = error
    assert refused is not None
    raise refused


def with_values(asked: ModelRequest) -> LocalGraphModule:
    """Localize a model that has weights with values.

    Raises:
        LocalizeError: The model cannot be built or localized.
    """
    factory = find_model(asked.name)
    torch.manual_seed(asked.seed)
    model = factory.build(asked.classes, asked.image_size)
    return _localize(model, asked.keywords, example_of(model, asked.image_size or factory.image_size), asked.seed)


def localize_or_explain(
    model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None, seed: int = 0
) -> Localization:
    """Localize a model that is built, or list every obstacle."""
    start = perf_counter()
    try:
        local = _localize(model, keywords, example, seed)
    except LocalizeError as error:
        seconds = perf_counter() - start
        reached = Obstacle(error.where or type(model).__name__, error.source, error.reason, error.remedy or "")
        known = _obstacles(model, keywords, example)
        if all((item.path, item.what) != (reached.path, reached.what) for item in known):
            known.append(reached)
        return Localization(None, tuple(known), seconds)
    seconds = perf_counter() - start
    return Localization(local, tuple(_obstacles(model, keywords, example) if local.plan.opaque else ()), seconds)


def _built(asked: ModelRequest) -> Iterator[tuple[nn.Module, torch.Tensor | None]]:
    """Yield the model without values, then a user's own model with values: its forward may depend on them."""
    factory = find_model(asked.name)
    for meta in (True, False) if ".py:" in asked.name else (True,):
        model = factory.build(asked.classes, asked.image_size, meta=meta)
        yield model, example_of(model, asked.image_size or factory.image_size)


def _localize(
    model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None, seed: int
) -> LocalGraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model's own code may warn when it is traced, which says nothing to the user
        return localize(model, example_inputs=example, seed=seed, **keywords)


def _obstacles(model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None) -> list[Obstacle]:
    cuts = {name: keywords[name] for name in ("max_cut", "granularity", "output") if name in keywords}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return obstacles_of(model, example_inputs=example, **cuts)
