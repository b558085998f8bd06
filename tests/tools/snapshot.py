"""Everything about a model that localizing it must leave alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

REGISTRIES = ("_parameters", "_buffers", "_modules")


def _tensor(value: torch.Tensor | None) -> tuple[Any, ...] | None:
    if value is None:
        return None
    grad = value.grad if value.is_leaf else None
    return id(value), value.data_ptr(), value._version, value.requires_grad, id(grad), tuple(value.shape)


def _plain(value: Any) -> Any:
    """Return the value of an attribute: containers by content, the rest by identity and, if simple, by value."""
    if isinstance(value, torch.Tensor):
        return _tensor(value)
    if isinstance(value, dict):
        return id(value), {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return id(value), [_plain(item) for item in value]
    return (id(value), value) if isinstance(value, (int, float, str, bool, type(None))) else id(value)


class Snapshot:
    """Taken of a model; :meth:`differences` says what has changed since, torch's global generator included."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.values = {name: value.clone() for name, value in model.state_dict().items()}
        self.state = self._read()

    def _read(self) -> dict[str, Any]:
        found: dict[str, Any] = {"generator": torch.get_rng_state().tolist()}
        for path, module in self.model.named_modules():
            found[path] = {
                "id": id(module),
                "type": type(module),
                "forward": getattr(module.forward, "__func__", module.forward),
                **{f".{name}": _plain(value) for name, value in module.__dict__.items() if name not in REGISTRIES},
                **{f".{name}": list(module.__dict__[name]) for name in REGISTRIES},
                **{name: _tensor(value) for name, value in module._parameters.items()},
                **{name: _tensor(value) for name, value in module._buffers.items()},
                **{name: id(child) for name, child in module._modules.items()},
            }
        return found

    def differences(self) -> list[str]:
        """Return the names of attributes that have changed."""
        now = self._read()
        found = [f"{path} appeared" for path in now if path not in self.state]
        for path, before in self.state.items():
            after = now.get(path)
            if not isinstance(before, dict) or not isinstance(after, dict):
                found += [path] if before != after else []
                continue
            found += [f"{path}: {key}" for key in {*before, *after} if before.get(key) != after.get(key)]
        state = self.model.state_dict()
        if list(state) != list(self.values):
            return [*found, "names of the state_dict"]
        return found + [
            f"value of {name}" for name, value in self.values.items() if not torch.equal(value, state[name])
        ]
