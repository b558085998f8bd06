"""A model by name, localized: without memory for its parameters, where that will do."""

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
class Asked:
    """A model, and how it is to be localized."""

    name: str
    """As :func:`~localize.bench.zoo.find_model` takes it."""
    keywords: Mapping[str, Any]
    """Of :func:`localize.localize`."""
    classes: int | None = None
    """Outputs of the model; by default its own choice."""
    image_size: int | None = None
    """Pixels a side; by default what the model is meant for."""
    seed: int = 0
    """Of all weights."""


@dataclass(frozen=True, slots=True)
class Found:
    """What localizing a model came to."""

    local: LocalGraphModule | None
    """None where it does not localize."""
    obstacles: tuple[Obstacle, ...]
    """What is in the way; if it localizes nevertheless, submodules that were kept whole."""
    seconds: float
    """That localizing took."""


def found(asked: Asked) -> Found:
    """Localizes a model, or lists all that is in the way.

    Raises:
        ModelError: There is no such model, or it cannot be built.
    """
    last = None
    for model, example in _built(asked):
        last = tried(model, asked.keywords, example, asked.seed)
        if last.local is not None:
            break
    assert last is not None
    return last


def localized(asked: Asked) -> LocalGraphModule:
    """The model, localized without memory for its parameters; one of the user's own with it, if it must be.

    Raises:
        LocalizeError: It cannot be built or localized.
    """
    refused = None
    for model, example in _built(asked):
        try:
            return _localize(model, asked.keywords, example, asked.seed)
        except LocalizeError as error:
            refused = error
    assert refused is not None
    raise refused


def with_values(asked: Asked) -> LocalGraphModule:
    """The model, localized with weights.

    Raises:
        LocalizeError: It cannot be built or localized.
    """
    factory = find_model(asked.name)
    torch.manual_seed(asked.seed)
    model = factory.build(asked.classes, asked.image_size)
    return _localize(model, asked.keywords, example_of(model, asked.image_size or factory.image_size), asked.seed)


def tried(model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None, seed: int = 0) -> Found:
    """Localizes a model that is built, or lists all that is in the way."""
    start = perf_counter()
    try:
        local = _localize(model, keywords, example, seed)
    except LocalizeError as error:
        seconds = perf_counter() - start
        reached = Obstacle(error.where or type(model).__name__, error.source, error.reason, error.remedy or "")
        known = _obstacles(model, keywords, example)
        if all((item.path, item.what) != (reached.path, reached.what) for item in known):
            known.append(reached)
        return Found(None, tuple(known), seconds)
    seconds = perf_counter() - start
    return Found(local, tuple(_obstacles(model, keywords, example) if local.plan.opaque else ()), seconds)


def _built(asked: Asked) -> Iterator[tuple[nn.Module, torch.Tensor | None]]:
    """The model without values, then, if it is the user's own, with them: forwards may depend on them."""
    factory = find_model(asked.name)
    for meta in (True, False) if ".py:" in asked.name else (True,):
        model = factory.build(asked.classes, asked.image_size, meta=meta)
        yield model, example_of(model, asked.image_size or factory.image_size)


def _localize(
    model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None, seed: int
) -> LocalGraphModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of a model's own code on being traced say nothing to who asks for it
        return localize(model, example_inputs=example, seed=seed, **keywords)


def _obstacles(model: nn.Module, keywords: Mapping[str, Any], example: torch.Tensor | None) -> list[Obstacle]:
    cuts = {name: keywords[name] for name in ("max_cut", "granularity", "output") if name in keywords}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return obstacles_of(model, example_inputs=example, **cuts)
