"""The slow truth: the captured graph run node by node, detaching at each cut and going backward there."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from localize import LocalGraphModule
from passes.ir import Captured
from passes.pipeline import analyse
from tests.models.zoo import assert_same, gradients


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


def _reads_first(outputs: tuple[str, ...], live: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tensors that cross, in the order in which the module returns those it computes."""
    return (*(name for name in outputs if name in live), *(name for name in live if name not in outputs))


def run_oracle(
    local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, max_cut: int | None = None
) -> list[torch.Tensor]:
    """Losses; gradients stay on the parameters. The model is analysed anew, apart from what ``local`` was made of."""
    network = analyse(local.primary, (2, *x.shape[1:]), max_cut=max_cut)
    captured: Captured = network.captured
    cuts = [
        (_reads_first(module.outputs, network.partition.live[module.plan.layers[-1]]), module.reads)
        for module in local.local_modules[:-1]
    ]
    cuts.append(((captured.result.name,), 1))
    oracle = Oracle(captured, local, cuts, y)
    oracle.run(x)
    return oracle.losses


def assert_equals_oracle(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, max_cut: int | None = None) -> None:
    torch.manual_seed(11)
    local.zero_grad()
    losses = []
    for out in local.steps(x, y):
        out.loss.backward()
        losses.append(out.loss.detach())
    found = gradients(local)
    torch.manual_seed(11)
    local.zero_grad()
    expected_losses = run_oracle(local, x, y, max_cut)
    assert len(losses) == len(local.plan.modules)
    assert torch.equal(torch.stack(losses), torch.stack(expected_losses))
    assert_same(found, gradients(local))
    assert sorted(found) == sorted(name for name, _ in local.named_parameters())
    local.zero_grad()
