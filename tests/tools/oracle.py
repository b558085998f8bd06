"""The slow truth: the captured graph run node by node, detaching at each cut and going backward there."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from localize import LocalGraphModule
from passes.ir import Captured


class Oracle(fx.Interpreter):
    """Runs a model's own graph; at each cut computes the local loss, goes backward, and carries on detached.

    ``cuts`` are the tensors that leave each module, first those that the loss is computed from.
    """

    def __init__(
        self, captured: Captured, local: LocalGraphModule, cuts: list[tuple[tuple[str, ...], int]], y: torch.Tensor
    ) -> None:
        super().__init__(captured.model, graph=captured.graph)
        order = {node.name: i for i, node in enumerate(captured.nodes)}
        self.captured, self.local, self.y = captured, local, y
        self.nodes = {node.name: node for node in captured.nodes}
        # A cut is where the last of its tensors is there.
        self.cuts = {max(live, key=order.__getitem__): (live, module) for module, (live, _) in enumerate(cuts)}
        self.reads = [reads for _, reads in cuts]
        self.losses: list[torch.Tensor] = []

    def fetch_attr(self, target: str) -> Any:
        return self.captured.attribute(target)

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name not in self.cuts:
            return value
        live, module = self.cuts[n.name]
        auxiliary = self.local.local_modules[module].auxiliary
        known = {n.name: value, **{name: self.env[self.nodes[name]] for name in live if name != n.name}}
        read = [known[name] for name in live[: self.reads[module]]]
        loss = F.cross_entropy(read[0] if auxiliary is None else auxiliary(*read), self.y)
        loss.backward()
        self.losses.append(loss.detach())
        for name in live:
            if name != n.name:
                self.env[self.nodes[name]] = known[name].detach()
        return value.detach()
