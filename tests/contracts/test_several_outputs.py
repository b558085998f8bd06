"""Training a model that returns more than its logits: further outputs go with the last local module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from localize import CaptureError, localize
from localize.runtime.local_graph import HEAD_WEIGHT
from tests.models.zoo import assert_same, gradients
from tests.tools.isolated import assert_isolated

CLASSES = 5
EXAMPLE = torch.empty(2, 3, 8, 8)
X, Y = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)


@dataclass
class Result:
    logits: Any
    auxiliary: Any
    features: Any


class Net(nn.Module):
    """Logits, an auxiliary classifier halfway, and features; in eval mode the logits alone, if ``plain_in_eval``."""

    def __init__(self, form: type, plain_in_eval: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()) for a in (3, 6, 6, 6)
        )
        self.auxiliary = nn.Sequential(nn.Conv2d(6, 4, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(256, CLASSES))
        self.fc = nn.Linear(6, CLASSES)
        self.form, self.plain_in_eval = form, plain_in_eval

    def forward(self, x: torch.Tensor) -> Any:
        x = self.convs[1](self.convs[0](x))
        auxiliary = self.auxiliary(x)
        x = self.convs[3](self.convs[2](x)).mean((2, 3))
        logits = self.fc(x)
        if self.plain_in_eval and not self.training:
            return logits
        values = {"logits": logits, "auxiliary": auxiliary, "features": x}
        if self.form is tuple:
            return tuple(values.values())
        return values if self.form is dict else Result(**values)


FORMS: dict[str, tuple[type, bool, Any]] = {
    "plain in eval mode": (tuple, True, None),
    "tuple": (tuple, False, 0),
    "dict": (dict, False, "logits"),
    "dataclass": (Result, False, "logits"),
}


def parts(value: Any) -> list[torch.Tensor]:
    if isinstance(value, Result):
        return [value.logits, value.auxiliary, value.features]
    return [*(value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else (value,))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["auglocal", "bp"])
def test_training_returns_what_the_model_returns(form: str, method: str) -> None:
    kind, plain, output = FORMS[form]
    model = Net(kind, plain)
    local = localize(model, method, d=2, output=output, seed=0, example_inputs=EXAMPLE)
    eager = copy.deepcopy(model)
    found, expected = local.train()(X), eager.train()(X)
    assert type(found) is type(expected)
    assert all(torch.equal(a, b) for a, b in zip(parts(found), parts(expected), strict=True))
    with torch.no_grad():
        found, expected = local.eval()(X), model.eval()(X)
    assert all(torch.equal(a, b) for a, b in zip(parts(found), parts(expected), strict=True))
    assert_isolated(copy.deepcopy(local).train(), X, Y)
    local.train()
    apart = assert_isolated(local, X, Y)
    local.zero_grad()
    local.loss(X, Y).backward()
    assert_same(gradients(local), apart)


def test_auxiliary_classifiers_are_trained_with_the_last_module() -> None:
    model = Net(tuple, plain_in_eval=True)
    local = localize(model, d=2, last="single", seed=0, example_inputs=EXAMPLE)
    last = local.plan.modules[-1]
    assert {"auxiliary.0.weight", "auxiliary.3.bias", "fc.weight"} <= {*last.parameters}
    *_, out = local.train().steps(X, Y)
    result = copy.deepcopy(model).train()(X)
    assert torch.equal(out.logits, result[0])
    expected = F.cross_entropy(result[0], Y) + HEAD_WEIGHT * F.cross_entropy(result[1], Y)
    torch.testing.assert_close(out.loss, expected)
    # What is no classifier of the primary's shape is computed and left alone.
    out.loss.backward()
    assert model.get_parameter("auxiliary.0.weight").grad is not None
    assert model.get_parameter("convs.1.0.weight").grad is None


def test_another_output_can_be_the_primary() -> None:
    local = localize(Net(dict, False), d=2, output="auxiliary", seed=0, example_inputs=EXAMPLE)
    assert_names = {name for module in local.plan.modules for name in module.parameters}
    assert "auxiliary.0.weight" in assert_names
    *_, out = local.steps(X, Y)
    assert torch.equal(out.logits, local.train()(X)["auxiliary"])


def test_without_a_choice_the_choices_are_listed() -> None:
    with pytest.raises(CaptureError, match="output='logits' or output='auxiliary' or output='features'"):
        localize(Net(dict, False), example_inputs=EXAMPLE)
