"""A ReLU whose gradient takes no memory of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from passes.codegen.recompute import part_here
from passes.common.inplace import HasModules
from passes.common.layer_kinds import MAX_POOLS


def frugal_relu(module: nn.ReLU, x: torch.Tensor) -> torch.Tensor:
    """Return ``module(x)``; the backward pass overwrites the gradient that comes in, which nobody else may need.

    A step often takes most memory at a stem's ReLU, since its gradient is a map of the highest resolution. Where the
    module has hooks it is called as it is. Where activations are recomputed, those before the ReLU are recomputed after
    its backward pass (:func:`passes.codegen.recompute.part_here`).
    """
    if torch.compiler.is_compiling() or _is_hooked(module) or not torch.is_grad_enabled() or not x.requires_grad:
        result: torch.Tensor = module(x)
        return result
    part_here()
    result = _ReLU.apply(x, module.inplace and not x.is_leaf)
    return result


Hook = TypeVar("Hook", bound=Callable[..., object])


def harmless(hook: Hook) -> Hook:
    """Mark a hook that neither keeps nor changes what it is given: a ReLU may be run without it."""
    hook.__dict__["is_harmless"] = True
    return hook


def _is_hooked(module: nn.Module) -> bool:
    tables = (module._forward_pre_hooks, module._forward_hooks, module._backward_pre_hooks, module._backward_hooks)
    return any("is_harmless" not in getattr(hook, "__dict__", {}) for table in tables for hook in table.values())


class _ReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: torch.Tensor, inplace: bool) -> torch.Tensor:
        if inplace:
            ctx.mark_dirty(x)
        result = torch.relu_(x) if inplace else torch.relu(x)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        (result,) = ctx.saved_tensors
        # A gradient that is expanded, as after a mean, has fewer values in memory than entries.
        if gradient.untyped_storage().nbytes() != gradient.nbytes:
            gradient = gradient.clone()
        torch.ops.aten.threshold_backward.grad_input(gradient, result, 0, grad_input=gradient)
        return gradient, None


def spares_its_gradient(code: HasModules, node: fx.Node) -> bool:
    """Return whether a node is a ReLU that only a max-pooling reads: the gradient of that one is made for it alone."""
    if type(code.module(node)) is not nn.ReLU or len(node.users) != 1 or len(node.args) != 1 or node.kwargs:
        return False
    (user,) = node.users
    module = code.module(user)
    pools = (torch.nn.functional.max_pool1d, torch.nn.functional.max_pool2d, torch.nn.functional.max_pool3d)
    return isinstance(module, MAX_POOLS) or (user.op == "call_function" and user.target in (*pools, torch.max_pool2d))
