"""Leaps: copies of later layers in front of an auxiliary network, pulled towards the layers that they copy.

Zhang et al.: "MLAAN", AAAI 2025, section "Leap Augmented Modules", equations 6, 7 and 10. The pull follows every step
of an optimizer that holds a copy, by one hook of torch for all optimizers; training loops need not call anything.
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
"""Names of a pulled parameter, of the parameter whose update triggers the pull (both within :class:`Leaps`, mostly the
same one), and of the primary network's parameter that it is pulled to."""


class Twinned(nn.Module):
    """A trained copy of a layer, and a copy that is only pulled; their outputs are added.

    The released code begins its leaps like this (``EMA_Net``).
    """

    def __init__(self, trained: nn.Module, pulled: nn.Module) -> None:
        super().__init__()
        self.trained = trained
        self.pulled = pulled.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of both outputs."""
        result: torch.Tensor = self.trained(x) + self.pulled(x)
        return result


class Leaps(nn.Module):
    """Copies of later layers, then an auxiliary network.

    Args:
        blocks: The copies, in order.
        network: Maps the last copy's output to the prediction.
        pulls: Parameters of the copies, and the primary network's parameters that they are pulled to.
    """

    def __init__(self, blocks: Sequence[nn.Module], network: nn.Module, pulls: Sequence[Pull]) -> None:
        super().__init__()
        self.blocks = AuxiliaryBlocks(*blocks)
        self.network = network
        self.pulls = tuple(pulls)

    def forward(self, features: torch.Tensor) -> Any:
        """Return the prediction."""
        return self.network(self.blocks(features))

    def supervise(self, batch: Batch, features: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """Return prediction and local loss."""
        return supervise(self.network, batch, self.blocks(features))


@dataclass(frozen=True, slots=True)
class _LeapSlot:
    """The place of a parameter in its module; ``.to()`` may put another parameter there."""

    owner: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        parameter = self.owner._parameters[self.name]
        assert parameter is not None
        return parameter


@dataclass(frozen=True, slots=True)
class _Pulled:
    momentum: float
    pulls: tuple[tuple[_LeapSlot, _LeapSlot, _LeapSlot], ...]


_PULLED: weakref.WeakKeyDictionary[object, _Pulled] = weakref.WeakKeyDictionary()
"""The pulls of each living network. One hook serves all networks and is never removed: adding and removing hooks as
networks come and go could change torch's table of hooks while torch iterates over it."""


def follow(network: object, primary: nn.Module, modules: Iterable[nn.Module], momentum: float) -> None:
    """Pull copies after every step of an optimizer that holds them: copy <- m * copy + (1 - m) * live (equation 7).

    A skipped step (``GradScaler``) pulls nothing. A deep copy of a network has pulls of its own. Running statistics are
    not pulled: the paper pulls parameters, and a copy's statistics are those of its own input. Copies that no optimizer
    holds, such as frozen ones, are not pulled.

    Args:
        network: The localized model; copies are pulled as long as it lives.
        primary: The primary network, with the live layers.
        modules: Modules that hold the copies (:class:`Leaps`), at any depth.
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
    """Return the parameters whose update triggers a pull, each with the parameter that the copy is pulled to."""
    pulled = _PULLED.get(network)
    return [(trigger.parameter, live.parameter) for _, trigger, live in pulled.pulls] if pulled else []


@cache
def _register() -> None:
    register_optimizer_step_post_hook(_pull)


def _slot(root: nn.Module, path: str) -> _LeapSlot:
    owner, _, name = path.rpartition(".")
    return _LeapSlot(root.get_submodule(owner), name)


@torch.no_grad()
def _pull(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pull the copies that an optimizer holds; torch calls this after a step of any optimizer."""
    if not _PULLED:
        return
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for pulled in list(_PULLED.values()):
        pairs = [
            (copy.parameter, live.parameter) for copy, trigger, live in pulled.pulls if id(trigger.parameter) in held
        ]
        if pairs:
            copies, lives = ([p.detach() for p in side] for side in zip(*pairs, strict=True))
            torch._foreach_lerp_(copies, lives, 1 - pulled.momentum)
