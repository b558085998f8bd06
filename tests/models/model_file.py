"""A user's file of models, as text."""

from __future__ import annotations

MODEL_FILE = """
import torch
from torch import nn

def chain(num_classes=10):
    layers = [nn.Conv2d(i, o, 3, padding=1) for i, o in ((3, 4), (4, 4), (4, 4), (4, 8))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))

class Looking(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else super().forward(-x)

class Folded(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return self.layers(x) if x.shape[0] > 0 else x

def whole():
    layers = [nn.Conv2d(3, 4, 3, padding=1), Folded(), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 8, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

def looking():
    layers = [nn.Conv2d(3, 4, 3), Looking(4, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))

def slopes():
    assert [x.item() for x in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]
    return chain()

class Two(nn.Module):
    def forward(self, a, b):
        return a + b

def two():
    return Two()

def sequence():
    return nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(4)], nn.Flatten(2))

def maps():
    return nn.Sequential(*[nn.Conv2d(3, 3, 3) for _ in range(4)])

def broken():
    raise RuntimeError("no such luck")
"""
