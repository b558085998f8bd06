"""local.loss: the gradients of local.steps behind one scalar and its one backward."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, localize
from localize.models import CifarResNet, cifar_resnet
from tests.models.zoo import Entry, assert_same, every_model, gradients, localized
from tests.tools.paths import TESTS

Batch = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def local(resnet: CifarResNet, batch: Batch) -> LocalGraphModule:
    return localize(resnet, d=2, seed=0, example_inputs=batch[0])


def after(local: LocalGraphModule, run: Callable[[], object]) -> dict[str, torch.Tensor]:
    """Gradients of one call, from the same random numbers every time."""
    local.zero_grad()
    torch.manual_seed(2)
    run()
    found = gradients(local)
    local.zero_grad()
    return found


def by_steps(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    total = torch.zeros(())
    for out in local.steps(x, y):
        (out.loss * factor).backward()
        total += out.loss.detach()
    return total


def by_loss(local: LocalGraphModule, x: torch.Tensor, y: torch.Tensor, factor: float = 1.0) -> None:
    value = local.loss(x, y)
    (value * factor).backward()


@every_model
def test_gradients_of_steps(entry: Entry) -> None:
    local, batch = localized(entry), entry.batch()
    expected = after(local, lambda: by_steps(local, *batch))
    assert_same(after(local, lambda: local.loss(*batch).backward()), expected)
    assert sorted(expected) == sorted(name for name, _ in local.named_parameters())


def test_calling_is_the_same(local: LocalGraphModule, batch: Batch) -> None:
    expected = after(local, lambda: by_steps(local, *batch))
    assert_same(after(local, lambda: local(*batch).backward()), expected)
    assert_same(after(local, lambda: local(batch[0], y=batch[1]).backward()), expected)


def test_value_is_the_sum(local: LocalGraphModule, batch: Batch) -> None:
    value = local.loss(*batch)
    assert value.shape == ()
    assert value.requires_grad
    torch.testing.assert_close(value.detach(), by_steps(local, *batch))


@pytest.mark.parametrize("factor", [1024.0, 0.25])
def test_a_factor_passes_through(local: LocalGraphModule, batch: Batch, factor: float) -> None:
    expected = {name: value * factor for name, value in after(local, lambda: local.loss(*batch).backward()).items()}
    assert_same(after(local, lambda: by_loss(local, *batch, factor)), expected)


def test_grad_scaler(local: LocalGraphModule, batch: Batch) -> None:
    plain = after(local, lambda: by_steps(local, *batch))
    weights = {name: p.detach().clone() for name, p in local.named_parameters()}
    optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(local.loss(*batch)).backward()
    assert_same(gradients(local), {name: value * 2.0**12 for name, value in plain.items()})
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**12
    expected = {name: value - 0.1 * plain[name] for name, value in weights.items()}
    for name, parameter in local.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name], rtol=2e-7, atol=1e-7)  # one rounding


def test_grad_scaler_skips_a_step_of_infinities(local: LocalGraphModule, batch: Batch) -> None:
    weights = {name: p.detach().clone() for name, p in local.named_parameters()}
    optimizer = torch.optim.SGD(local.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    x = batch[0].clone()
    x[0, 0, 0, 0] = torch.inf
    scaler.scale(local.loss(x, batch[1])).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**11
    assert_same({name: p.detach() for name, p in local.named_parameters()}, weights)


def test_accumulation_over_two_batches(local: LocalGraphModule, batch: Batch) -> None:
    other = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))

    def both(run: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[[], object]:
        return lambda: (run(*batch), run(*other))

    expected = after(local, both(lambda x, y: by_steps(local, x, y)))
    assert_same(after(local, both(lambda x, y: local.loss(x, y).backward())), expected)
    one = after(local, lambda: by_steps(local, *batch))
    assert not torch.equal(one["primary.conv1.weight"], expected["primary.conv1.weight"])


def test_nothing_reaches_the_parameters_before_the_backward(local: LocalGraphModule, batch: Batch) -> None:
    value = local.loss(*batch)
    assert gradients(local) == {}
    value.backward()
    assert len(gradients(local)) == len(list(local.parameters()))


def test_other_terms_may_be_added(local: LocalGraphModule, batch: Batch) -> None:
    plain = after(local, lambda: local.loss(*batch).backward())
    weight = local.get_parameter("primary.fc.weight")

    def with_penalty() -> None:
        value = local.loss(*batch)
        (value + weight.sum()).backward()

    found = after(local, with_penalty)
    torch.testing.assert_close(found["primary.fc.weight"], plain["primary.fc.weight"] + 1)
    del found["primary.fc.weight"], plain["primary.fc.weight"]
    assert_same(found, plain)


def test_second_backward_is_refused(local: LocalGraphModule, batch: Batch) -> None:
    value = local.loss(*batch)
    value.backward()
    with pytest.raises(RuntimeError, match="backward"):
        value.backward()
    value = local.loss(*batch)
    value.backward(retain_graph=True)
    before = gradients(local)
    with pytest.raises(RuntimeError, match="gone backward already"):
        value.backward()
    assert_same(gradients(local), before)


def test_without_gradients(local: LocalGraphModule, batch: Batch) -> None:
    expected = by_steps(local, *batch)
    local.zero_grad()
    with torch.no_grad():
        value = local.loss(*batch)
    assert not value.requires_grad
    torch.testing.assert_close(value, expected)
    with torch.no_grad():
        assert not any(out.loss.requires_grad for out in local.steps(*batch))
    assert gradients(local) == {}


def test_in_eval_mode(local: LocalGraphModule, batch: Batch) -> None:
    """Batch norm uses its statistics and does not move them, for whoever fine-tunes that way."""
    local.eval()
    before = {name: value.clone() for name, value in local.named_buffers()}
    expected = after(local, lambda: by_steps(local, *batch))
    assert_same(after(local, lambda: local.loss(*batch).backward()), expected)
    assert_same(dict(local.named_buffers()), before)


@pytest.mark.parametrize("steps", [1, 2])
def test_autocast_bfloat16(local: LocalGraphModule, batch: Batch, steps: int) -> None:
    def run(step: Callable[[], object]) -> Callable[[], None]:
        def several() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                for _ in range(steps):
                    step()

        return several

    expected = after(local, run(lambda: by_steps(local, *batch)))
    assert_same(after(local, run(lambda: local.loss(*batch).backward())), expected)
    assert {value.dtype for value in expected.values()} == {torch.float32}
    full = after(local, lambda: by_steps(local, *batch))
    assert not torch.equal(full["primary.conv1.weight"], expected["primary.conv1.weight"])
    with torch.autocast("cpu", torch.bfloat16):
        assert next(iter(local.steps(*batch))).logits.dtype == torch.bfloat16


def test_autocast_float16_finds_the_scale(local: LocalGraphModule, batch: Batch) -> None:
    """Gradients that float16 cannot hold survive once a step has seen the scaler's factor."""

    def run(step: Callable[[], object]) -> dict[str, torch.Tensor]:
        def cast() -> None:
            with torch.autocast("cpu", torch.float16):
                step()

        return after(local, cast)

    factor = 2.0**10
    expected = run(lambda: by_steps(local, *batch, factor))
    run(lambda: by_loss(local, *batch, factor))
    assert_same(run(lambda: by_loss(local, *batch, factor)), expected)


def test_a_parameter_without_effect_gets_no_gradient() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = cifar_resnet(8, width=4)
            self.idle = nn.Parameter(torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.net(x)
            return logits

    x, y = torch.randn(4, 3, 16, 16), torch.arange(4)
    local = localize(Idle(), d=2, seed=0, example_inputs=x)
    local.loss(x, y).backward()
    assert [name for name, p in local.named_parameters() if p.grad is None] == ["primary.idle"]


WORLD = 2


def test_two_ranks_under_ddp_stay_in_sync(tmp_path: Path) -> None:
    """Gradients are the mean of what each rank has alone; after three steps of SGD all weights agree."""
    worker = TESTS / "tools" / "ddp_worker.py"
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": os.pathsep.join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(worker), str(rank), str(WORLD), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0] * WORLD, "\n".join(outputs)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in range(WORLD)]
    first, second = results
    assert sorted(first["alone"]) == sorted(first["first"])
    assert_same(first["first"], second["first"])
    for name, value in first["first"].items():
        mean = (first["alone"][name] + second["alone"][name]) / WORLD
        torch.testing.assert_close(value, mean, rtol=1e-6, atol=1e-8)
    assert not torch.equal(first["alone"]["primary.conv1.weight"], second["alone"]["primary.conv1.weight"])
    assert_same(first["weights"], second["weights"])
    assert not torch.equal(first["weights"]["primary.conv1.weight"], first["start"]["primary.conv1.weight"])
