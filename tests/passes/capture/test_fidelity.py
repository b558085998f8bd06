"""The captured graph is the model, or capture says that it is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from localize import CaptureError, check, localize
from localize.compiler.inputs import leaf_policy
from passes.capture.capture import capture
from passes.capture.fidelity import capture_verified, find_difference
from passes.capture.replay import replay
from passes.ir import Captured, TensorSpec
from tests.tools.snapshot import Snapshot

EXAMPLE = TensorSpec((2, 3, 8, 8))
STATE = {"on": True}


class Layer(nn.Module):
    """A convolution behind what a subclass does to the input."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.conv(self.change(x))
        return result


class PythonsRandom(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x if random.random() < 0.999 else x * 2


class NumpysRandom(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x * float(np.random.rand())


class TorchsRandom(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(1)


class Counting(Layer):
    calls = 0

    def change(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2 if self.calls > 1 else x


class Switched(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        STATE["on"] = not STATE["on"]
        return x * 2 if STATE["on"] else x


class AskingForTensors(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        return x if isinstance(x, torch.Tensor) else x * 2


class Moving(Layer):
    """Its buffer takes part in nothing, but a training step moves it."""

    seen: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(2))

    def change(self, x: torch.Tensor) -> torch.Tensor:
        self.seen[0].add_(1)
        return x


FICKLE = (PythonsRandom, NumpysRandom, TorchsRandom, Counting, Switched, AskingForTensors, Moving)


def numpys_state() -> Any:
    state: Any = np.random.get_state(legacy=True)
    return state[1].tolist()


def net(block: nn.Module) -> nn.Sequential:
    return nn.Sequential(Layer(), nn.Sequential(nn.ReLU(), block), Layer(), nn.Flatten(), nn.Linear(192, 5))


@pytest.mark.parametrize("kind", FICKLE)
def test_a_submodule_that_depends_on_more_than_its_input_is_kept_whole(kind: type[Layer]) -> None:
    model = net(kind())
    before = Snapshot(model)
    states = random.getstate(), numpys_state()
    captured = capture_verified(model, None, None, EXAMPLE)
    (leaf,) = captured.opaque
    assert leaf.path == "1.1"
    assert leaf.source is not None
    assert "computes something else" in leaf.reason or kind is Moving
    assert before.differences() == []
    assert (random.getstate(), numpys_state()) == states


@pytest.mark.parametrize("kind", [kind for kind in FICKLE if kind is not Moving])
def test_a_model_that_depends_on_more_than_its_input_is_refused(kind: type[Layer]) -> None:
    class Root(kind):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__()
            self.more, self.fc = Layer(), nn.Linear(192, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.fc(self.more(super().forward(x)).flatten(1))
            return result

    example = torch.empty(EXAMPLE.shape)
    with pytest.raises(
        CaptureError, match=r"traced, computes something else \(in Root, at test_fidelity.py:\d+\)"
    ) as e:
        localize(Root(), d=2, example_inputs=example)
    assert "verify=False" in str(e.value)
    (obstacle,) = check(Root(), example_inputs=example)
    assert obstacle.path == "Root"
    localize(Root(), d=2, example_inputs=example, verify=False)


def test_what_a_zero_weight_hides_is_found() -> None:
    """The block's branch ends in a layer that starts at zero: its output tells nothing."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch, self.gamma = AskingForTensors(), nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = x + self.gamma * self.branch(x)
            return result

    captured = capture_verified(net(Block()), None, None, EXAMPLE)
    assert [leaf.path for leaf in captured.opaque] == ["1.1.branch"]


def test_verification_is_skipped_where_there_are_no_values() -> None:
    with torch.device("meta"):
        model = net(PythonsRandom())
    assert capture_verified(model, None, None, EXAMPLE).opaque == ()
    assert len(capture_verified(net(PythonsRandom()), None, None, EXAMPLE, verify=False).opaque) == 0


def test_a_graph_that_was_tampered_with_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.Flatten(), nn.Linear(144, 5))
    captured = capture(model)
    assert find_difference(captured, EXAMPLE) is None
    dropout = next(node for node in captured.nodes if node.target == "1")
    dropout.replace_all_uses_with(dropout.all_input_nodes[0])
    captured.graph.erase_node(dropout)
    altered = Captured(model, captured.graph, captured.calls, captured.scopes, captured.sources, captured.constants)
    with pytest.raises(CaptureError, match="computes something else"):
        find_difference(altered, EXAMPLE)


# Gradients cannot be compared by running without them: what changes them is seen when tracing. -----------------------


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        return grads[0]


class StraightThrough(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = Straight.apply(x)
        return result


class WithoutGradient(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return x * 2


class InHalf(Layer):
    def change(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return x * 2


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(StraightThrough, "calls Straight"), (WithoutGradient, "without gradients"), (InHalf, "autocasting")],
)
def test_what_a_graph_does_not_show_stays_whole(kind: type[Layer], reason: str) -> None:
    captured = capture(net(kind()))
    (leaf,) = captured.opaque
    assert (leaf.path, reason in leaf.reason) == ("1.1", True)
    assert leaf.source is not None
    assert leaf.source.startswith("test_fidelity.py:")
    with pytest.raises(CaptureError, match=f"{reason}.*Move the code"):
        capture(kind())


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_parts_are_looked_into(reentrant: bool) -> None:
    class Saving(Layer):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = torch.utils.checkpoint.checkpoint(self.conv, x, use_reentrant=reentrant)
            return result

    captured = capture_verified(net(Saving()), None, None, EXAMPLE)
    assert captured.opaque == ()
    assert "1.1.conv" in [node.target for node in captured.nodes]


# Real models: outputs, gradients, buffers and generators, bit for bit, with everything random active. -----------------

DROPS: dict[str, Any] = {"drop_path_rate": 0.2}
Build = Callable[[], nn.Module]
MODELS: dict[str, tuple[Build, tuple[int, ...]]] = {
    "nfnet": (lambda: timm.create_model("test_nfnet", num_classes=5, **DROPS), (3, 64, 64)),
    "mobilevit": (lambda: timm.create_model("mobilevit_xxs", num_classes=5), (3, 64, 64)),
    "mobilevitv2": (lambda: timm.create_model("mobilevitv2_050", num_classes=5), (3, 64, 64)),
    "vit": (lambda: timm.create_model("test_vit", num_classes=5, proj_drop_rate=0.1, **DROPS), (3, 160, 160)),
    "convnext": (lambda: timm.create_model("test_convnext", num_classes=5, **DROPS), (3, 64, 64)),
    "xcit": (lambda: timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=5, **DROPS), (3, 64, 64)),
    "naflexvit": (
        lambda: timm.create_model(
            "naflexvit_base_patch16_gap", embed_dim=24, num_heads=2, depth=2, num_classes=5, **DROPS
        ),
        (3, 64, 64),
    ),
    "swin": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(2, 4), embed_dim=24,
            num_classes=5, **DROPS,
        ),
        (3, 56, 56),
    ),
    "hiera": (
        lambda: timm.create_model(
            "hiera_tiny_224", img_size=64, embed_dim=24, stages=(1, 1, 1, 1), num_classes=5, **DROPS
        ),
        (3, 64, 64),
    ),
    "torchvision vit": (
        lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, 0.1, 0.1, num_classes=5),
        (3, 32, 32),
    ),
    "torchvision swin": (
        lambda: torchvision.models.SwinTransformer(
            [4, 4], 24, [2, 2], [2, 4], [7, 7], stochastic_depth_prob=0.2, num_classes=5
        ),
        (3, 64, 64),
    ),
    "maxvit": (
        lambda: torchvision.models.MaxVit((64, 64), 32, 2, [32, 32], [2, 1], 16, 0.2, num_classes=5),
        (3, 64, 64),
    ),
    "googlenet": (lambda: torchvision.models.googlenet(num_classes=5, init_weights=False), (3, 64, 64)),
    "encoder": (
        lambda: nn.Sequential(
            nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), nn.Linear(16, 5)
        ),
        (4, 16),
    ),
    "decoder": (
        lambda: Decoding(),  # noqa: PLW0108 - defined below
        (4, 16),
    ),
}  # fmt: skip


class Decoding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32, batch_first=True), 2)
        self.queries, self.fc = nn.Parameter(torch.randn(1, 3, 16)), nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.queries.expand(x.shape[0], -1, -1)
        result: torch.Tensor = self.fc(self.decoder(queries, F.relu(x)).mean(1))
        return result


def without_zeros(model: nn.Module) -> nn.Module:
    """Branches that start at zero hide errors."""
    with torch.no_grad():
        for p in model.parameters():
            if float(p.abs().max()) < 1e-2:
                p.normal_(std=0.3)
    return model


def step(
    run: Callable[[torch.Tensor], list[torch.Tensor]], model: nn.Module, x: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Everything that one training step computes or moves."""
    torch.manual_seed(3)
    x = x.clone().requires_grad_()
    values = run(x)
    sum((value * torch.linspace(-1, 1, value.numel()).view_as(value)).sum() for value in values).backward()
    found = {f"output {i}": value.detach() for i, value in enumerate(values)}
    found |= {f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": buffer.clone() for name, buffer in model.named_buffers()}
    assert x.grad is not None
    return {**found, "gradient of the input": x.grad, "generator": torch.get_rng_state()}


@pytest.mark.parametrize("name", MODELS)
def test_graph_and_model_agree_bit_for_bit(name: str) -> None:
    build, size = MODELS[name]
    model = without_zeros(build()).train()
    x = torch.randn(2, *size)
    captured = capture_verified(model, leaf_policy(), None, TensorSpec(tuple(x.shape)))
    assert captured.opaque == ()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    expected = step(lambda x: captured.structure.read(model(x)), model, x)
    model.load_state_dict(state)
    model.zero_grad()
    found = step(lambda x: list(replay(captured, x)), model, x)
    assert sorted(found) == sorted(expected)
    assert [key for key, value in found.items() if not torch.equal(value, expected[key])] == []
