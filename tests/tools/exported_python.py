"""A generated file, run where nothing but torch and the standard library can be imported, against the model."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import torch
from torch import nn

from localize import LocalGraphModule
from localize.export.python.source import write_python
from localize.export.request import Request, View

ALLOWED = {"torch", *sys.stdlib_module_names}


def source_of(local: LocalGraphModule) -> str:
    """Return the text of the generated file."""
    return write_python(Request(local, View())).decode("ascii")


def run(text: str) -> dict[str, Any]:
    """Return the names that the file defines."""

    def guarded(name: str, *args: Any, **kwargs: Any) -> Any:
        assert name.partition(".")[0] in ALLOWED, f"the file imports {name}"
        return builtins.__import__(name, *args, **kwargs)

    names: dict[str, Any] = {"__builtins__": {**vars(builtins), "__import__": guarded}, "__name__": "localized"}
    exec(compile(text, "localized.py", "exec"), names)
    return names


def rebuilt(local: LocalGraphModule, **given: Any) -> nn.Module:
    """Build the network of the file, with the weights of the localized one."""
    network: nn.Module = run(source_of(local))["Localized"](**given)
    network.load_state_dict(local.state_dict(), strict=True)
    return network


def assert_same_step(local: LocalGraphModule, network: nn.Module, x: torch.Tensor, y: Any, seed: int = 5) -> None:
    """Losses, logits, gradients, and buffers after the step are the same, bit for bit."""
    found: list[list[tuple[str, torch.Tensor, Any]]] = []
    for one in (local, network):
        one.zero_grad()
        torch.manual_seed(seed)
        outs = []
        for name, loss, logits in one.steps(x.clone(), y):
            loss.backward()
            outs.append((name, loss.detach(), logits))
        found.append(outs)
    assert [name for name, _, _ in found[0]] == [name for name, _, _ in found[1]]
    for (name, loss, logits), (_, loss_, logits_) in zip(*found, strict=True):
        assert torch.equal(loss, loss_), f"loss of {name}: {loss} and {loss_}"
        if isinstance(logits, torch.Tensor):
            assert torch.equal(logits, logits_), f"logits of {name}"
    _same(local.named_parameters(), network.named_parameters(), gradients=True)
    _same(local.named_buffers(), [(n, b) for n, b in network.named_buffers() if n in dict(local.named_buffers())])


def _same(ones: Any, others: Any, gradients: bool = False) -> None:
    ones, others = dict(ones), dict(others)
    assert [*ones] == [*others] if gradients else sorted(ones) == sorted(others)
    for name, one in ones.items():
        a, b = (one.grad, others[name].grad) if gradients else (one, others[name])
        assert (a is None) == (b is None), f"{name}: {a is not None} and {b is not None}"
        assert a is None or torch.equal(a, b), name
