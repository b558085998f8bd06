"""MLAAN and its bases on a small network."""

from __future__ import annotations

from typing import Any

import torch

from localize import LocalGraphModule, localize
from localize.models import cifar_resnet

METHODS = ("mlaan", "dgl+mlaan", "infopro+mlaan")

BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mlaan": ("auglocal", {"d": 1, "last": "single"}),
    "dgl+mlaan": ("dgl", {}),
    "infopro+mlaan": ("infopro", {}),
}


def small(method: str, seed: int = 0, **options: Any) -> tuple[LocalGraphModule, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    x, y = torch.rand(4, 3, 16, 16), torch.arange(4)
    model = cifar_resnet(14, width=4)
    options = {"seed": 0, "max_cut": 1, "example_inputs": x, **options}
    return localize(model, method, **options).train(), x, y
