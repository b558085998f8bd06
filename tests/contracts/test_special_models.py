"""Models that are not as plain as most: they are localized with all that holds elsewhere, or refused in one line."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from localize import LocalGraphModule, LocalizeError, localize
from localize.models import cifar_resnet
from tests.models.zoo import assert_same, gradients
from tests.tools.snapshot import Snapshot

EXAMPLE = torch.empty(2, 3, 16, 16)
X, Y = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)


def net() -> nn.Module:
    return cifar_resnet(8, width=4)


def assert_trains(local: LocalGraphModule, x: torch.Tensor = X) -> None:
    """Isolation, and loss = steps."""
    local.train()
    # Spectral norm refines its estimate with every forward: both ways must start from the same one.
    state = {name: value.clone() for name, value in local.state_dict().items()}
    expected: dict[str, torch.Tensor] = {}
    torch.manual_seed(0)
    for module, out in zip(local.plan.modules, local.steps(x, Y), strict=True):
        local.zero_grad()
        out.loss.backward()
        own = {f"primary.{name}" for name in module.parameters}
        own |= {name for name, _ in local.named_parameters() if name.startswith(f"module_{module.index}.")}
        assert {*gradients(local)} == own
        expected |= gradients(local)
    assert {*expected} == {name for name, _ in local.named_parameters()}
    local.load_state_dict(state)
    local.zero_grad()
    torch.manual_seed(0)
    local.loss(x, Y).backward()
    for name, value in gradients(local).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-8)


FORMS: dict[str, Callable[[Any], Any]] = {
    "double": lambda value: value.to(torch.float64),
    "bfloat16": lambda value: value.to(torch.bfloat16),
    "channels last": lambda value: value.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("form", FORMS)
def test_types_and_memory_formats(form: str) -> None:
    width = 16 if form == "channels last" else 4  # torch goes wrong with channels last for narrower ones on some CPUs
    model, x = FORMS[form](cifar_resnet(8, width=width)), FORMS[form](X)
    local = localize(model, d=2, seed=0, example_inputs=x)
    assert {p.dtype for p in local.parameters()} == {x.dtype}
    assert_trains(local, x)
    with torch.no_grad():
        assert torch.equal(local.eval()(x), model.eval()(x))


@pytest.mark.parametrize("size", [8, 20, 33])
def test_other_input_sizes_than_planned_for(size: int) -> None:
    local = localize(net(), d=3, seed=0, example_inputs=EXAMPLE)
    assert_trains(local, torch.randn(4, 3, size, size))


def test_a_model_in_eval_mode_can_be_trained_after_all() -> None:
    local = localize(net().eval(), d=2, seed=0, example_inputs=EXAMPLE)
    assert not local.training
    assert not any(module.training for module in local.modules())
    assert_trains(local)


def test_a_criterion_with_tensors_of_its_own() -> None:
    criterion = nn.CrossEntropyLoss(torch.linspace(0.5, 1.5, 10), label_smoothing=0.1)
    local = localize(net(), d=2, seed=0, example_inputs=EXAMPLE, criterion=criterion)
    assert_trains(local)
    (*_, last) = local.steps(X, Y)
    assert torch.equal(last.loss, criterion(last.logits, Y))
    twin = copy.deepcopy(local)
    assert_same(twin.state_dict(), local.state_dict())


class HandMade(nn.Module):
    """Batch norm as people write it: its statistics are buffers that forward changes in place."""

    mean: torch.Tensor
    steps: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("mean", torch.ones(channels))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((0, 2, 3)) if self.training else self.mean
        if self.training:
            self.steps += 1
            self.mean.mul_(0.9).add_(mean.detach(), alpha=0.1)
        return (x - mean[:, None, None]) * self.weight


def hand_made() -> nn.Module:
    model = cifar_resnet(8, width=4)
    model.bn1 = HandMade(4)  # type: ignore[assignment]
    model.layer2[0].bn1 = HandMade(8)
    return model


def test_hand_made_statistics_are_not_moved_by_localizing() -> None:
    model = hand_made()
    before = Snapshot(model)
    localize(model, d=2, seed=0, example_inputs=EXAMPLE)
    assert before.differences() == []


def test_hand_made_statistics_move_once_a_step() -> None:
    model = hand_made()
    twin = copy.deepcopy(model)
    local = localize(model, d=2, seed=0, example_inputs=EXAMPLE)
    model.load_state_dict(twin.state_dict())
    assert torch.equal(local.train()(X), twin.train()(X))
    assert_same(dict(model.named_buffers()), dict(twin.named_buffers()))
    assert int(model.get_buffer("bn1.steps")) == 1
    local.loss(X, Y).backward()
    assert int(model.get_buffer("layer2.0.bn1.steps")) == 2


def with_weights_computed(wrap: Callable[[nn.Module], Any]) -> nn.Module:
    """Convolutions of the blocks get a reparametrized weight."""
    model = net()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d) and name.startswith("layer"):
            wrap(module)
    return model


REPARAMETRIZED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "weight_norm by hook": nn.utils.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # in fake tensors
@pytest.mark.parametrize("kind", REPARAMETRIZED)
def test_reparametrized_weights_are_localized_rightly_or_refused(kind: str) -> None:
    model = with_weights_computed(REPARAMETRIZED[kind])
    before = Snapshot(model)
    local: LocalGraphModule | None = None
    with contextlib.suppress(LocalizeError):
        local = localize(model, d=2, seed=0, example_inputs=EXAMPLE)
    assert before.differences() == []
    if local is not None:
        assert_trains(local)


def scripted() -> nn.Module:
    return torch.jit.script(net())


def compiled() -> nn.Module:
    return torch.compile(net())  # type: ignore[return-value]


def already_localized() -> nn.Module:
    return localize(net(), d=2, seed=0, example_inputs=EXAMPLE)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")
@pytest.mark.parametrize("make", [scripted, compiled, already_localized, lambda: nn.DataParallel(net())])
def test_wrapped_models_are_refused(make: Callable[[], nn.Module]) -> None:
    model = make()
    with pytest.raises(LocalizeError) as caught:
        localize(model, d=2, seed=0, example_inputs=EXAMPLE)
    assert "\n" not in str(caught.value)


def test_lazy_layers_are_refused() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    with pytest.raises(LocalizeError, match="uninitialized parameter"):
        localize(model, d=2, example_inputs=EXAMPLE)


def test_an_error_in_a_sequential_does_not_point_into_this_package() -> None:
    """Such a model has no line of the user's own: none is better than one of ours."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Conv2d(5, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    with pytest.raises(LocalizeError, match="does not run on this input") as caught:
        localize(model, d=2, example_inputs=EXAMPLE)
    assert caught.value.where == "1"
    assert caught.value.source is None or caught.value.source.startswith("test_special_models.py:")
