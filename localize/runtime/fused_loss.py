"""One scalar for all local losses: gradients are computed in the forward pass, and delivered by the one backward.

A GradScaler's factor arrives with that backward, after the gradients were computed. Under float16 autocast small
gradients would have vanished by then. So each step multiplies losses by the factor of the step before, and corrects the
difference in the backward.
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
    """Factor that the last backward received under float16 autocast; carried from step to step."""

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
    """Return the sum of the losses of ``steps``.

    Args:
        steps: Yields an object with a ``loss`` for each local module; one is taken at a time.
        owned: Parameters that each loss reaches, in the same order. Several losses may reach one parameter.
        scale: Carried from step to step.
        device: Type of the device the step runs on, for its autocast state.
        failed: Called with the index of a loss whose backward fails, and the error; may raise a clearer one.
        dtype: Type that the steps autocast to themselves; by default that of the autocast region around this call.

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
    """Yield the steps, and refuse a last loss that reaches parameters which would get no gradient.

    Args:
        steps: See :func:`fused_loss`.
        owned: See :func:`fused_loss`.

    Raises:
        InputError: The last loss reaches a leaf tensor that is not in ``owned``.
    """
    for group in owned:
        # Not enumerate() or zip(): they keep their last item, and with it its graph, while the next module runs.
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
    """Return whether the graph of a loss has a leaf tensor whose identity is not in ``known``."""
    pending: list[torch.autograd.graph.Node | None] = [loss.grad_fn]
    visited: set[torch.autograd.graph.Node] = set()
    while pending:
        node = pending.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
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
        *parameters: nn.Parameter,
    ) -> torch.Tensor | None:
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
                        computed = torch.autograd.grad(scaled, group, allow_unused=True)
                    except RuntimeError as error:
                        failed(index, error)
                        raise
                    for parameter, gradient in zip(group, computed, strict=True):
                        before = gradients[id(parameter)]
                        if gradient is not None:
                            gradients[id(parameter)] = gradient if before is None else before + gradient
                    del scaled, computed
            value = loss.detach()
            total = value.clone() if total is None else total + value
            del loss
        # Run the code after the last yield.
        next(iterator, None)
        ctx.gradients, ctx.factor, ctx.scale = list(gradients.values()), factor, scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
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
