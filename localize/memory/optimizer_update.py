"""Memory of an optimizer's update, from the second step on, when the optimizer has its state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from localize.memory.settings import StepSettings
from localize.memory.timeline import Event, Timeline


class Update(NamedTuple):
    """Memory events of one optimizer update."""

    events: list[Event]
    resident: int
    """Bytes that are alive during all of ``events``."""
    state: int
    """Bytes of the optimizer's state, such as momentum."""


def second_update(
    parameters: Sequence[nn.Parameter], settings: StepSettings, *, foreach: bool, mode: FakeTensorMode
) -> Update:
    """Record the second update of copies of the parameters.

    The update runs on the meta device, or on fake tensors where an optimizer does not run there (fused ones).
    Optimizers that update one parameter after the other get each pair of neighbouring forms once: the same events in a
    fraction of the time.

    Args:
        parameters: Parameters with their gradients; they are not changed.
        settings: How the step is run.
        foreach: Whether optimizers update all parameters at once, as on GPUs.
        mode: The mode that makes fake tensors.
    """
    counts = Counter(map(_form, parameters))
    one_by_one = isinstance(settings.optimizer, str) and not foreach
    chosen = _neighbours(parameters) if one_by_one else parameters
    for device, context in (("meta", nullcontext()), ("cpu", mode)):
        try:
            with _disable_current_modes(), context:
                return _run([_twin(p, device) for p in chosen], settings, foreach, counts if one_by_one else None)
        except (RuntimeError, NotImplementedError):
            if device == "cpu":
                raise
    raise AssertionError("unreachable")


def bytes_of(tensors: Iterable[object]) -> int:
    """Return the bytes of the tensors among some values; a storage that several share counts once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(storages.values())


def _run(
    parameters: list[nn.Parameter], settings: StepSettings, foreach: bool, counts: Counter[Hashable] | None
) -> Update:
    with Timeline() as timeline, timeline.paused():
        timeline.track(parameters, [p.grad for p in parameters])
        before = timeline.live
        optimizer = settings.make_optimizer(parameters)
        for group in optimizer.param_groups:
            if foreach and group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = True  # what torch chooses by the device of the parameters
        optimizer.step()
        resident = timeline.live
        with timeline.paused(False):
            optimizer.step()
    state = resident - before
    if counts is not None:
        sizes = {_form(p): bytes_of(tree_leaves(optimizer.state.get(p, {}))) for p in parameters}
        state = sum(sizes[form] * count for form, count in counts.items())
    return Update(timeline.events, resident, state)


def _form(parameter: nn.Parameter) -> Hashable:
    """Return everything about a parameter that the memory of its update depends on."""
    gradient = parameter.grad
    return (tuple(parameter.shape), parameter.stride(), parameter.dtype, gradient is not None and gradient.stride())


def _neighbours(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Select parameters so that each pair of forms that follow each other does so once.

    Pairs matter because what the update of one parameter leaves in a loop's variables is still alive during the update
    of the next. Parameters that are no such pair are kept apart by the smallest possible parameter.
    """
    chosen: list[nn.Parameter] = []
    seen: set[Hashable] = set()
    last = -1
    for index, parameter in enumerate(parameters):
        before = parameters[index - 1] if index else None
        pair = (None if before is None else _form(before), _form(parameter))
        if pair in seen:
            continue
        seen.add(pair)
        if before is not None and last != index - 1:
            chosen += [_smallest(), before]
        chosen.append(parameter)
        last = index
    return chosen


def _smallest() -> nn.Parameter:
    """Return a parameter that keeps others apart which do not follow each other."""
    made = nn.Parameter(torch.zeros(1, device="meta"))
    made.grad = torch.zeros(1, device="meta")
    return made


def _twin(parameter: nn.Parameter, device: str) -> nn.Parameter:
    """Return a parameter of the same form, with a gradient if the given one has one."""

    def like(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)

    made = nn.Parameter(like(parameter))
    made.grad = None if parameter.grad is None else like(parameter.grad)
    return made
