"""The slow truth: the captured graph run node by node, detaching at each cut and going backward there."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from localize import LocalGraphModule
from passes.ir import Captured


class Oracle(fx.Interpreter):
    """Runs a model's own graph; at each cut computes the local loss, goes backward, and carries on detached."""

    def __init__(self, captured: Captured, local: LocalGraphModule, cuts: dict[str, int], y: torch.Tensor) -> None:
        super().__init__(captured.model, graph=captured.graph)
        self.captured, self.local, self.cuts, self.y = captured, local, cuts, y
        self.losses: list[torch.Tensor] = []

    def fetch_attr(self, target: str) -> Any:
        return self.captured.attribute(target)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.cuts:
            return value
        auxiliary = self.local.local_modules[self.cuts[n.name]].auxiliary
        loss = F.cross_entropy(value if auxiliary is None else auxiliary(value), self.y)
        loss.backward()
        self.losses.append(loss.detach())
        return value.detach()
