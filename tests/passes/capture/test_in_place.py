"""Tensors and buffers that a forward changes: the graph has the change, at its place, for all who hold the tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from localize import LocalizeError, localize
from passes.capture.fidelity import capture_verified
from tests.models.control_flow import EXAMPLE, SPEC, Part, Root
from tests.models.in_place import InPlace
from tests.tools.agreement import assert_agrees
from tests.tools.oracle import assert_equals_oracle


def test_a_state_of_the_models_own_moves_once_a_step() -> None:
    """In the model's own forward there is no module to keep whole: the graph has the change itself."""

    class Counting(nn.Module):
        seen: torch.Tensor
        mean: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))
            self.register_buffer("mean", torch.zeros(4))
            self.body = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
            self.fc = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.body:
                x = layer(x).relu()
                self.seen += 1
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3))
            result: torch.Tensor = self.fc(x.mean((2, 3)))
            return result

    model = Counting()
    local = localize(model, d=2, seed=0, max_cut=1, example_inputs=EXAMPLE).train()
    assert len(local.plan.modules) > 1
    assert (float(model.seen), bool(model.mean.any())) == (0.0, False)
    x = torch.randn(2, 4, 8, 8)
    for out in local.steps(x, torch.tensor([0, 1])):
        out.loss.backward()
    found = model.mean.clone()
    assert float(model.seen) == 4.0
    model.mean.zero_()
    with torch.no_grad():
        model(x)
    assert torch.equal(found, model.mean)


@pytest.mark.parametrize("max_cut", [1, 2, 3, None])
def test_changes_in_place_across_cuts(max_cut: int | None) -> None:
    torch.manual_seed(0)
    model = InPlace()
    try:
        local = localize(model, d=2, seed=0, max_cut=max_cut, example_inputs=EXAMPLE)
    except LocalizeError as error:
        assert error.where  # noqa: PT017 - refused is right too
        return
    x, y = torch.randn(4, 4, 8, 8), torch.arange(4)
    assert torch.equal(local.train()(x), model(x))
    assert_equals_oracle(local, x, y, max_cut)


def test_who_else_holds_a_tensor_sees_it_changed() -> None:
    def aliased(m: Part, x: torch.Tensor) -> torch.Tensor:
        y = x * 1
        same, size = y, x.shape[2]
        old = size
        y += 1
        y *= m.scale
        size += 1
        part = y[:, 0]
        part -= 3
        turned = y.flatten(2)
        turned /= 2
        return same + y + old / size

    assert_agrees(capture_verified(Root(aliased), None, None, SPEC), torch.randn(2, 4, 8, 8))
