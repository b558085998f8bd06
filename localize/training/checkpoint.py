"""Checkpoints of a run and exports of its weights: written whole or not at all, read without executing code."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from localize.files import atomic_path, atomic_write
from passes.errors import LocalizeError


class CheckpointError(LocalizeError):
    """A checkpoint cannot be read, or belongs to another run."""


FORMAT = 1
"""Version of the checkpoint's layout."""

SHOWN_DIFFERENCES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The epoch and the step in it that a run does next; both count from 0."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """Everything a run needs to continue as if it had never stopped.

    The learning rate is a function of the position, and batches are of (seed, epoch, step): neither has a state.
    """

    local: Mapping[str, Tensor]
    """State dict of the localized model: primary and auxiliary networks."""

    optimizer: Mapping[str, Any]
    plan: str
    """The plan as JSON."""

    settings: Mapping[str, Any]
    """Settings of the run, by name."""

    position: Position
    history: list[dict[str, Any]]
    """Metrics of each epoch that is done."""

    partial: Mapping[str, Any]
    """Metrics gathered so far in the epoch that ``position`` is in."""

    random_state: Mapping[str, Any]
    """States of the random number generators: layers such as dropout draw from them."""

    average: Mapping[str, Tensor] | None = None
    """Averaged weights of the primary network; None if the run keeps no average."""


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of torch's and Python's generators, as plain values and tensors."""
    version, internal, gauss = random.getstate()
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": [version, list(internal), gauss]}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Set the states that :func:`random_state` returned."""
    torch.set_rng_state(state["torch"])
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def save_checkpoint(checkpoint: Checkpoint, path: str | Path) -> None:
    """Write a checkpoint whole or not at all.

    Raises:
        OSError: The folder cannot be written to, or the disk is full; an earlier checkpoint at ``path`` stays.
    """
    content = {
        "format": FORMAT,
        "torch": str(torch.__version__),  # torch's own string class, which weights_only refuses
        "local": dict(checkpoint.local),
        "optimizer": dict(checkpoint.optimizer),
        "plan": checkpoint.plan,
        "settings": dict(checkpoint.settings),
        "position": [checkpoint.position.epoch, checkpoint.position.step],
        "history": checkpoint.history,
        "partial": dict(checkpoint.partial),
        "random_state": dict(checkpoint.random_state),
        "average": None if checkpoint.average is None else dict(checkpoint.average),
    }
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, as data alone: no code in it is executed.

    Raises:
        CheckpointError: The file does not exist, is damaged, or has another version of the layout.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}", remedy="Start the run without resuming it") from error
    except pickle.UnpicklingError as error:  # torch's own text advises to load the file without this protection
        raise CheckpointError(
            f"{path} is not a checkpoint of this program", why="it holds more than tensors and plain values"
        ) from error
    except Exception as error:  # torch.load raises whatever its zip reader does
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise CheckpointError(f"{path} is not a checkpoint of this program, or is damaged", why=why) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        layout = content.get("format") if isinstance(content, dict) else None
        raise CheckpointError(f"{path} has layout {layout!r}, this version reads {FORMAT}")
    epoch, step = content["position"]
    return Checkpoint(
        local=content["local"],
        optimizer=content["optimizer"],
        plan=content["plan"],
        settings=content["settings"],
        position=Position(epoch=epoch, step=step),
        history=content["history"],
        partial=content["partial"],
        random_state=content["random_state"],
        average=content.get("average"),  # files of earlier versions have no such entry
    )


def check_same_run(checkpoint: Checkpoint, plan: str, settings: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint of another run, and name what differs.

    Args:
        checkpoint: The checkpoint to resume from.
        plan: Plan of the present model, as JSON.
        settings: Settings of the present run, by name.
        path: File of the checkpoint, for the message.

    Raises:
        CheckpointError: Plan or settings differ from those in the checkpoint.
    """
    differing = list(differences(dict(checkpoint.settings), dict(settings)))
    # One other setting changes the plan in many places: then the setting alone is named.
    differing = differing or list(differences(json.loads(checkpoint.plan), json.loads(plan), "plan"))
    if not differing:
        return
    shown = "; ".join(differing[:SHOWN_DIFFERENCES])
    more = f"; and {len(differing) - SHOWN_DIFFERENCES} more" if len(differing) > SHOWN_DIFFERENCES else ""
    raise CheckpointError(
        f"checkpoint {path} belongs to another run: {shown}{more}",
        remedy="Resume with the same settings, or start again in another folder",
    )


def differences(saved: Any, now: Any, name: str = "") -> Iterator[str]:
    """Yield one line for each place where two JSON-like values differ, by dotted name.

    >>> list(differences({"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}))
    ['lr is 0.1 there and 0.2 here']
    """
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        for key in [*saved, *(key for key in now if key not in saved)]:
            inner = f"{name}.{key}" if name else str(key)
            yield from differences(saved.get(key, "nothing"), now.get(key, "nothing"), inner)
    elif isinstance(saved, list | tuple) and isinstance(now, list | tuple):
        if len(saved) != len(now):
            yield f"{name} has {len(saved)} entries there and {len(now)} here"
            return
        for index, (left, right) in enumerate(zip(saved, now, strict=True)):
            yield from differences(left, right, f"{name}[{index}]")
    elif saved != now:
        yield f"{name} is {saved} there and {now} here"


def save_primary(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a plain model's weights as safetensors, under the model's own names.

    Tensors that share memory (tied weights) are written once for each of their names, so that every loader finds
    all names of ``model.state_dict()``: ``model.load_state_dict(safetensors.torch.load_file(path))``.

    Args:
        model: The model.
        path: The file; written whole or not at all.
        metadata: Texts by name for the file's header.
    """
    from safetensors.torch import save

    state = {
        name: value.detach().to("cpu", copy=True).contiguous()
        for name, value in model.state_dict().items()
        if isinstance(value, Tensor)  # a module's extra state may be anything; safetensors holds tensors
    }
    atomic_write(path, lambda temporary: temporary.write_bytes(save(state, metadata=dict(metadata or {}))))
