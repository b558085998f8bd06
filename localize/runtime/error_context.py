"""Errors from within a network in the user's terms: an input not planned for, and memory that does not suffice."""

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
    """Puts an error in terms of the input, if the input is not what was planned for.

    Raises:
        InputError: It is not.
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
    """Inside, an error for want of memory says more.

    Raises:
        OutOfMemoryError: As :func:`explain_memory` says.
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
    """Where an error is for want of memory, says what took it and what would take less.

    Args:
        plan: The plan of the model that is trained.
        x: The batch.
        doing: ``"forward pass"``, ``"backward pass"``, ``"update"``.
        index: Of the local module.
        error: What was raised.
        settings: Of the training step, as :meth:`Plan.memory` takes them.

    Raises:
        OutOfMemoryError: It is for want of memory.
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
    """What sets the peak of such a step, in a sentence; nothing where that cannot be told."""
    if tuple(x.shape[1:]) != plan.input.shape[1:]:
        return ""
    try:
        found: MemoryForecast = plan.memory(x.shape[0], rivals=False, **settings)
    except Exception:  # whatever goes wrong here must not hide what went wrong there
        return ""
    module = f"module {found.binding.index} ({found.binding.name})" if found.binding else "the update"
    return f"The step's peak is forecast to be {format_bytes(found.peak)} of tensors, in {module}: {found.at}. "


def _remedy(plan: Plan, x: torch.Tensor, amp: Any) -> str:
    """What takes less memory."""
    options = []
    if x.shape[0] > 1:
        options.append("a smaller batch")
    if amp is None:
        options.append("autocast to bfloat16 (amp)")
    if any(m.auxiliary and m.auxiliary.depth > 1 for m in plan.modules) and plan.options.get("d", 1) > 1:
        options.append(f"auxiliary networks of less depth than d={plan.options['d']}")
    if not all(module.recompute for module in plan.modules):
        options.append("activations computed anew (recompute=True, or memory_budget=)")
    if plan.method == "bp":
        options.append("method='checkpoint', or local losses (method='auglocal')")
    return f"What takes less: {'; '.join(options) or 'a smaller model'}; plan.memory(batch_size) says how much"
