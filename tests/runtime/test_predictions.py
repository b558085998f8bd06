"""Predictions of local modules in inference: the model's own features, in eval mode, behind auxiliary networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import LocalizeError, localize
from localize.models import cifar_resnet
from localize.runtime.local_graph import LocalGraphModule
from tests.models.graphs import FourLayers


class Net(FourLayers):
    """Functional dropout bakes the mode into a trace; the batch norm follows its own flag."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.dropout(F.relu(norm(conv(x))), 0.5, training=self.training)
        result: torch.Tensor = self.fc(x.mean((2, 3)))
        return result


def _made(model: nn.Module, side: int = 8, d: int = 2) -> tuple[LocalGraphModule, torch.Tensor]:
    local = localize(model, d=d, example_inputs=torch.empty(2, 3, side, side), seed=0)
    x = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        local(x)
    return local, x


def test_each_prediction_is_the_auxiliary_networks_on_the_models_own_features() -> None:
    model = Net()
    local, x = _made(model)
    model.eval()
    with torch.no_grad():
        features, expected = x, []
        for k, module in enumerate(local.local_modules[:-1]):
            features = F.relu(model.norms[k](model.convs[k](features)))
            auxiliary = module.eval().get_submodule("auxiliary")
            part = auxiliary.get_submodule
            later = F.relu(part("block_0.norms_3")(part("block_0.convs_3")(features)))
            expected.append(part("head")(later))
    model.train()
    local.train()
    found = local.predictions(x)
    assert len(found) == len(local.plan.modules) == 3
    for a, b in zip(found[:-1], expected, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(found[-1], model.eval()(x))


def test_modes_statistics_and_gradients_are_left_alone() -> None:
    local, x = _made(cifar_resnet(20), side=32, d=3)
    local.primary.get_submodule("conv1").eval()
    modes = [module.training for module in local.modules()]
    state = {name: value.clone() for name, value in local.state_dict().items()}
    found = local.predictions(x)
    assert [module.training for module in local.modules()] == modes
    assert all(torch.equal(value, state[name]) for name, value in local.state_dict().items())
    assert not any(logits.requires_grad for logits in found)
    assert [tuple(logits.shape) for logits in found] == [(4, 10)] * len(local.plan.modules)


class Branching(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y if self.training else 2 * y


def test_a_model_that_branches_on_its_mode_is_refused() -> None:
    local, x = _made(Branching())
    with pytest.raises(LocalizeError, match="do not give in eval mode what the model gives"):
        local.predictions(x)
