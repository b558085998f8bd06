"""``localize-cli memory``: the memory of a training step, module by module, and the largest batch that fits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import typer

from localize.cli.load import ModelRequest, localized
from localize.text import format_bytes, parse_bytes

_NAMES = {"bp": "backpropagation", "checkpoint": "backpropagation with checkpointing"}


def run_memory(
    asked: ModelRequest,
    batch_size: int,
    settings: Mapping[str, Any],
    budget: str | None,
    *,
    as_json: bool,
) -> None:
    """Print a forecast.

    Args:
        asked: The model.
        batch_size: Images per step.
        settings: Keyword arguments of :meth:`localize.Plan.memory`.
        budget: Memory to find the largest batch for, such as ``8GB``; None for no search.
        as_json: One JSON object in place of a table.

    Raises:
        LocalizeError: The model cannot be built or localized, or a setting is out of range.
    """
    limit = None if budget is None else parse_bytes(budget)
    forecast = localized(asked).plan.memory(batch_size, **settings)
    largest_batches = (
        {} if limit is None else {each.method: each.largest_batch(limit) for each in (forecast, *forecast.rivals)}
    )
    if as_json:
        largest = {} if limit is None else {"budget": limit, "largest_batch": largest_batches}
        typer.echo(json.dumps({"name": asked.name, **forecast.to_dict(), **largest}))
        return
    typer.echo(str(forecast))
    if limit is not None:
        typer.echo(f"\nlargest batch within {format_bytes(limit)}:")
        for line in _largest(largest_batches):
            typer.echo(f"  {line}")


def _largest(batches: Mapping[str, int]) -> list[str]:
    width = max(len(_NAMES.get(method, method)) for method in batches)
    return [f"{_NAMES.get(method, method):{width}}  {batch or 'none fits'}" for method, batch in batches.items()]
