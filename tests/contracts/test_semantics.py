"""What localizing leaves as it was: the model's outputs, and everything about the model itself."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, LocalizeError, MethodError, PartitionError, check, localize
from localize.models import CifarResNet, cifar_resnet
from tests.models.zoo import ZOO, Entry, assert_same, every_model, localized
from tests.tools.snapshot import Snapshot


@every_model
def test_eval_is_the_models_own(entry: Entry) -> None:
    local = localized(entry)
    x, _ = entry.batch()
    with torch.no_grad():
        expected = local.primary.eval()(x)
        assert torch.equal(local.eval()(x), expected)
    local.train()
    assert expected.shape == (2, 10)
    assert expected.std() > 0


@every_model
def test_training_forward_is_the_models_own(entry: Entry) -> None:
    """Local modules one behind the other, dropout and stochastic depth active: outputs and batch-norm statistics."""
    local = localized(entry)
    twin = copy.deepcopy(local.primary).train()
    x, _ = entry.batch()
    torch.manual_seed(5)
    expected = twin(x)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert torch.equal(local(x), expected)
    assert torch.equal(torch.get_rng_state(), after)
    assert_same(dict(local.primary.named_buffers()), dict(twin.named_buffers()))


KINDS = ("resnet18", "mobilenet_v2", "efficientnet_b0-drop", "densenet121", "resnetv2_50", "vit_tiny-drop")


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.name in KINDS], ids=lambda entry: entry.name)
def test_model_is_left_as_it_was(entry: Entry) -> None:
    model = entry.build()
    before = Snapshot(model)
    local = localize(model, d=2, seed=1, example_inputs=entry.batch()[0])
    assert before.differences() == []
    assert local.primary is model
    assert [name for name in local.state_dict() if name.startswith("primary.")] == [
        f"primary.{name}" for name in model.state_dict()
    ]


class Eccentric(nn.Module):
    """Writes to itself in forward, has modes of its own, hooks, a frozen parameter, and a patched forward."""

    seen: torch.Tensor
    scratch: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = cifar_resnet(8, width=4)
        self.calls: list[str] = []
        self.count = 0
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("scratch", torch.ones(1), persistent=False)
        self.body.bn1.eval()
        self.body.layer2[0].bn2.train(False)
        self.body.conv1.weight.requires_grad_(False)
        self.body.layer3.register_forward_hook(lambda *_: self.calls.append("forward"))
        self.body.fc.register_forward_pre_hook(lambda *_: self.calls.append("pre"))
        self.body.layer1.register_full_backward_hook(lambda *_: self.calls.append("backward"))
        own = self.body.forward
        self.body.forward = lambda x: own(x) + 0  # type: ignore[method-assign]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count += 1
        self.last = x
        self.scratch = self.scratch * 2
        self.seen += 1
        result: torch.Tensor = self.body(x)
        return result


def fails_in_the_pipeline(model: nn.Module) -> None:
    localize(model, example_inputs=torch.empty(2, 7, 16, 16), seed=0)


def fails_in_grouping(model: nn.Module) -> None:
    localize(model, modules=100, example_inputs=torch.empty(2, 3, 16, 16), seed=0)


def fails_in_the_method(model: nn.Module) -> None:
    localize(model, "bp", modules=2, example_inputs=torch.empty(2, 3, 16, 16), seed=0)


def fails_in_the_options(model: nn.Module) -> None:
    localize(model, depth=3, seed=0)


@pytest.mark.parametrize("training", [True, False])
def test_eccentric_model_is_left_as_it_was(training: bool) -> None:
    model = Eccentric()
    model.training = training
    before = Snapshot(model)
    local = localize(model, d=2, seed=1, example_inputs=torch.empty(2, 3, 16, 16))
    assert before.differences() == []
    assert local.training is training
    assert check(model, example_inputs=torch.empty(2, 3, 16, 16)) == []
    assert before.differences() == []


@pytest.mark.parametrize(
    "attempt", [fails_in_the_pipeline, fails_in_grouping, fails_in_the_method, fails_in_the_options]
)
def test_a_failure_leaves_the_model_as_it_was(attempt: Callable[[nn.Module], None]) -> None:
    model = Eccentric()
    before = Snapshot(model)
    with pytest.raises(LocalizeError):
        attempt(model)
    assert before.differences() == []


def test_an_error_of_the_models_own_leaves_it_as_it_was() -> None:
    class Broken(Eccentric):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise KeyError("no such thing")

    model = Broken()
    before = Snapshot(model)
    with pytest.raises(LocalizeError, match="no such thing"):
        localize(model, seed=0)
    assert before.differences() == []


def test_the_snapshot_sees_every_kind_of_change() -> None:
    """The comparison the tests above rest on can fail."""

    def change(edit: Callable[[Any], Any]) -> list[str]:
        model = Eccentric()
        before = Snapshot(model)
        edit(model)
        return before.differences()

    def reassign(m: Any) -> None:
        m.body.fc.weight = nn.Parameter(m.body.fc.weight.detach())

    def in_place(m: Any) -> None:
        m.body.bn1.running_mean.add_(0)

    edits: list[Callable[[Any], Any]] = [
        reassign,
        in_place,
        lambda m: m.body.bn1.train(),
        lambda m: m.body.conv1.weight.requires_grad_(),
        lambda m: m.body.register_forward_hook(lambda *_: None),
        lambda m: setattr(m, "extra", 1),
        lambda m: setattr(m, "count", 1),
        lambda m: m.calls.append("x"),
        lambda m: m.body.__dict__.pop("forward"),
        lambda m: setattr(m.body, "fc", nn.Linear(16, 10)),
        lambda m: torch.rand(()),
    ]
    assert [index for index, edit in enumerate(edits) if not change(edit)] == []


def test_without_a_seed_the_global_generator_is_drawn_from(resnet: nn.Module) -> None:
    example = torch.empty(2, 3, 16, 16)

    def weight(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        local = localize(resnet, d=2, example_inputs=example)
        return local.get_parameter("module_0.auxiliary.head.classifier.weight")

    assert torch.equal(weight(1), weight(1))
    assert not torch.equal(weight(1), weight(2))


def test_deepcopy_is_independent(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=batch[0])
    resnet.layer1[0].conv1.weight.requires_grad_(False)
    twin = copy.deepcopy(local)
    assert isinstance(twin, LocalGraphModule)
    assert twin.plan == local.plan
    assert twin.criterion is local.criterion
    assert_same(twin.state_dict(), local.state_dict())
    flags = {name: (p.requires_grad, p.dtype) for name, p in local.named_parameters()}
    assert {name: (p.requires_grad, p.dtype) for name, p in twin.named_parameters()} == flags
    kept = {name: value.clone() for name, value in local.state_dict().items()}
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.5)
    twin.loss(*batch).backward()
    optimizer.step()
    assert_same(local.state_dict(), kept)
    assert all(p.grad is None for p in local.parameters())
    moved = [name for name, value in twin.state_dict().items() if not torch.equal(value, kept[name])]
    assert {"primary.conv1.weight", "module_0.auxiliary.head.classifier.weight", "primary.bn1.running_mean"} <= {*moved}
    with torch.no_grad():
        assert torch.equal(twin.eval()(batch[0]), twin.primary(batch[0]))


@pytest.mark.parametrize("save", [pickle.dumps, lambda local: torch.save(local, io.BytesIO())], ids=["pickle", "torch"])
def test_pickling_is_refused(resnet: nn.Module, save: Callable[[Any], Any]) -> None:
    local = localize(resnet, d=2, seed=0, example_inputs=torch.empty(2, 3, 16, 16))
    with pytest.raises(LocalizeError, match=r"not pickled.*state_dict\(\)") as caught:
        save(local)
    assert "\n" not in str(caught.value)


def test_state_dict_round_trip(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    locals_ = [localize(cifar_resnet(8, width=4), d=3, seed=seed, example_inputs=batch[0]) for seed in (1, 2)]
    first, second = locals_
    first.loss(*batch).backward()
    torch.optim.SGD(first.parameters(), lr=0.1).step()
    second.load_state_dict(first.state_dict())
    assert_same(second.state_dict(), first.state_dict())
    plain = cifar_resnet(8, width=4)
    plain.load_state_dict(first.primary.state_dict())
    assert torch.equal(plain.eval()(batch[0]), first.eval()(batch[0]))


def hooked(model: nn.Module, calls: list[str]) -> list[str]:
    """Put hooks on some modules, and return the sorted names of those that a step must call."""
    names = ["conv1", "layer1.0", "layer1.0.conv2", "layer2.0.downsample", "layer3.0.bn2", "fc"]
    for name in names:
        module = model.get_submodule(name)
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(f"pre {name}"))
        module.register_forward_hook(lambda *_, name=name: calls.append(f"post {name}"))
    inner = ["layer1.0.conv2", "fc"]  # whose inputs have gradients
    for name in inner:
        hook = lambda *_, name=name: calls.append(f"backward {name}")  # noqa: E731
        model.get_submodule(name).register_full_backward_hook(hook)
    return sorted([f"{kind} {name}" for name in names for kind in ("pre", "post")] + [f"backward {n}" for n in inner])


def test_hooks_do_not_fire_when_localizing(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    calls: list[str] = []
    hooked(resnet, calls)
    localize(resnet, d=2, seed=0, example_inputs=batch[0])
    assert calls == []


def test_hooks_fire_when_training(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    calls: list[str] = []
    expected = hooked(resnet, calls)
    local = localize(resnet, d=2, seed=0, max_cut=1, example_inputs=batch[0])
    for step in (lambda: [out.loss.backward() for out in local.steps(*batch)], lambda: local.loss(*batch).backward()):
        calls.clear()
        step()
        assert sorted(calls) == expected


def test_hooks_may_come_later_and_change_values(resnet: CifarResNet, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    local = localize(resnet, d=2, seed=0, max_cut=1, example_inputs=batch[0])
    resnet.layer1[0].register_forward_hook(lambda module, args, out: out * 0)
    spread = [float(out.logits.detach().std(0).sum()) for out in local.steps(*batch)]
    assert local.plan.modules[1].layers == (1,)
    assert spread[0] > 0
    assert spread[1] == 0


def test_meta_device() -> None:
    with torch.device("meta"):
        model = cifar_resnet(20)
    local = localize(model, d=3)
    assert {tensor.device.type for tensor in local.state_dict().values()} == {"meta"}
    assert local.plan == localize(cifar_resnet(20), d=3).plan
    (first, *_) = local.steps(torch.empty(4, 3, 32, 32, device="meta"), torch.empty(4, device="meta").long())
    assert first.logits.shape == (4, 10)


def test_errors_have_the_subclass_that_says_where(resnet: nn.Module) -> None:
    with pytest.raises(PartitionError):
        fails_in_grouping(resnet)
    with pytest.raises(MethodError):
        fails_in_the_method(resnet)
