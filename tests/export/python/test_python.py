"""The export to Python source: what it rebuilds is the localized model, bit for bit."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from localize import METHODS, LocalizeError, localize
from localize.export.python.layers import layer_text
from localize.export.python.templates import filled, folded
from localize.export.python.values import UNPACKED, tensor_text
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from localize.runtime.exporting import ExportError
from tests.models.thirty import batch, localized, pairs
from tests.models.zoo import CLASSES, Entry
from tests.tools.exported_python import assert_same_step, rebuilt, run, source_of
from tests.tools.paths import GOLDEN

X = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
Y = torch.tensor([1, 3])


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=CLASSES, **options)


QUICK = (
    Entry("cifar_resnet8", lambda: cifar_resnet(8, width=4), 32),
    Entry("convnext-drop", _timm("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), drop_path_rate=0.2), 32),
    Entry("vit-drop", _timm("vit_tiny_patch16_224", depth=2, embed_dim=24, img_size=32, drop_rate=0.1), 32),
    Entry("densenet", _timm("densenet121", block_config=(2, 2), growth_rate=8), 32),
    Entry("mobilenet", _timm("mobilenetv3_small_050", drop_rate=0.1), 32),
)


PAIRS = [(QUICK[0], method) for method in METHODS]
PAIRS += [(entry, method) for entry in QUICK[1:] for method in ("auglocal", "predsim", "infopro+mlaan")]
PAIRS += [(QUICK[1], "gn-dgl"), (QUICK[4], "gn-dgl"), (QUICK[3], "dgl"), (QUICK[2], "bp")]


def _localized(entry: Entry, method: str, **options: Any) -> Any:
    modules = 4 if METHODS[method].local else None
    x = torch.rand(3, 3, entry.size, entry.size, generator=torch.Generator().manual_seed(3))
    try:
        local = entry.localize(method, **{"modules": modules, "example_inputs": x[:2], **options})
    except LocalizeError as error:
        pytest.skip(str(error))
    return local, x


@pytest.mark.parametrize(("entry", "method"), PAIRS, ids=[f"{entry.name}-{method}" for entry, method in PAIRS])
def test_losses_gradients_and_statistics_are_the_same_bit_for_bit(entry: Entry, method: str) -> None:
    local, x = _localized(entry, method)
    state = {name: value.clone() for name, value in local.state_dict().items()}
    network = rebuilt(local)
    assert all(torch.equal(value, state[name]) for name, value in local.state_dict().items())
    assert [*network.state_dict()] == [*local.state_dict()]
    assert_same_step(local, network, x, torch.tensor([1, 3, 0]))


@pytest.mark.registry
@pytest.mark.parametrize(("name", "method"), pairs())
def test_thirty_models(name: str, method: str) -> None:
    try:
        local = localized(name, method)
    except LocalizeError as error:
        pytest.skip(f"refused by localize(): {error}")
    x, y = batch(name)
    assert_same_step(local, rebuilt(local), x, y)


def test_the_text_is_the_same_for_the_same_model_and_other_weights() -> None:
    texts = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        texts.append(source_of(localize(cifar_resnet(8, width=4), "predsim", modules=3, seed=seed, example_inputs=X)))
    assert texts[0] == texts[1]
    assert max(map(len, texts[0].split("\n"))) <= 120


def test_golden() -> None:
    local = localize(cifar_resnet(8, width=4), "auglocal", d=3, modules=3, seed=0, example_inputs=X)
    text = re.sub(r"written by localize .*\.", "written by localize.", source_of(local))
    golden = GOLDEN / "cifar_resnet8_auglocal.py.txt"
    if "UPDATE_GOLDEN" in os.environ:
        golden.write_text(text, encoding="ascii")
    assert text == golden.read_text(encoding="ascii")


def test_it_runs_by_itself(tmp_path: Path) -> None:
    local = localize(cifar_resnet(8, width=4), "infopro", modules=3, seed=0, example_inputs=X)
    (tmp_path / "localized.py").write_text(source_of(local), encoding="ascii")
    torch.save({"state": local.state_dict(), "x": X, "y": Y}, tmp_path / "state.pt")
    script = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("localize", "passes", "timm", "torchvision", "networkx"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from localized import Localized
saved = torch.load(sys.argv[1] + "/state.pt")
network = Localized()
network.load_state_dict(saved["state"])
for name, loss, logits in network.steps(saved["x"], saved["y"]):
    loss.backward()
    print(loss.item().hex())
"""
    command = [sys.executable, "-I", "-W", "ignore", "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.random.fork_rng(devices=[]):
        expected = [out.loss.item() for out in local.steps(X, Y)]
    found = [float.fromhex(line) for line in done.stdout.split()]
    # Another process may have another number of threads, and sum in another order.
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["mlaan", "dgl+mlaan"])
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_copies_are_pulled(method: str, variant: str) -> None:
    local = localize(cifar_resnet(8, width=4), method, modules=4, seed=0, example_inputs=X, variant=variant)
    network: Any = rebuilt(local)
    for one in (local, network):
        optimizer = torch.optim.SGD(one.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            for _, loss, _ in one.steps(X, Y):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if one is network:
                network.pull()
    for (name, mine), (_, its) in zip(local.state_dict().items(), network.state_dict().items(), strict=True):
        assert torch.equal(mine, its), name


@pytest.mark.parametrize("entry", QUICK, ids=lambda entry: entry.name)
def test_inference_is_the_models_own(entry: Entry) -> None:
    local, x = _localized(entry, "auglocal")
    network = rebuilt(local)
    local.eval()
    network.eval()
    assert torch.equal(network(x), local(x))
    local.train()
    network.train()
    assert network(x).shape == local(x).shape


class Odd(nn.Module):
    """Names, constants and layers that are not everyday ones."""

    order: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.parts = nn.ModuleDict(
            {
                "a<script>b": nn.Sequential(nn.Conv2d(8, 8, 3, padding="same"), nn.GroupNorm(2, 8), nn.PReLU(8)),
                "'''#": nn.Conv2d(8, 16, (3, 1), stride=2),
                "über x": nn.ConvTranspose2d(16, 16, 2, stride=2, groups=4),
                "\ue000k\ue001v\ue002": nn.Conv2d(16, 16, 1),
                "0": nn.Conv2d(16, 16, 1, bias=False),
            }
        )
        self.register_buffer("table", torch.arange(16.0)[None, :, None, None] / 3, persistent=False)
        self.register_buffer("order", torch.randperm(16, generator=torch.Generator().manual_seed(0)), persistent=False)
        self.register_buffer("kept", torch.ones(16, dtype=torch.int32))
        self.register_parameter("w'q", nn.Parameter(torch.full((1, 16, 1, 1), 0.5)))
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.head = nn.Linear(16, CLASSES)
        self.twin = self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Odd things to odd names."""
        x = self.stem(x)
        for part in self.parts.values():
            x = part(x)
        x = x + self.table
        x = x[:, self.order] * getattr(self, "w'q") + torch.tensor([0.25, -1.0]).sum()
        pooled = F.dropout(x.mean((2, 3)), 0.2, self.training)
        return self.head(pooled + self.frozen(pooled) * self.kept)  # type: ignore[no-any-return]


@pytest.mark.parametrize("method", ["auglocal", "mlaan", "predsim", "bp"])
def test_names_constants_frozen_and_tied_parameters(method: str) -> None:
    model = Odd()
    local = localize(model, method, example_inputs=X, seed=0)
    network = rebuilt(local)
    assert_same_step(local, network, X, Y)
    assert not network.get_parameter("primary.frozen.weight").requires_grad
    assert network.get_parameter("primary.twin.weight") is network.get_parameter("primary.head.weight")
    assert torch.equal(rebuilt(local.eval()).eval()(X), local(X))


class Branching(nn.Module):
    """Auxiliary logits, in a container, and an in-place change of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.third = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.aside = nn.Linear(8, CLASSES)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        """Return a dict in training."""
        x = self.first(x.mul_(2.0))
        kept = x
        x = self.second(x)
        x = self.third(x).add(kept)
        logits = self.head(x.mean((2, 3)))
        if self.training:
            return {"out": logits, "more": [self.aside(kept.mean((2, 3))), x.mean()]}
        return logits


@pytest.mark.parametrize("method", ["auglocal", "mlaan", "bp"])
def test_auxiliary_logits(method: str) -> None:
    local = localize(Branching(), method, output="out", example_inputs=X, seed=0)
    assert_same_step(local, rebuilt(local), X, Y)


@pytest.mark.parametrize("method", ["auglocal", "mlaan"])
def test_an_output_criterion_is_handed_in(method: str) -> None:
    def criterion(output: Any, target: torch.Tensor) -> torch.Tensor:
        out, (more, _) = output["out"], output["more"]
        return F.cross_entropy(out, target) + 0.5 * F.cross_entropy(more, target)

    local = localize(Branching(), method, output="out", output_criterion=criterion, example_inputs=X, seed=0)
    text = source_of(local)
    assert "Localized(output_criterion=...)" in text
    with pytest.raises(TypeError, match="output_criterion"):
        run(text)["Localized"]()
    assert_same_step(local, rebuilt(local, output_criterion=criterion), X, Y)


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss(weight=torch.arange(1.0, CLASSES + 1), label_smoothing=0.1),
        nn.BCEWithLogitsLoss(),
        F.multilabel_soft_margin_loss,
    ],
    ids=["weighted", "module", "function"],
)
def test_losses_of_torch_are_written(criterion: Any) -> None:
    local = localize(cifar_resnet(8, width=4), "dgl", modules=3, criterion=criterion, example_inputs=X, seed=0)
    target = Y if isinstance(criterion, nn.CrossEntropyLoss) else F.one_hot(Y, CLASSES).float()
    assert_same_step(local, rebuilt(local), X, target)


@pytest.mark.parametrize("method", ["auglocal", "mlaan", "infopro"])
def test_a_step_takes_the_same_memory(method: str) -> None:
    def step(network: Any, x: torch.Tensor, y: torch.Tensor) -> None:
        for _, loss, _ in network.steps(x, y):
            loss.backward()

    local = localize(cifar_resnet(8, width=4), method, modules=4, example_inputs=X, seed=0)
    assert peak_step_bytes(rebuilt(local), 16, step=step) == peak_step_bytes(local, 16)


LAYERS = (
    nn.Conv1d(4, 6, 3, 2, 1, 2, 2, bias=False),
    nn.Conv2d(4, 8, (3, 5), (1, 2), "valid", padding_mode="circular"),
    nn.Conv3d(2, 2, 3),
    nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, 2, True, 2),
    nn.Linear(3, 4, bias=False),
    nn.Bilinear(2, 3, 4),
    nn.BatchNorm2d(4, 1e-3, None, affine=False),
    nn.BatchNorm1d(4, track_running_stats=False),
    nn.InstanceNorm2d(4, affine=True),
    nn.LayerNorm((3, 4), 1e-6),
    nn.LayerNorm(8, elementwise_affine=False),
    nn.LayerNorm(8, bias=False),
    nn.RMSNorm(8),
    nn.GroupNorm(2, 8, affine=False),
    nn.LocalResponseNorm(5),
    nn.Embedding(5, 3, padding_idx=1),
    nn.MultiheadAttention(8, 2, 0.1, batch_first=True),
    nn.MultiheadAttention(8, 2, bias=False, add_bias_kv=True, kdim=4, vdim=6),
    nn.LSTM(3, 4, 2, bidirectional=True),
    nn.GRU(3, 4, bias=False, batch_first=True),
    nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    nn.MaxPool2d(2),
    nn.AvgPool2d((2, 3), count_include_pad=False, divisor_override=3),
    nn.AdaptiveAvgPool2d((None, 2)),
    nn.AdaptiveMaxPool2d(1),
    nn.LPPool2d(2, 3),
    nn.Dropout(0.3, inplace=True),
    nn.GELU("tanh"),
    nn.LeakyReLU(0.2),
    nn.ReLU6(inplace=True),
    nn.Hardtanh(-2.0, 2.0),
    nn.ELU(0.5),
    nn.PReLU(3),
    nn.Softmax(-1),
    nn.Softplus(2, 10),
    nn.Threshold(0.1, 20),
    nn.Flatten(2),
    nn.Unflatten(1, (2, 2)),
    nn.Identity(),
    nn.ZeroPad2d((1, 2, 3, 4)),
    nn.ReflectionPad2d(1),
    nn.ConstantPad1d(2, 0.5),
    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    nn.Upsample((4, 5)),
    nn.PixelShuffle(2),
    nn.ChannelShuffle(2),
    nn.Unfold(3, padding=1),
    nn.CrossEntropyLoss(ignore_index=255, label_smoothing=0.1),
)


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert filled(layer_text(nn.Dropout(np.float64(0.25))) or "") == "nn.Dropout(p=0.25)"


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_layers_of_torch_are_constructor_calls(layer: nn.Module) -> None:
    text = layer_text(layer)
    assert text is not None
    made = eval(filled(text), {"nn": nn})
    assert repr(made) == repr(layer)
    assert {k: v.shape for k, v in made.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}


def test_other_losses_are_handed_in() -> None:
    def criterion(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits * 2, target)

    local = localize(cifar_resnet(8, width=4), "dgl", modules=3, criterion=criterion, example_inputs=X, seed=0)
    assert "Localized(criterion=...)" in source_of(local)
    assert_same_step(local, rebuilt(local, criterion=criterion), X, Y)


def test_maps_and_double_precision() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Conv2d(8, CLASSES, 1), nn.Upsample(scale_factor=2, mode="bilinear"),
    ).double()  # fmt: skip
    x = X.double()
    local = localize(model, "auglocal", example_inputs=x, seed=0)
    target = torch.randint(CLASSES, (2, 32, 32), generator=torch.Generator().manual_seed(1))
    assert_same_step(local, rebuilt(local), x, target)


def test_the_localized_model_is_left_as_it_is() -> None:
    local = localize(cifar_resnet(8, width=4), "mlaan", modules=3, seed=0, example_inputs=X)
    local.eval()
    before = {name: (value.data_ptr(), value.clone()) for name, value in local.state_dict().items()}
    random, modes = torch.get_rng_state(), [module.training for module in local.modules()]
    source_of(local)
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in local.modules()] == modes
    for name, value in local.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])


def test_hooks_are_refused() -> None:
    model = cifar_resnet(8, width=4)
    local = localize(model, "auglocal", modules=3, seed=0, example_inputs=X)
    handle = model.layer1[0].conv1.register_forward_hook(lambda module, args, result: result * 2)
    with pytest.raises(ExportError, match=r"has a hook.*layer1.0.conv1"):
        source_of(local)
    handle.remove()
    source_of(local)


class Secret(nn.Module):
    """Its path depends on values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Doubles what is large."""
        return x * 2 if float(x.detach().sum()) > 0 else x


def test_what_cannot_be_traced_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Secret(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 28 * 28, 10))
    local = localize(model, "bp", example_inputs=X)
    with pytest.raises(ExportError, match=r"Secret cannot be written as Python source \(in 1\)"):
        source_of(local)


def test_export_by_suffix(tmp_path: Path) -> None:
    local = localize(cifar_resnet(8, width=4), "dgl", modules=3, seed=0, example_inputs=X)
    path = local.export(tmp_path / "network.py")
    assert path.read_text(encoding="ascii") == source_of(local)


class Sized(nn.Module):
    """Its path depends on the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pools what is large."""
        x = self.stem(x)
        if x.shape[2] > 16:
            x = F.max_pool2d(x, 2)
        return self.head(self.body(x).mean((2, 3)))  # type: ignore[no-any-return]


def test_another_path_is_refused() -> None:
    local = localize(Sized(), "auglocal", example_inputs=X, seed=0)
    network: Any = rebuilt(local)
    assert_same_step(local, network, X, Y)
    with pytest.raises(ValueError, match="another path"):
        next(network.steps(X[..., :16, :16], Y))


TABLES = {
    "few": torch.tensor([[0.1, -2.5], [float("inf"), 3.0]]),
    "alike": torch.full((3, 70), 0.3),
    "nothing": torch.zeros(5, 0),
    "range": torch.arange(3, 603, 3).reshape(20, 10),
    "runs": torch.tensor([0.0, -100.0]).repeat_interleave(400).reshape(2, 20, 20),
    "flags": torch.rand(300, generator=torch.Generator().manual_seed(0)) > 0.5,
    "noise": torch.randn(30, 30, generator=torch.Generator().manual_seed(0)),
    "half": torch.randn(20, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "scalar": torch.tensor(7),
    "not numbers": torch.full((4,), float("nan")),
    "zeros of both signs": torch.tensor([0.0, -0.0]).repeat(40),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_written_bit_for_bit(name: str) -> None:
    table = TABLES[name]
    names: dict[str, Any] = {"torch": torch}
    exec("import base64, zlib\n" + UNPACKED, names)
    found = eval(tensor_text(table, name), names)
    assert found.dtype == table.dtype
    assert found.shape == table.shape
    assert found.flatten().view(torch.uint8).tolist() == table.flatten().view(torch.uint8).tolist()


def test_long_lines_are_broken_inside_brackets() -> None:
    line = "x = f(" + ", ".join(f"'a, (b{i}'" for i in range(30)) + ", g(1, 2))"
    broken = folded(line)
    assert max(map(len, broken)) <= 120
    assert ast.dump(ast.parse("\n".join(broken))) == ast.dump(ast.parse(line))
