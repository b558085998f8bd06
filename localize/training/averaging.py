"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Averaged weights of a network, kept next to its own: ``average <- decay * average + (1 - decay) * weight``.

    As timm keeps them (``ModelEmaV3`` without warm-up): the average starts as the weights at the start, buffers of
    floating-point numbers (batch norm's statistics) are averaged too, and other buffers (its counter) are copied.

    Args:
        model: The network. Its tensors must stay on their device: the average refers to them.
        decay: Weight of the old average in each update; at least 0 and below 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._live: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the present weights."""
        for name, live in self._live.items():
            average = self._average[name]
            if not (average.is_floating_point() or average.is_complex()):
                average.copy_(live)
            elif isinstance(live, nn.Parameter):
                average.lerp_(live, 1 - self._decay)
            else:  # a constant may hold infinities, whose difference is NaN
                average.copy_(torch.where(average == live, live, average.lerp(live, 1 - self._decay)))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the network the averaged weights inside the ``with`` block, and its own afterwards. Nothing is copied.

        The data of the tensors is exchanged, so that evaluation costs no copy, and no copy of the model is needed,
        which not every model can make.
        """
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average by name; a tensor with several names has its first one."""
        return dict(self._average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            KeyError: A tensor is missing from ``state``.
        """
        for name, average in self._average.items():
            average.copy_(state[name])

    def _swap(self) -> None:
        for name, live in self._live.items():
            live.data, self._average[name] = self._average[name], live.data
