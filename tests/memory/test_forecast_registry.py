"""The memory forecast against torch's own MemTracker, on real models of many families: run with `-m registry`."""

from __future__ import annotations

import pytest
import torch

from localize import localize
from localize.memory.peak import measure
from tests.models.real import OTHERS, PAIRED, SIZE
from tests.tools.tracked import tracked

pytestmark = pytest.mark.registry

MODELS = {**PAIRED, **OTHERS}
BATCH = 8
MODULES = 3
"""Local modules: MemTracker takes minutes over dozens."""


def nesterov(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


@pytest.mark.parametrize("method", ["auglocal", "dgl", "infopro", "bp"])
@pytest.mark.parametrize("name", MODELS)
def test_within_two_percent_of_mem_tracker(name: str, method: str) -> None:
    with torch.device("meta"):
        model = MODELS[name]().train()
    size = 32 if name == "cifar_resnet32" else SIZE
    modules = None if method == "bp" else MODULES
    local = localize(
        model, method, d=2, modules=modules, example_inputs=torch.empty(2, 3, size, size, device="meta"), seed=0
    )
    found = measure(local, BATCH, optimizer=nesterov).peak
    assert found == pytest.approx(tracked(local, BATCH, size=size), rel=0.02)
