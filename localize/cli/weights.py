"""Trained weights from a file, loaded into a localized model. Nothing in the file is executed."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from localize.runtime.local_graph import LocalGraphModule
from localize.training.checkpoint import load_checkpoint
from passes.errors import LocalizeError, first_line

SHOWN = 3
"""Most names of tensors in an error."""


class WeightsError(LocalizeError):
    """A file holds no weights, or not this model's."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """What a file holds."""

    primary: Mapping[str, Tensor] | None = None
    """The primary network's tensors, by its own names."""
    local: Mapping[str, Tensor] | None = None
    """The localized model's in their place: auxiliary networks', too."""
    average: Mapping[str, Tensor] | None = None
    """Averages of the primary network's, which then count, as they do in a run."""


def read_weights(path: Path) -> Weights:
    """Reads safetensors, a checkpoint of a run, or a plain file of ``state_dict()``.

    Raises:
        WeightsError: There is no such file, or it holds no weights.
    """
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    if path.suffix == ".safetensors":
        return Weights(_safetensors(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's text would advise to load it all the same
        raise WeightsError(
            f"{path} is no file of weights", why="it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch.load raises whatever its zip reader does
        raise WeightsError(f"{path} is no file of weights, or is damaged", why=first_line(error)) from error
    if isinstance(content, dict) and {"local", "plan", "position"} <= content.keys():
        checkpoint = load_checkpoint(path)
        return Weights(local=checkpoint.local, average=checkpoint.average)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path} is no file of weights", why="it holds no tensors by name")
    return Weights(content)


def load_weights(local: LocalGraphModule, weights: Weights, path: Path) -> None:
    """Puts weights into a model that has values.

    Raises:
        WeightsError: They are not this model's.
    """
    if weights.local is not None:
        _load(local, weights.local, path)
    if weights.primary is not None:
        _load(local.primary, weights.primary, path)
    if weights.average is not None:  # which of tied weights has one name only
        _load(local.primary, {**local.primary.state_dict(), **weights.average}, path)


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(
            f"{path} needs safetensors to be read", why=str(error), remedy="pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except Exception as error:  # safetensors has an error class of its own for each kind of damage
        raise WeightsError(f"{path} is no safetensors file, or is damaged", why=first_line(error)) from error


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    other = [
        f"{name} is {_shape(state[name])} there and {_shape(own[name])} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    told = [*other, *(f"{name} is not there" for name in missing), *(f"{name} is not here" for name in unknown)]
    if told:
        more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
        raise WeightsError(
            f"the weights in {path} are not this model's",
            why="; ".join(told[:SHOWN]) + more,
            remedy="Give model, method, --depth, --classes and options as in the run that wrote them",
        )
    model.load_state_dict(dict(state), strict=False)  # extra states, which are no tensors, are in no such file


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
