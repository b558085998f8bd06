"""A step that runs out of memory: which local module, what it was doing, and what takes less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn

from localize import LocalGraphModule, LocalizeError, OutOfMemoryError, localize
from localize.memory.peak import measure
from localize.models import CifarResNet, cifar_resnet
from localize.training.data.batches import load_data
from localize.training.data.sources import open_source
from localize.training.recipe import Recipe
from localize.training.trainer import train

CUDA = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 7.00 GiB"
EXAMPLE = torch.zeros(2, 3, 32, 32)


class Failing(torch.autograd.Function):
    """Runs out of memory in the backward pass, as if on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(CUDA)


class Switched(nn.ReLU):
    """Runs out of memory when told to: in the ``forward`` or the ``backward`` pass."""

    fails: str = ""

    def forward(self, x: Tensor) -> Tensor:
        if self.fails == "forward":
            raise torch.OutOfMemoryError(CUDA)
        return Failing.apply(x) if self.fails == "backward" else super().forward(x)


def switched(**options: Any) -> tuple[LocalGraphModule, Switched]:
    """Return a localized chain whose second layer can be made to fail."""
    switch = Switched()
    model = nn.Sequential(
        *[nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), switch if i == 1 else nn.ReLU()) for i in range(4)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 10),
    )
    return localize(model, **{"d": 2, "example_inputs": torch.zeros(2, 3, 8, 8), "seed": 0, **options}), switch


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.rand(size, 3, 8, 8), torch.zeros(size, dtype=torch.int64)


def by_steps(local: LocalGraphModule, x: Tensor, y: Tensor) -> None:
    for out in local.steps(x, y):
        out.loss.backward()


def by_loss(local: LocalGraphModule, x: Tensor, y: Tensor) -> None:
    local.loss(x, y).backward()


def assert_explained(error: OutOfMemoryError, doing: str, index: int, name: str) -> None:
    text = str(error)
    assert text.startswith(f"out of memory in the {doing} of local module {index} ({name}), with a batch of ")
    assert "What takes less: a smaller batch; autocast to bfloat16 (amp); auxiliary networks of less depth" in text
    assert isinstance(error, LocalizeError)
    assert isinstance(error, torch.OutOfMemoryError)
    assert should_reduce_batch_size(error)
    cause = error.__cause__
    assert cause is not None
    assert not isinstance(cause, LocalizeError)
    assert str(cause).splitlines()[0] in text


@pytest.mark.parametrize("step", [by_steps, by_loss])
def test_on_a_cpu_that_cannot_hold_a_batch(step: Any) -> None:
    """More than the address space has: 10 billion images, which are one image in memory."""
    size = 10**10
    local = localize(cifar_resnet(8), d=2, example_inputs=EXAMPLE, seed=0)
    x, y = torch.zeros(1, 3, 32, 32).expand(size, -1, -1, -1), torch.zeros(1, dtype=torch.int64).expand(size)
    with pytest.raises(OutOfMemoryError, match="can't allocate memory") as caught:
        step(local, x, y)
    assert_explained(caught.value, "forward pass", 0, "conv1")
    forecast = measure(local, size)
    assert forecast.binding is not None
    assert f"in module {forecast.binding.index} ({forecast.binding.name}): {forecast.at}" in str(caught.value)
    assert f"with a batch of {size} x 3x32x32" in str(caught.value)


@pytest.mark.parametrize("step", [by_steps, by_loss])
def test_in_a_forward_pass(step: Any) -> None:
    local, switch = switched()
    found = measure(local, 4)
    switch.fails = "forward"
    with pytest.raises(OutOfMemoryError) as caught:
        step(local, *batch())
    # The forecast fails likewise, and is left out.
    assert "forecast" not in str(caught.value)
    assert_explained(caught.value, "forward pass", 1, "1")
    switch.fails = ""
    step(local, *batch())
    assert measure(local, 4) == found


def test_in_the_backward_pass_of_loss() -> None:
    local, switch = switched()
    local.plan.memory(4, rivals=False)  # kept: what fails later does not change it
    switch.fails = "backward"
    with pytest.raises(OutOfMemoryError, match="The step's peak is forecast to be") as caught:
        by_loss(local, *batch())
    assert_explained(caught.value, "backward pass", 1, "1")
    # A backward pass of the user's own says what torch says.
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory") as plain:
        by_steps(local, *batch())
    assert not isinstance(plain.value, LocalizeError)


def test_in_the_criterion() -> None:
    def criterion(logits: Tensor, target: Tensor) -> Tensor:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    local, _ = switched(criterion=criterion)
    with pytest.raises(OutOfMemoryError) as caught:
        by_steps(local, *batch())
    assert_explained(caught.value, "forward pass", 0, "0")


def test_on_an_input_that_was_not_planned_for() -> None:
    """The cause is memory, not the input."""
    local, switch = switched()
    switch.fails = "forward"
    with pytest.raises(OutOfMemoryError, match="with a batch of 2 x 3x12x12"):
        by_steps(local, torch.rand(2, 3, 12, 12), torch.zeros(2, dtype=torch.int64))


def test_backpropagation_is_told_of_checkpointing() -> None:
    local, switch = switched(method="bp")
    switch.fails = "forward"
    with pytest.raises(OutOfMemoryError, match="method='checkpoint'"):
        by_steps(local, *batch())


def test_other_errors_stay_what_they_are() -> None:
    local, switch = switched()
    switch.forward = lambda x: (_ for _ in ()).throw(RuntimeError("no such luck"))  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no such luck") as caught:
        by_steps(local, *batch())
    assert not isinstance(caught.value, LocalizeError)


@pytest.mark.parametrize("doing", ["forward", "backward", "update"])
def test_in_the_training_loop(doing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, switch = switched()
    data = load_data(open_source("digits"), image_size=8, channels=3, limit=40)
    if doing == "update":

        def step(self: Any, closure: Any = None) -> None:
            raise torch.OutOfMemoryError(CUDA)

        local.plan.memory(20, rivals=False, amp=None)
        monkeypatch.setattr(torch.optim.SGD, "step", step)
    else:
        switch.fails = doing
    with pytest.raises(OutOfMemoryError) as caught:
        train(local, data, Recipe(epochs=1, batch_size=20), tmp_path / "run")
    if doing == "update":
        assert str(caught.value).startswith("out of memory in the update, with a batch of 20 x 3x8x8: CUDA out of")
        assert "forecast" in str(caught.value)
    else:
        assert_explained(caught.value, f"{doing} pass", 1, "1")


def test_the_smallest_batch(resnet: CifarResNet) -> None:
    local, switch = switched(method="dgl", modules=2)
    switch.fails = "forward"
    with pytest.raises(OutOfMemoryError) as caught, torch.autocast("cpu", torch.bfloat16):
        by_steps(local, *batch(1))
    assert "smaller batch" not in str(caught.value)
    assert "amp" not in str(caught.value)
