"""A network that changes values in place."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class InPlace(nn.Module):
    """Changes a value in place that is read before and after the change, on both sides of cuts."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(5))
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layers[0](x)
        kept = x.mean((2, 3), keepdim=True)
        x.mul_(0.5)
        y = self.layers[1](x)
        y += x
        z = self.layers[2](y)
        z[:, 0] = 0.25
        z = F.relu(z)
        z = self.layers[3](z) + kept
        result: torch.Tensor = self.fc(self.layers[4](z).add_(y).mean((2, 3)))
        return result
