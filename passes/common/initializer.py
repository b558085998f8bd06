"""Fresh weights in the scale of a layer's own initializer, drawn from an explicit generator.

A model does not say which initializer it used, but its weights show it:

- A constant tensor stays that constant (zero-initialized norms, layer scale, zero biases).
- Where the standard deviation of a weight is the one that a rule gives for its fans (:data:`RULES`), the new weight
  gets the one that the same rule gives for the new fans; otherwise it stays what it is.
- The largest entry tells a uniform distribution from a normal one that was cut off at two standard deviations, and both
  from a normal one.

The linear classifiers of auxiliary networks are drawn as the model's own output layer was. Otherwise logits would
differ by orders of magnitude: EVA scales its own by 0.001.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils import skip_init
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from passes.common.fake_tensors import has_values

RULES: tuple[Callable[[float, float], float], ...] = (
    lambda fan_in, fan_out: math.sqrt(1 / (3 * fan_in)),  # torch.nn
    lambda fan_in, fan_out: math.sqrt(2 / fan_out),  # He et al., ICCV 2015, fan out
    lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),  # Glorot, Bengio, AISTATS 2010
    lambda fan_in, fan_out: math.sqrt(2 / fan_in),  # He et al., fan in
    lambda fan_in, fan_out: math.sqrt(1 / fan_in),  # LeCun et al., 1998
)
"""Standard deviations of weights by fan in and fan out; where several agree with a weight, the first one counts."""
_CUT = 0.8796256610342398
"""Standard deviation of a standard normal distribution that is cut off at two."""
_ENOUGH = 64
"""Number of entries from which on the largest one shows their distribution."""


@dataclass(slots=True)
class Initializer:
    """Draws fresh parameters, and remembers the statistics of the tensors that it imitates.

    Args:
        generator: Source of randomness on the CPU, whatever device parameters live on; None for torch's global one.
        copies: Whether :meth:`like` and :meth:`holds` take the values of a tensor whose shape is kept.
    """

    generator: torch.Generator | None = None
    copies: bool = False
    _statistics: dict[int, tuple[float, float, float]] = field(default_factory=dict)

    def like(
        self, source: torch.Tensor, shape: tuple[int, ...], *, norm: bool = False, fan_in: int = 0
    ) -> nn.Parameter:
        """Return a parameter of ``shape`` that is initialized as ``source`` was.

        Args:
            source: The parameter to imitate.
            shape: Shape of the new one.
            norm: Whether the parameter is the scale or shift of a norm: then all but constants become ones.
            fan_in: Number of inputs of one output of the new layer; 0 where that has no meaning.
        """
        target = torch.empty(shape, dtype=source.dtype, device=source.device)
        if not (has_values(source) and has_values(target)):
            return nn.Parameter(target, requires_grad=source.requires_grad or source.is_floating_point())
        if self.holds(source, shape):
            return nn.Parameter(source.detach().clone())
        constant = self.constant(source)
        with torch.no_grad():
            if constant is not None:
                target.fill_(constant)
            elif norm:
                target.fill_(1.0)
            else:
                self._draw_(target, source, fan_in)
        return nn.Parameter(target)

    def holds(self, source: torch.Tensor, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of ``shape`` that imitates ``source`` gets the values of ``source`` itself.

        This needs equal shapes. A layer after another number of channels reads features that do not correspond one by
        one to those it was trained on: a slice or a mean of its weights would mean nothing, and change their scale.
        """
        return self.copies and tuple(source.shape) == shape

    def constant(self, source: torch.Tensor) -> float | None:
        """Return the number that all entries of a tensor are equal to; None if they differ or have no values."""
        if not has_values(source):
            return None
        mean, spread, _ = self._measure(source)
        return mean if spread == 0.0 else None

    def _measure(self, source: torch.Tensor) -> tuple[float, float, float]:
        """Return the mean, the standard deviation (0 if all entries are equal) and the largest absolute value."""
        if id(source) not in self._statistics:
            values = source.detach().float()
            first = float(values.flatten()[0]) if values.numel() else 0.0
            if bool((values == first).all()):
                self._statistics[id(source)] = first, 0.0, abs(first)
            else:
                self._statistics[id(source)] = float(values.mean()), float(values.std()), float(values.abs().max())
        return self._statistics[id(source)]

    def _draw_(self, target: torch.Tensor, source: torch.Tensor, fan_in: int) -> None:
        mean, spread, largest = self._measure(source)
        if not fan_in:
            self._normal_(target, mean, spread)
        elif source.ndim == 1:
            self._uniform_(target, 1 / math.sqrt(fan_in))
        else:
            peak = largest / spread
            spread = _rescaled(source, spread, target.shape)
            if peak < 1.76 and source.numel() >= _ENOUGH:
                self._uniform_(target, math.sqrt(3) * spread)
            elif peak < 2.33 and source.numel() >= _ENOUGH:
                self._cut_off_(target, spread / _CUT)
            else:
                self._normal_(target, 0.0, spread)

    def _uniform_(self, target: torch.Tensor, bound: float) -> None:
        # Drawn on the CPU, so that a seed gives the same weights on every device.
        drawn = target if target.device.type == "cpu" else torch.empty(target.shape, dtype=target.dtype)
        drawn.uniform_(-bound, bound, generator=self.generator)
        if drawn is not target:
            target.copy_(drawn)

    def _normal_(self, target: torch.Tensor, mean: float, spread: float) -> None:
        drawn = target if target.device.type == "cpu" else torch.empty(target.shape, dtype=target.dtype)
        drawn.normal_(mean, spread, generator=self.generator)
        if drawn is not target:
            target.copy_(drawn)

    def _cut_off_(self, target: torch.Tensor, spread: float) -> None:
        drawn = target if target.device.type == "cpu" else torch.empty(target.shape, dtype=target.dtype)
        nn.init.trunc_normal_(drawn, 0.0, spread, -2 * spread, 2 * spread, generator=self.generator)
        if drawn is not target:
            target.copy_(drawn)

    def imitate_(self, module: nn.Module, source: nn.Module | None) -> bool:
        """Initialize a linear layer, or a convolution over one position, in place as another layer was.

        Args:
            module: The layer.
            source: The layer to imitate: linear or a convolution, of any number of input channels.

        Returns:
            Whether that could be done: not if the weights of ``source`` have no values, are constant, or computed.
        """
        weight, theirs = module.get_parameter("weight"), source._parameters.get("weight") if source else None
        if theirs is None or not has_values(weight) or not has_values(theirs) or self.constant(theirs) is not None:
            return False
        fan_in = weight.shape[1]
        with torch.no_grad():
            fresh = self.like(theirs, (weight.shape[0], fan_in, *[1] * (theirs.ndim - 2)), fan_in=fan_in)
            weight.copy_(fresh.reshape(weight.shape))
            bias, their_bias = module._parameters.get("bias"), source._parameters.get("bias") if source else None
            if bias is not None:
                bias.zero_()
                if their_bias is not None:
                    bias.copy_(self.like(their_bias, tuple(bias.shape), fan_in=fan_in))
        return True

    def plain_(self, module: nn.Module) -> nn.Module:
        """Initialize convolutions (He, fan out: AugLocal, appendix A.2) and linear layers (as torch does) in place."""
        for part in module.modules():
            weight = getattr(part, "weight", None)
            if not isinstance(weight, nn.Parameter) or weight.ndim < 2:
                continue
            if not has_values(weight):
                continue
            with torch.no_grad():
                fan_in = math.prod(weight.shape[1:])
                if isinstance(part, nn.Linear):
                    self._uniform_(weight, 1 / math.sqrt(fan_in))
                else:
                    fan_out = weight.shape[0] * math.prod(weight.shape[2:])
                    self._normal_(weight, 0.0, math.sqrt(2 / fan_out))
                bias = getattr(part, "bias", None)
                if isinstance(bias, nn.Parameter):
                    self._uniform_(bias, 1 / math.sqrt(fan_in))
        return module


def _rescaled(source: torch.Tensor, spread: float, shape: Sequence[int]) -> float:
    """Return the spread for ``shape`` by the rule that gives ``spread`` for ``source``; ``spread`` if no rule does."""
    old, new = _fans(source.shape), _fans(shape)
    # A deviation estimated from n values is itself off by about 1/sqrt(2n).
    tolerance = max(0.02, 3 / math.sqrt(2 * source.numel()))
    for rule in RULES if old != new else ():
        if abs(spread / rule(*old) - 1) < tolerance:
            return rule(*new)
    return spread


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    return math.prod(shape[1:]), shape[0] * math.prod(shape[2:])


def bare(kind: Callable[..., nn.Module], *args: object, **kwargs: Any) -> nn.Module:
    """Build a layer whose weights are not initialized: drawing them would cost time and move torch's generator."""
    if _get_current_dispatch_mode_stack():
        return kind(*args, **kwargs)
    if torch.get_default_device().type == "meta":
        return kind(*args, **kwargs, device="meta")
    module: nn.Module = skip_init(kind, *args, **kwargs)
    return module
