"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averaged weights of a network, kept beside it: ``average <- decay * average + (1 - decay) * weight``.

    As timm keeps them (``ModelEmaV3`` without warm-up): the average starts as the weights at the start, buffers of
    floating-point numbers (batch norm's statistics) are averaged too, and other buffers (its counter) are copied.

    Args:
        model: The network. Its tensors must stay where they are.
        decay: At least 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Takes the weights as they are now into the average."""
        for name, live in self._live.items():
            average = self._average[name]
            if not (average.is_floating_point() or average.is_complex()):
                average.copy_(live)
            elif isinstance(live, nn.Parameter):
                average.lerp_(live, 1 - self._decay)
            else:  # a constant may hold infinities, whose difference is no number
                average.copy_(torch.where(average == live, live, average.lerp(live, 1 - self._decay)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; afterwards its own again. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """The average by name; of a tensor that has several names, the first."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Reads what :meth:`state_dict` gave.

        Raises:
            KeyError: A tensor is missing.
        """
        for name, average in self._average.items():
            average.copy_(state[name])

    def _swap(self) -> None:
        for name, live in self._live.items():
            live.data, self._average[name] = self._average[name], live.data
