"""Context managers that put a model and the random number generators back as they were."""

from __future__ import annotations

import contextlib
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


@contextlib.contextmanager
def untouched(model: nn.Module, *, hooks: bool = False) -> Iterator[None]:
    """Restore every attribute, buffer, hook and mode flag of every submodule on leaving.

    Inside, buffers are copies: a fake mode that admits real tensors runs in-place operations on them for real, so that
    batch norm's counter would move. Hooks are silent, since they expect real runs.

    Args:
        model: The model.
        hooks: Whether hooks run inside, as part of what the model computes.

    >>> model = nn.BatchNorm1d(3)
    >>> with untouched(model):
    ...     _ = model.eval()(torch.randn(2, 3))
    >>> model.training
    True
    """
    registries = ("_parameters", "_buffers", "_modules")
    saved = [
        (module, dict(module.__dict__), {name: dict(module.__dict__[name]) for name in registries})
        for module in model.modules()
        if not isinstance(module, torch.jit.ScriptModule)
    ]
    copies: dict[int, torch.Tensor] = {}
    try:
        for module, attributes, _ in saved:
            buffers = module.__dict__["_buffers"]
            for name, buffer in buffers.items():
                if buffer is not None:
                    buffers[name] = copies.setdefault(id(buffer), buffer.detach().clone())
            # Hooks of the user must not see proxies and fake tensors.
            if not hooks:
                module.__dict__.update({name: OrderedDict() for name in attributes if is_hook_table(name)})
        yield
    finally:
        for module, attributes, tables in saved:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, table in tables.items():
                module.__dict__[name].clear()
                module.__dict__[name].update(table)


@contextlib.contextmanager
def same_randomness(seed: int | None = None) -> Iterator[None]:
    """Restore the states of torch's, Python's and numpy's random number generators on leaving.

    Args:
        seed: Where the generators start inside; None leaves them where they are.
    """
    numbers = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    state = numpy.random.get_state() if numpy is not None else None
    try:
        # Not torch.manual_seed: where CUDA has not started yet, that would decide how its generators start.
        devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            if seed is not None:
                for generator in (torch.default_generator, *(torch.cuda.default_generators[i] for i in devices)):
                    generator.manual_seed(seed)
                random.seed(seed)
                if numpy is not None:
                    numpy.random.seed(seed)
            yield
    finally:
        random.setstate(numbers)
        if numpy is not None:
            numpy.random.set_state(state)


def is_hook_table(name: str) -> bool:
    """Return whether a module's attribute of this name is a table of hooks."""
    return "_hooks" in name and name.startswith(("_forward", "_backward"))


def set_mode(model: nn.Module, training: bool) -> None:
    """Set the ``training`` flag of every submodule.

    ``model.train()`` is not called: classes override it, to keep a norm frozen say, and theirs may do more.
    """
    for module in model.modules():
        module.training = training
