"""Load trained weights from a file into a localized model. No code in the file is executed."""

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
"""Most tensors that an error names."""


class WeightsError(LocalizeError):
    """A file does not hold weights, or holds those of another model."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The weights in a file."""

    primary: Mapping[str, Tensor] | None = None
    """Tensors of the primary network, by its own names."""
    local: Mapping[str, Tensor] | None = None
    """Tensors of the whole localized model, auxiliary networks included, where the file is a checkpoint."""
    average: Mapping[str, Tensor] | None = None
    """Averaged weights of the primary network. They replace its weights, as they do in the evaluation of a run."""


def read_weights(path: Path) -> Weights:
    """Read safetensors, a checkpoint of a run, or a plain file of ``state_dict()``.

    Raises:
        WeightsError: The file does not exist, is damaged, or does not hold weights.
    """
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    if path.suffix == ".safetensors":
        return Weights(_safetensors(path))
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own text advises to load the file without this protection
        raise WeightsError(
            f"{path} is not a file of weights", why="it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch.load raises whatever its zip reader does
        raise WeightsError(f"{path} is not a file of weights, or is damaged", why=first_line(error)) from error
    if isinstance(content, dict) and {"local", "plan", "position"} <= content.keys():
        checkpoint = load_checkpoint(path)
        return Weights(local=checkpoint.local, average=checkpoint.average)
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise WeightsError(f"{path} is not a file of weights", why="it holds no tensors by name")
    return Weights(content)


def load_weights(local: LocalGraphModule, weights: Weights, path: Path) -> None:
    """Load weights into a model that has values.

    Raises:
        WeightsError: The weights are those of another model.
    """
    if weights.local is not None:
        _load(local, weights.local, path)
    if weights.primary is not None:
        _load(local.primary, weights.primary, path)
    if weights.average is not None:  # the average has one name only for tied weights
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
        raise WeightsError(f"{path} is not a safetensors file, or is damaged", why=first_line(error)) from error


def _load(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    other = [
        f"{name} is {_shape(state[name])} there and {_shape(own[name])} here"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems = [*other, *(f"{name} is not there" for name in missing), *(f"{name} is not here" for name in unknown)]
    if problems:
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise WeightsError(
            f"the weights in {path} are not this model's",
            why="; ".join(problems[:SHOWN]) + more,
            remedy="Give model, method, --depth, --classes and options as in the run that wrote them",
        )
    model.load_state_dict(dict(state), strict=False)  # such files have no extra states, which are not tensors


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"
