"""All local losses behind one scalar: gradients during the forward, delivered on the one backward.

A GradScaler's factor arrives with that backward, after the gradients were computed. Under float16 autocast small ones
would have vanished by then, so each step computes with the factor that the last one saw, and corrects the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from passes.errors import InputError


class _HasLoss(Protocol):
    @property
    def loss(self) -> torch.Tensor: ...


class LossScale:
    """The factor the last backward saw under float16 autocast."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: torch.Tensor | None = None


def fused_loss(
    steps: Iterable[_HasLoss],
    owned: Sequence[Sequence[nn.Parameter]],
    scale: LossScale,
    device: str,
    failed: Callable[[int, RuntimeError], None] = lambda index, error: None,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Sum of the losses of ``steps``.

    Args:
        steps: Yields something with a ``loss``, a local module after the other; it is taken one at a time.
        owned: Parameters each loss reaches, in the same order; several may reach one.
        scale: Carried from step to step.
        device: Type of the device the step runs on, for its autocast state.
        failed: Called with the index of a loss whose backward fails, and the error; may raise a better one.
        dtype: What the steps themselves autocast to; by default what autocast is at now.

    Returns:
        A scalar. Its backward adds ``grad_output * gradient`` to each parameter's ``grad``, once.
    """
    parameters = list({id(p): p for group in owned for p in group}.values())
    if dtype is None and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    half = scale if dtype == torch.float16 else None
    total: torch.Tensor = _FusedLoss.apply(steps, owned, half, failed, *parameters)
    return total


S = TypeVar("S", bound=_HasLoss)


def without_strays(steps: Iterator[S], owned: Sequence[Sequence[nn.Parameter]]) -> Iterator[S]:
    """The steps, refusing a last loss that reaches parameters to which nobody would hand a gradient.

    Args:
        steps: As :func:`fused_loss` takes them.
        owned: Likewise.

    Raises:
        InputError: The last loss reaches a leaf tensor that is not among ``owned``.
    """
    for group in owned:
        # Not enumerate() or zip(): they hold what they gave last, and with it its graph, while the next module runs.
        step = next(steps)
        if group is owned[-1] and _reaches_others(step.loss, {id(p) for p in group}):
            raise InputError(
                "output_criterion has parameters that local.loss() does not know of",
                remedy="Give an nn.Module that holds them as output_criterion, so that they are among "
                "local.parameters(); or train with local.steps()",
            )
        yield step
        del step
    next(steps, None)


def _reaches_others(loss: torch.Tensor, known: set[int]) -> bool:
    pending: list[Any] = [loss.grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            return True
        pending += [parent for parent, _ in node.next_functions]
    return False


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        steps: Iterable[_HasLoss],
        owned: Sequence[Sequence[nn.Parameter]],
        scale: LossScale | None,
        failed: Callable[[int, RuntimeError], None],
        *parameters: Any,
    ) -> Any:
        factor = scale.value if scale is not None else None
        gradients: dict[int, torch.Tensor | None] = {id(p): None for p in parameters}
        total: torch.Tensor | None = None
        iterator = iter(steps)
        for index, group in enumerate(owned):
            with torch.enable_grad():
                loss = next(iterator).loss
                if group:
                    scaled = loss if factor is None else loss * factor
                    try:
                        found = torch.autograd.grad(scaled, group, allow_unused=True)
                    except RuntimeError as error:
                        failed(index, error)
                        raise
                    for parameter, gradient in zip(group, found, strict=True):
                        before = gradients[id(parameter)]
                        if gradient is not None:
                            gradients[id(parameter)] = gradient if before is None else before + gradient
                    del scaled, found
            value = loss.detach()
            total = value.clone() if total is None else total + value
            del loss
        # Runs what stands after the last yield.
        next(iterator, None)
        ctx.gradients, ctx.factor, ctx.scale = list(gradients.values()), factor, scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError(
                "local.loss(...) has gone backward already; its gradients are computed once, in the forward"
            )
        factor = grad_output if ctx.factor is None else grad_output / ctx.factor
        if ctx.scale is not None:
            usable = torch.isfinite(grad_output) & (grad_output > 0)
            ctx.scale.value = torch.where(usable, grad_output, torch.ones_like(grad_output))
        return (None, None, None, None, *(None if g is None else g.mul_(factor.to(g.dtype)) for g in gradients))
