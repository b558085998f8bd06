"""Errors of a network in the user's terms: an input that it was not planned for, and too little memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from localize.plan.memory_forecast import MemoryForecast
from localize.plan.plan import Plan
from localize.text import format_bytes
from passes.errors import InputError, OutOfMemoryError, first_line, ran_out_of_memory


def explain_input(plan: Plan, x: torch.Tensor, error: Exception) -> None:
    """Raise a clearer error if a step failed on an input that the model was not planned for.

    Raises:
        InputError: The shape or type of ``x`` is not the planned one, and memory was not the cause.
    """
    spec = plan.input
    if not ran_out_of_memory(error) and (tuple(x.shape[1:]) != spec.shape[1:] or x.dtype != spec.dtype):
        got = f"{'x'.join(map(str, x.shape[1:]))}, {str(x.dtype).removeprefix('torch.')}"
        raise InputError(
            f"the model does not run on an input of {got}",
            why=first_line(error),
            remedy=f"It was localized for {spec}, {str(spec.dtype).removeprefix('torch.')}; give example_inputs of "
            "another shape to localize() if the model takes one",
        ) from error


@contextmanager
def explaining_memory(
    plan: Plan, x: torch.Tensor, doing: str, index: int | None = None, settings: Mapping[str, Any] | None = None
) -> Iterator[None]:
    """Explain out-of-memory errors that are raised inside. Arguments are those of :func:`explain_memory`.

    Raises:
        OutOfMemoryError: What runs inside ran out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        explain_memory(plan, x, doing, index, error, settings)
        raise


def explain_memory(
    plan: Plan,
    x: torch.Tensor,
    doing: str,
    index: int | None,
    error: Exception,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Raise a clearer error if a step ran out of memory: what took the memory, and what would take less.

    Args:
        plan: The plan of the model that is trained.
        x: The batch.
        doing: ``"forward pass"``, ``"backward pass"``, ``"update"``.
        index: Index of the local module; None if the error belongs to no single one.
        error: The error that was raised.
        settings: Settings of the training step, as :meth:`Plan.memory` takes them.

    Raises:
        OutOfMemoryError: ``error`` says that memory ran out.
    """
    if not ran_out_of_memory(error) or isinstance(error, OutOfMemoryError):
        return
    amp = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    settings = {"amp": amp, **(settings or {})}
    where = "" if index is None else f" of local module {index} ({plan.modules[index].name})"
    raise OutOfMemoryError(
        f"out of memory in the {doing}{where}, with a batch of {x.shape[0]} x {'x'.join(map(str, x.shape[1:]))}",
        why=first_line(error),
        remedy=f"{_forecast(plan, x, settings)}{_remedy(plan, x, settings['amp'])}",
    ) from error


def _forecast(plan: Plan, x: torch.Tensor, settings: Mapping[str, Any]) -> str:
    """Return a sentence on the forecast peak of such a step; an empty string if there is no forecast."""
    if tuple(x.shape[1:]) != plan.input.shape[1:]:
        return ""
    try:
        forecast: MemoryForecast = plan.memory(x.shape[0], rivals=False, **settings)
    except Exception:  # an error here must not hide the one that is being explained
        return ""
    module = f"module {forecast.binding.index} ({forecast.binding.name})" if forecast.binding else "the update"
    return f"The step's peak is forecast to be {format_bytes(forecast.peak)} of tensors, in {module}: {forecast.at}. "


def _remedy(plan: Plan, x: torch.Tensor, amp: torch.dtype | None) -> str:
    """Return a sentence that lists what would take less memory."""
    options = []
    if x.shape[0] > 1:
        options.append("a smaller batch")
    if amp is None:
        options.append("autocast to bfloat16 (amp)")
    if any(m.auxiliary and m.auxiliary.depth > 1 for m in plan.modules) and plan.options.get("d", 1) > 1:
        options.append(f"auxiliary networks of less depth than d={plan.options['d']}")
    if not all(module.recompute for module in plan.modules):
        options.append("recomputed activations (recompute=True, or memory_budget=)")
    if plan.method == "bp":
        options.append("method='checkpoint', or local losses (method='auglocal')")
    return f"What takes less: {'; '.join(options) or 'a smaller model'}; plan.memory(batch_size) says how much"
