"""What a user can do wrong: one clear line of the right kind, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from localize import (
    CaptureError,
    InputError,
    LocalGraphModule,
    LocalizeError,
    MethodError,
    PartitionError,
    check,
    localize,
)
from localize.models import cifar_resnet

EXAMPLE = torch.empty(2, 3, 32, 32)


class Dense(nn.Module):
    """Gives an image of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 5, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.body(x)
        return result


class Tokens(nn.Module):
    """Gives a sequence of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = Dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.dense(x).flatten(2)
        return result


class Tied(nn.Module):
    """All layers share one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(self.conv(self.conv(self.conv(x)).relu()).mean((2, 3)))
        return result


def frozen() -> nn.Module:
    return cifar_resnet(8, width=4).requires_grad_(False)


def vit_like() -> nn.Module:
    """Run on one size only: the number of positions is fixed."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 4, 4)
            self.position = nn.Parameter(torch.zeros(1, 64, 4))
            self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
            self.head = nn.Linear(4, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2) + self.position
            result: torch.Tensor = self.head(self.layers(x).mean(1))
            return result

    return Fixed()


Build = Callable[[], Any]
REFUSALS: dict[str, tuple[Build, dict[str, Any], type[LocalizeError], str]] = {
    "no module": (lambda: 3, {}, CaptureError, "model must be an nn.Module, got a int"),
    "a class": (lambda: nn.Linear, {}, CaptureError, "Call the class to make a model"),
    "nothing to train": (frozen, {}, PartitionError, "no trainable parameter"),
    "no layer": (lambda: nn.Sequential(nn.ReLU()), {}, PartitionError, "no trainable parameter"),
    "one layer": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), {}, PartitionError, "no layer before its"),
    "already local": (lambda: localize(cifar_resnet(8)), {}, CaptureError, "LocalGraphModule cannot be localized"),
    "output of rank 3": (Tokens, {}, MethodError, "needs a vector of logits or a map of them: an output of rank 3"),
    "unknown method": (
        lambda: cifar_resnet(8),
        {"method": "hebb"},
        MethodError,
        "Known methods: auglocal, auglocal.infopro, bp",
    ),
    "unknown option": (
        lambda: cifar_resnet(8),
        {"gamma": 1},
        MethodError,
        "Its options: d, tau, last, head_norm",
    ),
    "option of another": (lambda: cifar_resnet(8), {"method": "bp", "tau": 1}, MethodError, "no option 'tau'"),
    "d=0": (lambda: cifar_resnet(8), {"d": 0}, MethodError, "d must be an integer >= 1, got 0"),
    "d=2.5": (lambda: cifar_resnet(8), {"d": 2.5}, MethodError, "d must be an integer >= 1, got 2.5"),
    "tau": (lambda: cifar_resnet(8), {"tau": 1.5}, MethodError, "tau must be a number from 0 to 1, got 1.5"),
    "last": (lambda: cifar_resnet(8), {"last": "first"}, MethodError, "last must be 'joint' or 'single', got 'first'"),
    "tau of text": (
        lambda: cifar_resnet(8),
        {"tau": "0.5"},
        MethodError,
        "tau must be a number from 0 to 1, got '0.5'",
    ),
    "tau nan": (
        lambda: cifar_resnet(8),
        {"tau": float("nan")},
        MethodError,
        "tau must be a number from 0 to 1, got nan",
    ),
    "selection": (
        lambda: cifar_resnet(8),
        {"selection": "random"},
        MethodError,
        "selection must be 'uniform', 'sequential', 'repetitive', 'conv1x1' or 'conv3x3', got 'random'",
    ),
    "selection, unhashable": (lambda: cifar_resnet(8), {"selection": ["uniform"]}, MethodError, "selection must be"),
    "downsampling": (
        lambda: cifar_resnet(8),
        {"downsampling": "deffered"},
        MethodError,
        "downsampling must be 'deferred', 'channels', 'match' or 'none', got 'deffered'",
    ),
    "aux_init": (
        lambda: cifar_resnet(8),
        {"aux_init": "zeros"},
        MethodError,
        "aux_init must be 'fresh' or 'copy', got 'zeros'",
    ),
    "width=0": (
        lambda: cifar_resnet(8),
        {"selection": "conv1x1", "width": 0},
        MethodError,
        "width must be a number > 0 or None, got 0",
    ),
    "width=True": (
        lambda: cifar_resnet(8),
        {"selection": "conv1x1", "width": True},
        MethodError,
        "width must be .*, got True",
    ),
    "width of copies": (lambda: cifar_resnet(8), {"width": 2}, MethodError, "no effect with selection='uniform'"),
    "nothing to copy": (
        lambda: cifar_resnet(8),
        {"selection": "conv3x3", "aux_init": "copy"},
        MethodError,
        "aux_init='copy' has no effect with selection='conv3x3'",
    ),
    "budget of 0": (lambda: cifar_resnet(8), {"max_aux_macs": 0}, MethodError, "max_aux_macs must be .*, got 0"),
    "budget below 0": (
        lambda: cifar_resnet(8),
        {"max_aux_macs": -0.5},
        MethodError,
        "max_aux_macs must be .*, got -0.5",
    ),
    "budget of text": (
        lambda: cifar_resnet(8),
        {"max_aux_macs": "1G"},
        MethodError,
        "max_aux_macs must be .*, got '1G'",
    ),
    "budget True": (lambda: cifar_resnet(8), {"max_aux_macs": True}, MethodError, "max_aux_macs must be .*, got True"),
    "budget nan": (
        lambda: cifar_resnet(8),
        {"max_aux_macs": float("nan")},
        MethodError,
        "max_aux_macs must be .*, got nan",
    ),
    "budget inf": (
        lambda: cifar_resnet(8),
        {"max_aux_macs": float("inf")},
        MethodError,
        "max_aux_macs must be .*, got inf",
    ),
    "budget 1e9": (lambda: cifar_resnet(8), {"max_aux_macs": 1e9}, MethodError, "or a float between 0 and 1000"),
    "impossible budget": (lambda: cifar_resnet(8), {"d": 2, "max_aux_macs": 10}, MethodError, "cannot be met"),
    "pool": (
        lambda: cifar_resnet(8),
        {"pool": "max"},
        MethodError,
        "pool must be 'average', 'token' or 'attention', got 'max'",
    ),
    "no class token": (lambda: cifar_resnet(8), {"pool": "token"}, MethodError, "own classifier reads none"),
    "pool of a map": (Dense, {"pool": "attention"}, MethodError, "no effect on local losses on maps"),
    "K=0": (
        lambda: cifar_resnet(8),
        {"modules": 0, "max_cut": 1},
        PartitionError,
        "modules must be an integer from 1 to 4",
    ),
    "K>L": (lambda: cifar_resnet(8), {"modules": 5, "max_cut": 1}, PartitionError, "from 1 to 4"),
    "bp in parts": (lambda: cifar_resnet(8), {"method": "bp", "modules": 2}, MethodError, "trains one module"),
    "example": (lambda: cifar_resnet(8), {"example_inputs": "image"}, InputError, "must be one tensor"),
    "example without batch": (
        lambda: cifar_resnet(8),
        {"example_inputs": torch.empty(3)},
        InputError,
        "batch dimension",
    ),
    "channels": (lambda: cifar_resnet(8), {"example_inputs": torch.empty(2, 1, 8, 8)}, CaptureError, "does not run on"),
    "size": (vit_like, {"example_inputs": torch.empty(2, 3, 16, 16)}, CaptureError, "does not run on this input"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_localize_refuses_in_one_line_and_changes_nothing(case: str) -> None:
    build, arguments, kind, message = REFUSALS[case]
    model = build()
    before = snapshot(model)
    with pytest.raises(LocalizeError, match=message) as error:
        localize(model, **{"example_inputs": EXAMPLE, "seed": 0, **arguments})
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ValueError)
    assert snapshot(model) == before


def snapshot(model: Any) -> Any:
    if not isinstance(model, nn.Module):
        return torch.get_rng_state().tolist()
    tensors = [(name, t.data_ptr(), t._version) for name, t in model.state_dict().items()]
    modules = [(m.training, sorted(m.__dict__)) for m in model.modules()]
    return tensors, modules, torch.get_rng_state().tolist()


@pytest.fixture(scope="module")
def local() -> LocalGraphModule:
    return localize(cifar_resnet(8, width=4), d=2, seed=0)


X, Y = torch.zeros(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
INPUTS: dict[str, tuple[Any, Any, str]] = {
    "no tensor": ("image", Y, "must be a tensor of shape"),
    "no batch": (X[0], Y, "must be a tensor of shape"),
    "empty batch": (X[:0], Y[:0], "must be a tensor of shape"),
    "channels": (X[:, :1], Y, "the input has 1 channels, and the model was localized for 3"),
    "type": (X.to(torch.uint8), Y, "does not run on an input of 3x32x32, uint8"),
    "other batch": (X, Y[:3], "the input has 4 samples and the target 3"),
    "label too large": (X, Y + 7, "labels from 7 to 10 where the model knows 0 to 9"),
    "negative label": (X, Y - 200, "labels from -200"),
    "label type": (X, Y.to(torch.float64), "the loss cannot be computed"),
    "target shape": (X, torch.zeros(4, 3), "the loss cannot be computed"),
    "no target": (X, "cat", "a target of type str"),
}


@pytest.mark.parametrize("case", INPUTS)
@pytest.mark.parametrize("way", ["steps", "loss"])
def test_a_step_refuses_what_does_not_fit(case: str, way: str, local: LocalGraphModule) -> None:
    x, y, message = INPUTS[case]
    with pytest.raises(InputError, match=message) as error:
        local.loss(x, y) if way == "loss" else list(local.steps(x, y))
    assert "\n" not in str(error.value)
    assert all(p.grad is None for p in local.parameters())


def test_a_size_the_model_cannot_take_is_said_in_terms_of_the_input() -> None:
    fixed = localize(vit_like(), d=2, example_inputs=EXAMPLE)
    with pytest.raises(InputError, match=r"does not run on an input of 3x16x16, float32.*It was localized for 3x32x32"):
        fixed.loss(torch.zeros(2, 3, 16, 16), torch.tensor([0, 1]))


@pytest.mark.parametrize(("value", "message"), [(lambda p, y: p, r"shape \(4, 10\)"), (lambda p, y: 1.0, "a float")])
def test_a_criterion_must_give_a_scalar(value: Any, message: str) -> None:
    odd = localize(cifar_resnet(8, width=4), d=2, criterion=value)
    with pytest.raises(InputError, match="must return a scalar tensor; it returned " + message):
        odd.loss(X, Y)


def test_an_error_of_the_users_own_module_is_not_dressed_up() -> None:
    model = cifar_resnet(8, width=4)
    own = localize(model, d=2, max_cut=1)

    def fail(*_: Any) -> None:
        raise RuntimeError("my own bug")

    model.layer1.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match=r"^my own bug$"):
        own.loss(X, Y)


def test_check_is_empty_for_a_good_model_and_lists_every_obstacle_of_a_bad_one() -> None:
    class Picky(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.mean() > 4:
                x = -x
            result: torch.Tensor = self.conv(x)
            return result

    assert check(cifar_resnet(8)) == []
    model = nn.Sequential(Picky(), nn.ReLU(), Picky(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    found = check(model.requires_grad_(False), example_inputs=EXAMPLE)
    assert [obstacle.path for obstacle in found] == ["Sequential", "0", "2"]
    for obstacle in found[1:]:
        assert obstacle.source is not None
        assert obstacle.source.startswith("test_errors.py:")
        assert obstacle.remedy
        assert "\n" not in str(obstacle)


def test_layers_that_share_a_parameter_stay_together() -> None:
    plan = localize(Tied(), d=2, example_inputs=EXAMPLE).plan
    assert len(plan.layers) == 1
    assert plan.layers[0].macs == 3 * 81 * 1024


def test_a_frozen_module_does_not_stop_the_loop() -> None:
    model = cifar_resnet(8, width=4)
    own = localize(model, d=2)
    last = own.plan.modules[-1]
    for name in last.parameters:
        model.get_parameter(name).requires_grad_(False)
    for out in own.steps(X, Y):
        out.loss.backward()
    assert all(model.get_parameter(name).grad is None for name in last.parameters)
    assert all(model.get_parameter(name).grad is not None for name in own.plan.modules[0].parameters)


def test_check_says_why_a_model_cannot_be_cut() -> None:
    (obstacle,) = check(nn.Sequential(nn.Flatten(), nn.Linear(3072, 5)), example_inputs=EXAMPLE)
    assert "no layer before its classifier" in obstacle.what
    with pytest.raises(CaptureError):
        check("model")  # type: ignore[arg-type]
