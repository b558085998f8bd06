"""How the user's ``modules`` and ``balance`` group local layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from localize.plan.group import group_by_cost, group_evenly, group_sizes, require_modules
from passes.errors import MethodError
from passes.ir import Layer

Balance = Literal["layers", "macs", "activations"]
"""What local modules share evenly."""


def groups_of(
    layers: Sequence[Layer], modules: int | Sequence[int] | None, balance: Balance
) -> tuple[tuple[int, ...], ...] | None:
    """Groups of layers; None where the method decides.

    Raises:
        PartitionError: ``modules`` is not possible.
    """
    if modules is None:
        return None
    if isinstance(modules, Sequence):
        return group_sizes(len(layers), modules)
    require_modules(len(layers), modules)
    if balance == "layers":
        return group_evenly(len(layers), modules)
    return group_by_cost([layer.macs if balance == "macs" else layer.activation_bytes for layer in layers], modules)


def check_balance(balance: str, modules: int | Sequence[int] | None) -> None:
    """Refuses a balance that is unknown, or has no effect.

    Raises:
        MethodError: It is.
    """
    if balance not in get_args(Balance):
        raise MethodError(f"balance={balance!r} is unknown", remedy="Give 'layers', 'macs' or 'activations'")
    if balance != "layers" and (modules is None or isinstance(modules, Sequence)):
        raise MethodError(
            f"balance={balance!r} has no effect where modules is no number",
            remedy="Give modules=K, or leave balance out",
        )
