"""``localize-cli memory``: what a training step takes, module by module, and the largest batch that fits."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import typer

from localize import LocalGraphModule, MemoryForecast, localize
from localize.runtime.examine import example_of
from localize.runtime.models import find_model
from localize.sizes import format_bytes, parse_bytes
from passes.errors import LocalizeError

_NAMES = {"bp": "backpropagation", "checkpoint": "backpropagation with checkpointing"}


def run_memory(
    name: str,
    keywords: Mapping[str, Any],
    classes: int | None,
    image_size: int | None,
    batch_size: int,
    settings: Mapping[str, Any],
    budget: str | None,
    *,
    as_json: bool,
) -> None:
    """Prints a forecast.

    Args:
        name: The model's.
        keywords: Of :func:`localize.localize`.
        classes: Outputs of the model; by default its own choice.
        image_size: Pixels a side; by default what the model is meant for.
        batch_size: Images.
        settings: Of :meth:`localize.Plan.memory`.
        budget: Memory that the largest batch is to be found for.
        as_json: One JSON object in place of a table.

    Raises:
        LocalizeError: The model cannot be built or localized, or a setting is out of range.
    """
    limit = None if budget is None else parse_bytes(budget)
    forecast = _localized(name, keywords, classes, image_size).plan.memory(batch_size, **settings)
    found = {} if limit is None else {each.method: each.largest_batch(limit) for each in (forecast, *forecast.rivals)}
    if as_json:
        largest = {} if limit is None else {"budget": limit, "largest_batch": found}
        typer.echo(json.dumps({"name": name, **forecast.to_dict(), **largest}))
        return
    typer.echo(str(forecast))
    if limit is not None:
        typer.echo(f"\nlargest batch within {format_bytes(limit)}:")
        for line in _largest(forecast, found):
            typer.echo(f"  {line}")


def _localized(name: str, keywords: Mapping[str, Any], classes: int | None, image_size: int | None) -> LocalGraphModule:
    """The model, localized without memory for its parameters; one of the user's own with it, if it must be."""
    factory = find_model(name)
    for meta in (True, False):
        model = factory.build(classes, image_size, meta=meta)
        example = example_of(model, image_size or factory.image_size)
        with warnings.catch_warnings(), suppress(*([LocalizeError] if meta and ".py:" in name else [])):
            warnings.simplefilter("ignore")  # those of a model's own code on being traced
            return localize(model, example_inputs=example, seed=0, **keywords)
    raise AssertionError("unreachable")


def _largest(forecast: MemoryForecast, found: Mapping[str, int]) -> list[str]:
    width = max(len(_NAMES.get(method, method)) for method in found)
    return [f"{_NAMES.get(method, method):{width}}  {batch or 'none fits'}" for method, batch in found.items()]
