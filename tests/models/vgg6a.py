"""VGG6a, the network of "Local Learning with Neuron Groups", tables 1-3, and of Nokland and Eidnes (ICML 2019)."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

LAYERS = ["conv1", "conv2", "conv3", "conv4", "hidden"]
"""After which a local loss stands."""


class Vgg6a(nn.Module):
    """Four 3x3 convolutions, max pooling behind the first three, and a hidden linear layer: 3x32x32 -> 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        inputs = 3
        for position, width in enumerate((128, 256, 512, 512), 1):
            self.add_module(f"conv{position}", _unit(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width)))
            inputs = width
        self.pool = nn.MaxPool2d(2)
        self.hidden = _unit(nn.Linear(8192, 1024), nn.BatchNorm1d(1024))
        self.classifier = nn.Linear(1024, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(self.pool(self.conv1(x)))
        x = self.conv4(self.pool(self.conv3(self.pool(x))))
        logits: torch.Tensor = self.classifier(self.hidden(x.flatten(1)))
        return logits


def _unit(layer: nn.Module, norm: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layer=layer, norm=norm, relu=nn.ReLU()))
