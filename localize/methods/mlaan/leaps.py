"""Leaps: copies of later layers in front of an auxiliary network, pulled towards the layers that they copy.

Zhang et al.: "MLAAN", AAAI 2025, section "Leap Augmented Modules", equations 6, 7 and 10. The pull follows every step
of an optimizer that holds a copy, by one hook of torch for all optimizers; nobody has to call it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from localize.methods.networks.blocks import AuxiliaryBlocks
from localize.methods.networks.local_loss import Batch, supervise

Pull = tuple[str, str, str]
"""Names of a parameter that is pulled and of the one that tells when (within :class:`Leaps`; mostly the same), and of
the primary network's parameter that it is pulled to."""


class Twinned(nn.Module):
    """A copy beside another of the same layer, which is not trained but pulled; their outputs are added.

    So the released code begins its leaps (``EMA_Net``).
    """

    def __init__(self, trained: nn.Module, pulled: nn.Module) -> None:
        super().__init__()
        self.trained = trained
        self.pulled = pulled.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of both."""
        result: torch.Tensor = self.trained(x) + self.pulled(x)
        return result


class Leaps(nn.Module):
    """An auxiliary network behind copies of later layers.

    Args:
        blocks: The copies, one behind the other.
        network: From what the last one gives to the prediction.
        pulls: Which parameters follow which of the primary network's.
    """

    def __init__(self, blocks: Sequence[nn.Module], network: nn.Module, pulls: Sequence[Pull]) -> None:
        super().__init__()
        self.blocks = AuxiliaryBlocks(*blocks)
        self.network = network
        self.pulls = tuple(pulls)

    def forward(self, features: torch.Tensor) -> Any:
        """The prediction."""
        return self.network(self.blocks(features))

    def supervise(self, batch: Batch, features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Prediction and local loss."""
        return supervise(self.network, batch, self.blocks(features))


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where a parameter is; ``.to()`` may put another there."""

    owner: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        found = self.owner._parameters[self.name]
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class _Pulled:
    momentum: float
    pulls: tuple[tuple[_Slot, _Slot, _Slot], ...]


_PULLED: weakref.WeakKeyDictionary[object, _Pulled] = weakref.WeakKeyDictionary()
"""What follows what, in each network there is. One hook serves all, and stays: adding and removing hooks as networks
come and go could change torch's table of hooks while torch walks through it."""


def follow(network: object, primary: nn.Module, modules: Iterable[nn.Module], momentum: float) -> None:
    """From now on each step of an optimizer pulls the copies that it holds: copy <- m * copy + (1 - m) * live.

    Equation 7. Nothing is pulled where a step is skipped (``GradScaler``), and what ``network`` is a deep copy of has
    pulls of its own. Running statistics are not pulled: the paper pulls parameters, and a copy's statistics are those
    of its own input. Nor is what no optimizer holds, such as a frozen copy.

    Args:
        network: As long as it lives, copies follow.
        primary: Where the live layers are.
        modules: Where the copies are (:class:`Leaps`), at any depth.
        momentum: m.
    """
    pulls = []
    for module in modules:
        for leaps in module.modules():
            if isinstance(leaps, Leaps):
                pulls += [(_slot(leaps, a), _slot(leaps, b), _slot(primary, c)) for a, b, c in leaps.pulls]
    if not pulls:
        return
    _register()
    _PULLED[network] = _Pulled(momentum, tuple(pulls))


def followed(network: nn.Module) -> list[tuple[nn.Parameter, nn.Parameter]]:
    """Of what :func:`follow` was told of: parameters after whose update a copy is pulled, and what it is pulled to."""
    pulled = _PULLED.get(network)
    return [(told.parameter, live.parameter) for _, told, live in pulled.pulls] if pulled else []


@cache
def _register() -> None:
    register_optimizer_step_post_hook(_pull)


def _slot(root: nn.Module, path: str) -> _Slot:
    owner, _, name = path.rpartition(".")
    return _Slot(root.get_submodule(owner), name)


@torch.no_grad()
def _pull(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Called by torch after a step of any optimizer."""
    if not _PULLED:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for pulled in list(_PULLED.values()):
        pairs = [(copy.parameter, live.parameter) for copy, told, live in pulled.pulls if id(told.parameter) in held]
        if pairs:
            copies, lives = ([p.detach() for p in side] for side in zip(*pairs, strict=True))
            torch._foreach_lerp_(copies, lives, 1 - pulled.momentum)
