"""Channels last: only where torch computes weight gradients correctly on every CPU, and said where it does not."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations

from localize import LocalGraphModule, Runtime, localize
from localize.bench.measure import Contender, measure
from localize.bench.setup import Setup
from localize.bench.zoo import find_model
from localize.models import cifar_resnet
from localize.runtime.layout import LEAST_CHANNELS, channels_last_fault, lay_out
from localize.runtime.options import AUTO
from localize.runtime.schedule import choose
from tests.tools.rules import images, small

NARROW = "layer2.0.downsample.0, a strided 1x1 convolution of 4 input channels (fewer than 16)"
FAULT = f"torch may compute wrong weight gradients for {NARROW}"


class Functional(nn.Module):
    """A convolution that torch has no layer for: its stride stands in the code alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, self.weight, stride=2)


FAULTY: dict[str, Callable[[], nn.Module]] = {
    "strided 1x1": lambda: nn.Conv2d(4, 8, 1, stride=2),
    "stride in one direction": lambda: nn.Conv2d(4, 8, 1, stride=(1, 2)),
    "just too few": lambda: nn.Conv2d(LEAST_CHANNELS - 1, 8, 1, stride=2),
    "in groups": lambda: nn.Conv2d(32, 32, 1, stride=2, groups=4),
    "transposed": lambda: nn.ConvTranspose2d(32, 4, 1, stride=2),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(4, 8, 1, stride=2)),
    "functional": lambda: Functional(4),
}
RIGHT: dict[str, Callable[[], nn.Module]] = {
    "enough": lambda: nn.Conv2d(LEAST_CHANNELS, 8, 1, stride=2),
    "no stride": lambda: nn.Conv2d(4, 8, 1),
    "a stem": lambda: nn.Conv2d(3, 64, 7, stride=2, padding=3),
    "patches": lambda: nn.Conv2d(3, 64, 16, stride=16),
    "parametrized": lambda: parametrizations.weight_norm(nn.Conv2d(32, 8, 1, stride=2)),
    "functional": lambda: Functional(LEAST_CHANNELS),
}


@pytest.mark.parametrize("case", FAULTY)
def test_layers_that_are_not_trusted(case: str) -> None:
    fault = channels_last_fault(nn.Sequential(nn.ReLU(), FAULTY[case]()))
    assert fault is not None
    assert "wrong weight gradients for 1, " in fault


@pytest.mark.parametrize("case", RIGHT)
def test_layers_that_are_trusted(case: str) -> None:
    assert channels_last_fault(nn.Sequential(nn.ReLU(), RIGHT[case]())) is None


@pytest.mark.parametrize("channels", [LEAST_CHANNELS, 24, 36])
def test_torch_is_right_about_layers_that_are_trusted(channels: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((4, channels, 16, 16), (16, channels, 1, 1)))
    gradients = []
    for layout in (torch.contiguous_format, *[torch.channels_last] * 20):
        copy = weight.contiguous(memory_format=layout).requires_grad_()
        nn.functional.conv2d(x.contiguous(memory_format=layout), copy, stride=2).square().sum().backward()
        gradients.append(copy.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-3)


def test_a_runtime_chosen_by_device_leaves_narrow_networks_contiguous() -> None:
    local = small("auglocal", runtime=AUTO)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        steps(local)
    assert f"channels_last off: {FAULT}" in str(local.runtime)
    assert not local.runtime.on("cpu").runtime.channels_last
    assert all(p.is_contiguous() for p in local.parameters())
    assert choose(AUTO, "cuda", FAULT).runtime.channels_last


def test_channels_last_asked_for_in_vain_warns_and_trains_contiguous() -> None:
    local, plain = small("auglocal", runtime=Runtime(channels_last=True)), small("auglocal")
    with pytest.warns(UserWarning, match="runtime: channels_last off: torch may compute wrong") as told:
        found = steps(local)
    assert len(told) == 1
    assert FAULT in str(local.runtime)
    torch.testing.assert_close(found, steps(plain), rtol=0, atol=0)


def test_compiled_code_of_a_narrow_network_keeps_the_contiguous_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor would lay convolutions out with channels last on its own account."""
    patches: list[dict[str, bool]] = []

    def inductor(graph: fx.GraphModule, inputs: list[torch.Tensor], config_patches: dict[str, bool]) -> fx.GraphModule:
        patches.append(config_patches)
        return graph

    monkeypatch.setattr(
        "torch._dynamo.backends.registry.lookup_backend", lambda name: inductor if name == "inductor" else name
    )
    monkeypatch.setattr("localize.runtime.schedule._no_compiler", lambda device: None)
    narrow = small("bp", runtime="compile")
    steps(narrow)
    assert f"compiled code keeps the contiguous layout: {FAULT}" in str(narrow.runtime)
    assert patches
    assert all(patch["layout_optimization"] is False for patch in patches)
    patches.clear()
    steps(small("bp", width=LEAST_CHANNELS, runtime="compile"))
    assert patches
    assert not any("layout_optimization" in patch for patch in patches)


def test_an_auxiliary_network_counts_as_well() -> None:
    local = localize(cifar_resnet(8, width=LEAST_CHANNELS), d=2, example_inputs=images()[0])
    assert channels_last_fault(local) is None
    auxiliary = local.local_modules[0].auxiliary
    assert auxiliary is not None
    auxiliary.add_module("more", nn.Conv2d(4, 8, 1, stride=2))
    fault = channels_last_fault(local)
    assert fault is not None
    assert "for module_0.auxiliary.more, " in fault


def test_layouts_of_contenders() -> None:
    setup = Setup(methods=("bp",), batch_size=2, channels_last=True)
    with pytest.warns(UserWarning, match="channels_last off: torch may compute wrong"):
        contender = Contender(small("bp"), setup)
    assert all(value.is_contiguous() for value in (*contender.local.parameters(), contender._batch[0]))
    contender = Contender(small("bp", width=LEAST_CHANNELS), setup)
    assert not all(value.is_contiguous() for value in contender.local.parameters())
    assert not contender._batch[0].is_contiguous()


def test_a_benchmark_says_the_layout_that_it_used() -> None:
    setup = Setup(methods=("bp",), batch_size=2, steps=1, warmup=0, threads=1, image_size=16, channels_last=True)
    wide = find_model("localize:cifar_resnet8")
    with pytest.warns(UserWarning, match="channels_last off: torch may compute wrong"):
        report = measure(replace(wide, make=lambda classes, size: cifar_resnet(8, width=4)), setup)
    assert report.settings["channels_last"] is False
    assert measure(wide, setup).settings["channels_last"] is True


def test_other_devices_have_every_layout() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 1, stride=2))
    assert lay_out(network, "cuda") is torch.channels_last


def steps(local: LocalGraphModule) -> list[torch.Tensor]:
    """Losses, then gradients, of a step."""
    losses = []
    for out in local.steps(*images()):
        out.loss.backward()
        losses.append(out.loss.detach())
    return [*losses, *(p.grad for p in local.parameters() if p.grad is not None)]
