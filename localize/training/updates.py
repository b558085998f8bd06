"""How gradients become updates: when, clipped to which norm, and with which average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.optimizers import ModuleOptimizers, owned_parameters, per_module
from localize.training.averaging import Average
from localize.training.recipe import Recipe


class Updates:
    """Turns gradients into updates as a recipe says.

    Args:
        local: The model, already on its device: optimizers refer to its tensors.
        recipe: The settings.
        fused: Whether one kernel updates all parameters of an optimizer.
    """

    def __init__(self, local: LocalGraphModule, recipe: Recipe, *, fused: bool = False) -> None:
        self._clip = recipe.clip
        self._owned = owned_parameters(local) if recipe.clip_by == "module" or recipe.step == "module" else {}
        self._parameters = [p for p in local.parameters() if p.requires_grad]
        self._whole: torch.optim.Optimizer | None = None
        self._parts: ModuleOptimizers | None = None
        if recipe.step == "module":
            self._parts = per_module(local, partial(recipe.build_optimizer, fused=fused))
        else:
            self._whole = recipe.build_optimizer(self._parameters, fused)
        self._by_module = recipe.clip_by == "module"
        self.average = Average(local.primary, recipe.ema) if recipe.ema is not None else None
        self.lr = recipe.peak_lr

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        self.lr = lr
        for optimizer in [self._whole] if self._whole else (self._parts or {}).values():
            for group in optimizer.param_groups:
                group["lr"] = lr

    def after_module(self, name: str) -> None:
        """Update a local module after its last backward of a batch, if modules are updated one by one.

        No autograd graph may be alive: it would keep the parameters' values of before the update.
        """
        if self._parts is not None:
            self._clip_to(self._owned[name])
            self._parts.step(name)

    def after_batch(self) -> None:
        """Update what has not been updated yet, after the last module's backward of a batch."""
        if self._whole is not None:
            for group in self._owned.values() if self._by_module else [self._parameters]:
                self._clip_to(group)
            self._whole.step()
            self._whole.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update()

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the primary network has the weights that are evaluated and exported."""
        return nullcontext() if self.average is None else self.average.in_place()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer, or of each local module's optimizer."""
        if self._parts is not None:
            return self._parts.state_dict()
        assert self._whole is not None, "there are either several optimizers or one"
        return self._whole.state_dict()

    def load_state_dict(self, state: Mapping[str, Any], average: Mapping[str, Tensor] | None) -> None:
        """Take over what :meth:`state_dict` returned, and the state of the average."""
        if self._parts is not None:
            self._parts.load_state_dict(state)
        elif self._whole is not None:
            self._whole.load_state_dict(dict(state))
        if self.average is not None and average is not None:
            self.average.load_state_dict(average)

    def _clip_to(self, parameters: list[nn.Parameter]) -> None:
        if self._clip is not None and parameters:
            nn.utils.clip_grad_norm_(parameters, self._clip)


def micro_batches(images: Tensor, labels: Tensor, parts: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Split a batch into consecutive parts whose sizes differ by at most one image.

    Args:
        images: Images, (N, C, H, W).
        labels: Labels, (N,).
        parts: Number of parts; a batch of fewer images has as many parts as images.

    Yields:
        Images and labels of a part, and its share of the batch, 0..1.
    """
    count = min(parts, len(labels))
    for some, theirs in zip(images.tensor_split(count), labels.tensor_split(count), strict=True):
        yield some, theirs, len(theirs) / len(labels)
