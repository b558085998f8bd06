"""Runtimes against the plain schedule: losses, gradients and running statistics, through steps() and loss()."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, Runtime, localize
from localize.bench.sweep.isolation import fake_step
from localize.memory.peak import peak_step_bytes
from localize.methods import METHODS
from localize.models import cifar_resnet
from localize.runtime.compiled import PATIENCE
from localize.runtime.layout import LEAST_CHANNELS
from localize.runtime.optimizers import build
from localize.runtime.options import AUTO, PLAIN, OptionError
from localize.runtime.regions import regions_of, structure
from localize.runtime.schedule import choose
from passes.errors import InputError
from tests.models.zoo import Entry, every_model
from tests.tools.rules import images, small

QUICK = ("auglocal", "mlaan", "gn-dgl", "checkpoint")
WIDE = LEAST_CHANNELS
"""Width of networks that channels last is for on every CPU."""
EAGER = Runtime(compile=True, backend="eager")
Gradients = dict[str, torch.Tensor]


def by_steps(local: LocalGraphModule, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[list[torch.Tensor], Gradients]:
    losses = []
    for out in local.steps(*batch):
        out.loss.backward()
        losses.append(out.loss.detach())
        del out
    return losses, _gradients(local)


def by_loss(local: LocalGraphModule, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[list[torch.Tensor], Gradients]:
    loss = local.loss(*batch)
    loss.backward()
    return [loss.detach()], _gradients(local)


every_way = pytest.mark.parametrize("way", [by_steps, by_loss])


def _gradients(local: LocalGraphModule) -> Gradients:
    return {name: p.grad for name, p in local.named_parameters() if p.grad is not None}


def assert_alike(
    local: LocalGraphModule, plain: LocalGraphModule, way: Any, batch: Any, rtol: float = 0.0, atol: float = 0.0
) -> None:
    """Three steps, with running statistics after them; bit for bit, unless tolerances are given."""
    for step in range(3):
        found: list[Any] = []
        for network in (local, plain):
            torch.manual_seed(step)
            network.zero_grad()
            found.append(way(network, batch))
        torch.testing.assert_close(*found, rtol=rtol, atol=atol)
    torch.testing.assert_close(dict(local.named_buffers()), dict(plain.named_buffers()), rtol=rtol, atol=atol)


def twins(local: LocalGraphModule, runtime: Runtime) -> tuple[LocalGraphModule, LocalGraphModule]:
    plain = copy.deepcopy(local)
    local.runtime = runtime
    return local, plain


@every_way
@pytest.mark.parametrize("method", [pytest.param(m, marks=[] if m in QUICK else [pytest.mark.slow]) for m in METHODS])
def test_compiled_regions_of_every_method(method: str, way: Any) -> None:
    local, plain = twins(small(method), EAGER)
    assert_alike(local, plain, way, images())
    assert local.runtime.artefacts.eager == {}
    # Recomputed layers run as they are.
    assert (local.runtime.artefacts.count > 0) == (method != "checkpoint")


@pytest.mark.slow
@every_model
def test_compiled_regions_of_every_model(entry: Entry) -> None:
    local, plain = twins(entry.localize(), EAGER)
    assert_alike(local, plain, by_steps, entry.batch())
    assert local.runtime.artefacts.eager == {}
    assert local.runtime.artefacts.count > 0


@pytest.mark.slow
def test_inductor_within_rounding() -> None:
    local, plain = twins(small("auglocal"), Runtime(compile=True))
    assert_alike(local, plain, by_steps, images(), rtol=1e-4, atol=1e-5)
    assert local.runtime.artefacts.eager == {}
    assert local.runtime.artefacts.count > 0


def test_deep_networks_have_no_more_distinct_blocks() -> None:
    found = {}
    for depth in (20, 110):
        regions = [region for m in localize(cifar_resnet(depth), d=6).local_modules for region in regions_of(m)]
        found[depth] = (len(regions), len({structure(region) for region in regions}))
    assert found == {20: (30, 13), 110: (300, 15)}


@pytest.mark.slow
def test_a_deep_network_compiles_as_much_as_a_shallow_one() -> None:
    found = {}
    for depth in (20, 110):
        local = localize(cifar_resnet(depth, width=4), d=6, runtime=EAGER, example_inputs=torch.empty(2, 3, 8, 8))
        by_steps(local, images(size=(8, 8)))
        found[depth] = local.runtime.artefacts.count
    assert found[20] <= found[110] <= 1.5 * found[20]


def chain(*between: nn.Module) -> LocalGraphModule:
    """Three blocks, of which the first holds more modules."""

    def block(channels: int, *more: nn.Module) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), *more, nn.ReLU())

    model = nn.Sequential(
        block(3, *between), block(8), block(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    return localize(model, d=2, seed=0, example_inputs=images()[0])


def test_nothing_is_wrapped_or_renamed() -> None:
    local, plain = twins(small("auglocal"), EAGER)
    identities = {name: id(p) for name, p in local.named_parameters()}
    by_steps(local, images())
    assert {name: id(p) for name, p in local.named_parameters()} == identities
    assert list(local.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in local.named_modules()] == [name for name, _ in plain.named_modules()]
    assert all(module._compiled_call_impl is None for module in local.modules())


def test_hooks_of_the_user_fire() -> None:
    local = chain()
    local.runtime = EAGER
    fired = []
    local.primary.get_submodule("0.1").register_forward_hook(lambda *_: fired.append(1))
    with pytest.warns(UserWarning, match=r"the code of .* runs uncompiled: a BatchNorm2d has hooks"):
        by_steps(local, images())
    assert fired == [1]
    assert len(local.runtime.artefacts.eager) == 1
    assert "has hooks" in str(local.runtime)


class Breaks(nn.Module):
    """Does what Dynamo cannot trace, and torch.fx never sees."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return x * 2


def test_what_cannot_be_compiled_runs_as_it_is_and_says_so() -> None:
    local, plain = twins(chain(Breaks()), EAGER)
    with pytest.warns(UserWarning, match=r"runs uncompiled: it cannot be compiled: .*graph_break") as told:
        by_steps(local, images())
    assert len(told) == 1
    by_steps(plain, images())
    assert_alike(local, plain, by_steps, images())
    assert local.runtime.artefacts.count > 0


def test_a_backend_that_fails() -> None:
    def backend(graph: Any, inputs: Any) -> Any:
        raise NotImplementedError("no such device")

    local, plain = twins(small("auglocal"), Runtime(compile=True, backend=backend))
    with pytest.warns(UserWarning, match="NotImplementedError: no such device") as told:
        found = by_steps(local, images())
    assert len(told) == 1
    torch.testing.assert_close(found, by_steps(plain, images()), rtol=0, atol=0)


def test_errors_of_the_users_are_the_users() -> None:
    local = small("auglocal", runtime=EAGER)
    x, y = images()
    with pytest.raises(InputError, match="does not run on an input"):
        list(local.steps(x.double(), y))
    by_steps(local, (x, y))
    assert local.runtime.artefacts.eager == {}


def test_another_batch_size_is_compiled_for_when_it_is_frequent() -> None:
    local, plain = twins(small("bp"), EAGER)
    x, y = images(samples=6)
    by_steps(local, (x, y))
    compiled = local.runtime.artefacts.count
    for _ in range(PATIENCE):
        local.zero_grad()
        by_steps(local, (x[:4], y[:4]))
    assert local.runtime.artefacts.count == compiled
    by_steps(local, (x[:4], y[:4]))
    assert local.runtime.artefacts.count == 2 * compiled
    plain.load_state_dict(local.state_dict())
    assert_alike(local, plain, by_steps, (x[:4], y[:4]))


def test_inference_runs_as_it_is() -> None:
    local = small("auglocal", runtime=EAGER)
    x, y = images()
    local.predictions(x)
    local.eval()(x)
    local.train()
    with torch.no_grad():
        local.loss(x, y)
    assert local.runtime.artefacts.count == 0


def test_a_copy_goes_on_with_the_same_compiled_code() -> None:
    local = small("auglocal", runtime=EAGER)
    by_steps(local, images())
    twin, count = copy.deepcopy(local), local.runtime.artefacts.count
    by_steps(twin, images())
    assert twin.runtime.asked == EAGER
    assert twin.runtime.artefacts.count == count


def test_the_runtime_is_no_part_of_the_plan() -> None:
    assert small("auglocal", runtime=EAGER).plan == small("auglocal").plan


def test_going_backward_twice_is_refused() -> None:
    local = small("bp", runtime=Runtime(compile=True, backend="aot_eager"))
    (out,) = local.steps(*images())
    with pytest.raises(RuntimeError, match="retain_graph=False"):
        out.loss.backward(retain_graph=True)


@every_way
@pytest.mark.parametrize("method", ["auglocal", "mlaan"])
def test_autocast_is_one_region_a_module(method: str, way: Any) -> None:
    local, plain = twins(small(method), Runtime(amp="bfloat16"))
    for step in range(2):
        local.zero_grad()
        plain.zero_grad()
        found = way(local, images(seed=step))
        losses, steps = [], plain.steps(*images(seed=step))
        while True:
            with torch.autocast("cpu", torch.bfloat16):
                out = next(steps, None)
            if out is None:
                break
            out.loss.backward()
            losses.append(out.loss.detach())
        expected = losses if way is by_steps else [torch.stack(losses).sum()]
        torch.testing.assert_close(found, (expected, _gradients(plain)), rtol=1e-6 * (way is by_loss), atol=0)


def test_compiled_under_autocast() -> None:
    local, plain = twins(small("auglocal"), Runtime(compile=True, backend="eager", amp="bfloat16"))
    plain.runtime = Runtime(amp="bfloat16")
    assert_alike(local, plain, by_steps, images())
    assert local.runtime.artefacts.count > 0


def test_float16_carries_the_scale_of_losses_on() -> None:
    local, plain = twins(small("auglocal"), Runtime(amp="float16"))
    for network, region in ((local, contextlib.nullcontext()), (plain, torch.autocast("cpu", torch.float16))):
        for _ in range(2):
            network.zero_grad()
            with region:
                loss = network.loss(*images())
            (loss * 1024.0).backward()
        assert network._loss_scale.value is not None
        assert float(network._loss_scale.value) == 1024.0
    found, expected = _gradients(local), _gradients(plain)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1.0)  # of gradients times 1024


def test_channels_last_within_rounding() -> None:
    local, plain = twins(small("auglocal", width=WIDE), Runtime(channels_last=True))
    assert_alike(local, plain, by_steps, images(), rtol=1e-4, atol=1e-5)
    convolutions = [p for p in local.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in convolutions)
    twin = copy.deepcopy(local)
    for network in (local, twin):
        network.runtime = "plain"
        assert all(p.is_contiguous() for p in network.parameters())


@pytest.mark.parametrize("asked", ["fast", 3, None])
def test_unknown_runtimes(asked: Any) -> None:
    with pytest.raises(OptionError, match="unknown runtime"):
        small("bp", runtime=asked)


@pytest.mark.parametrize("options", [{"compile": 2}, {"amp": "int8"}, {"backend": 3}])
def test_options_out_of_range(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Runtime(**options)


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    local, plain = twins(small("auglocal"), Runtime(compile=True))
    with pytest.warns(UserWarning, match=r"runtime: compile off: torch.compile needs a C\+\+ compiler"):
        found = by_steps(local, images())
    torch.testing.assert_close(found, by_steps(plain, images()), rtol=0, atol=0)
    assert "compile off" in str(local.runtime)


def test_a_model_that_its_user_compiled() -> None:
    local, plain = twins(chain(), EAGER)
    block = local.primary.get_submodule("1")
    block.compile(backend="eager")
    own = block._compiled_call_impl
    with pytest.warns(UserWarning, match="a Sequential has hooks, or a call of its own"):
        found = by_steps(local, images())
    torch.testing.assert_close(found, by_steps(plain, images()), rtol=0, atol=0)
    assert block._compiled_call_impl is own


def test_frozen_layers_and_settings_that_change() -> None:
    local, plain = twins(small("auglocal"), EAGER)
    assert_alike(local, plain, by_steps, images())
    for network in (local, plain):
        network.primary.get_submodule("layer1").requires_grad_(False)
        network.primary.get_submodule("layer2").eval()
        network.primary.get_submodule("layer3.0.bn1").momentum = 0.5  # type: ignore[assignment]
    assert_alike(local, plain, by_steps, images())
    local.double()
    plain.double()
    assert_alike(local, plain, by_steps, (images()[0].double(), images()[1]))


def test_what_watches_operations_sees_the_plain_schedule() -> None:
    local = small("auglocal", width=WIDE, runtime=Runtime(compile=True, backend="eager", channels_last=True))
    assert fake_step(local) == fake_step(small("auglocal", width=WIDE))
    by_steps(local, images())
    assert not all(p.is_contiguous() for p in local.parameters())
    assert peak_step_bytes(small("auglocal", runtime=EAGER), 4) == peak_step_bytes(small("auglocal"), 4)


def test_a_runtime_chosen_by_device() -> None:
    local, plain = twins(small("auglocal", width=WIDE), AUTO)
    told = local.runtime.describe("cpu")
    assert told.startswith("Runtime(channels_last=True, fused=True) on cpu\n")
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [
        "compile off", "channels_last on", "fused on",
    ]  # fmt: skip
    assert_alike(local, plain, by_steps, images(), rtol=1e-4, atol=1e-5)
    cuda = choose(AUTO, "cuda")
    assert cuda.runtime.amp is None
    assert choose(AUTO, "mps").runtime == PLAIN
    assert (cuda.runtime.channels_last, cuda.runtime.fused) == (True, True)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
@pytest.mark.parametrize("channels_last", [False, True])
def test_fused_optimizers_within_rounding(kind: Any, channels_last: bool) -> None:
    local, plain = twins(small("auglocal", width=WIDE), Runtime(fused=True, channels_last=channels_last))
    options = {"lr": 0.01, "weight_decay": 1e-3} | ({"momentum": 0.9} if kind is torch.optim.SGD else {})
    optimizers = [build(kind, network, **options) for network in (local, plain)]
    assert [optimizer.defaults["fused"] for optimizer in optimizers] == [True, None]
    for step in range(4):
        if step == 2 and channels_last:
            local.runtime.lay_out(local)
        for network, optimizer in zip((local, plain), optimizers, strict=True):
            # The same gradients for both, as they would lie in memory.
            for name, p in network.named_parameters():
                values = torch.randn(p.shape, generator=torch.Generator().manual_seed(step + len(name)))
                p.grad = torch.empty_like(p).copy_(values)
            optimizer.step()
    torch.testing.assert_close(dict(local.named_parameters()), dict(plain.named_parameters()), rtol=1e-6, atol=1e-7)


def test_an_optimizer_that_cannot_be_fused() -> None:
    local = small("bp", runtime=Runtime(fused=True))
    with pytest.warns(UserWarning, match="runtime: RMSprop is not fused"):
        assert isinstance(build(torch.optim.RMSprop, local, lr=0.1), torch.optim.RMSprop)


def test_each_network_has_a_schedule_of_its_own() -> None:
    local, other = small("bp"), small("bp")
    assert local.runtime is not other.runtime
    assert copy.deepcopy(local).runtime is not local.runtime
    local.runtime.start(local, torch.empty(2, 3, 16, 16, device="meta"))
    assert str(local.runtime).endswith("on meta")
    assert str(other.runtime).endswith("on cpu")
