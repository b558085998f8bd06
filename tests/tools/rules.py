"""What tests of DGL, PredSim, InfoPro, and AugLocal with InfoPro's loss share."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, Plan, localize
from localize.bench.flops import count_flops
from localize.methods.networks.local_loss import Term, WithTerms
from localize.models import cifar_resnet

RULES = ["dgl", "predsim", "infopro", "auglocal+infopro"]
OWN = RULES[:3]
DECODING = RULES[2:]

every_rule = pytest.mark.parametrize("method", RULES)

Batch = tuple[torch.Tensor, torch.Tensor]


def images(samples: int = 4, size: tuple[int, int] = (16, 16), seed: int = 0) -> Batch:
    """Random images in [0, 1] and labels of five classes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(samples, 3, *size, generator=generator), torch.randint(5, (samples,), generator=generator)


def small(method: str, **options: Any) -> LocalGraphModule:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = cifar_resnet(8, num_classes=5, width=options.pop("width", 4))
    options = {"d": 2, "seed": 0, "max_cut": 1, "example_inputs": images()[0], **options}
    return localize(model, method, **options)


def networks(auxiliary: nn.Module) -> list[nn.Module]:
    """Return the parts of an auxiliary network: the classifier, and those of further terms."""
    if not isinstance(auxiliary, WithTerms):
        return [auxiliary]
    return [auxiliary.classifier, *(term.network for term in auxiliary.terms.values() if isinstance(term, Term))]


def assert_as_planned(local: LocalGraphModule) -> None:
    """Parameters and multiply-accumulates of every auxiliary network, counted on what is built."""
    plan = local.plan
    assert Plan.from_json(plan.to_json()) == plan
    for planned, module in zip(plan.modules[:-1], local.local_modules, strict=False):
        assert planned.auxiliary is not None
        assert module.auxiliary is not None
        assert sum(p.numel() for p in module.auxiliary.parameters()) == planned.auxiliary.params
        shape = plan.layers[planned.layers[-1]].output.shape[1:]
        parts = networks(copy.deepcopy(module.auxiliary).to("meta"))
        assert sum(count_flops(part, shape).macs for part in parts) == planned.auxiliary.macs
