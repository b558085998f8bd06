"""``check()`` lists every obstacle to localizing a model, at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from localize.compiler.inputs import input_of, leaf_policy, require_module
from passes.capture.fidelity import capture_verified
from passes.errors import LocalizeError
from passes.ir import Opaque, TensorSpec
from passes.partition.granularity import Granularity
from passes.partition.partition import partition
from passes.shapes.infer import infer_shapes
from passes.structure import Output


@dataclasses.dataclass(frozen=True, slots=True)
class Obstacle:
    """Something that keeps a model, or a part of it, from being localized."""

    path: str
    """Module path in the model; its class name for the model as a whole."""
    source: str | None
    """Source line, ``file.py:12``."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.source})' if self.source else ''}: {self.what}. {self.remedy}"


def check(
    model: nn.Module,
    *,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
    output: Output | None = None,
    joint: bool = False,
    verify: bool = True,
) -> list[Obstacle]:
    """List every obstacle to localizing ``model``, at once; the list is empty if there is none. Nothing is changed.

    >>> from localize.models import cifar_resnet
    >>> check(cifar_resnet(8), example_inputs=torch.empty(2, 3, 32, 32))
    []

    Args:
        model: Any module.
        example_inputs: As in :func:`localize`.
        max_cut: As in :func:`localize`.
        granularity: As in :func:`localize`.
        output: As in :func:`localize`.
        joint: Whether :func:`localize` will get an ``output_criterion``, which allows any returned values.
        verify: As in :func:`localize`.

    Returns:
        Obstacles, each with module path, source line and remedy. Submodules that cannot be traced are listed although
        the model can be localized with them kept whole.

    Raises:
        LocalizeError: ``model`` is not an ``nn.Module``, or ``example_inputs`` is not a tensor.
    """
    require_module(model)
    shape, dtype = input_of(model, example_inputs)
    obstacles: list[Obstacle] = []
    trainable = any(p.requires_grad for p in model.parameters())
    if not trainable:
        obstacles.append(
            Obstacle(
                type(model).__name__, None, "it has no trainable parameter", "Set requires_grad where it should learn"
            )
        )
    try:
        captured = capture_verified(model, leaf_policy(), output, TensorSpec(shape, dtype), verify, joint)
        obstacles += [_kept_whole(leaf) for leaf in captured.opaque]
        shapes = infer_shapes(captured, shape, dtype)
        if trainable:
            partition(captured, shapes, max_cut, granularity)
    except LocalizeError as error:
        obstacles += [_kept_whole(leaf) for leaf in getattr(error, "opaque", ())]
        obstacles.append(Obstacle(error.where or type(model).__name__, error.source, error.reason, error.remedy or ""))
    return obstacles


def _kept_whole(leaf: Opaque) -> Obstacle:
    return Obstacle(
        leaf.path,
        leaf.source,
        f"its forward cannot be traced ({leaf.reason}), so it is kept whole and never cut inside",
        "Move that code into a submodule of its own, if the rest should be cut",
    )
