"""A model whose names would be markup, end a script, or turn text around, if they were taken for more than text."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

END = "</script><script>window.hacked=1</script>"
LAYERS = (
    "<img src=x onerror=window&hacked=2>",
    "\u05e9\u05dc\u05d5\u05dd\u2028\u2029\u202e",
    "\u5c42 ${1} `x` <!-- <script>",
    "a\"b'c\\\n</script>\x07\ud800",
    "class",
)
CLASS = f"{END}\"'\\\n\u2028\u202e&lt;"


def hostile_loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, target)


hostile_loss.__name__ = f"'\"\n</script>{END}"


def hostile_model() -> nn.Module:
    """Build a layer for each name."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for i, name in enumerate(LAYERS):
                convolution = nn.Conv2d(8 if i else 3, 8, 3, padding=1)
                self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(8), nn.ReLU()))
            self.head = nn.Linear(8, 10)

        def forward(self, x: torch.Tensor) -> Any:
            for name in LAYERS:
                x = getattr(self, name)(x)
            return self.head(x.mean((2, 3)))

    Net.__name__ = Net.__qualname__ = CLASS
    return Net()
