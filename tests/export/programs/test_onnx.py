"""ONNX files: right at every batch size, each node in its local module, and nothing of the user's changed."""

from __future__ import annotations

import importlib.util
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from localize import LocalGraphModule, LocalizeError, Plan, localize
from localize.export import Request, View, export
from localize.export.programs import onnx_model
from localize.models import cifar_resnet
from localize.runtime.exporting import ExportError
from tests.models.zoo import ACTIVE
from tests.tools.exports import (
    convolutions,
    images,
    properties,
    require_members,
    require_onnx,
    require_right,
    state_of,
    with_statistics,
)


class Blocks(nn.Module):
    """Convolutions under names that code must quote, two of one weight; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        names = ["it's", "<b>&amp;", "é ü/x", "module_1", "last"]
        self.parts = nn.ModuleDict(
            {name: nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i, name in enumerate(names)}
        )
        self.parts["last"].weight = self.parts["module_1"].weight
        self.classifier = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        """Logits, and the features under a name that is the input's in the file."""
        for part in self.parts.values():
            x = torch.relu(part(x))
        return {"logits": self.classifier(x.mean((2, 3))), "input": x, "images": x.shape[0]}


class Modal(nn.Module):
    """Returns probabilities in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(3))
        self.classifier = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits or probabilities, (N, 10)."""
        for convolution in self.body:
            x = torch.relu(convolution(x))
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits if self.training else logits.softmax(1)


class Paired(Modal):
    """Takes images by pairs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, 10)."""
        for convolution in self.body:
            x = torch.relu(convolution(x))
        x = x.reshape(2, -1, *x.shape[1:]).flatten(0, 1)
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits


class Peeking(Modal):
    """Decides by values, in eval mode alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, 10)."""
        for convolution in self.body:
            x = torch.relu(convolution(x))
        if not self.training and x.sum() > 0:
            x = x / x.sum()
        logits: torch.Tensor = self.classifier(x.mean((2, 3)))
        return logits


def small(model: nn.Module, method: str = "auglocal", **options: Any) -> LocalGraphModule:
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    return localize(with_statistics(model), method, d=1, example_inputs=x, seed=0, **options)


@cache
def resnet() -> LocalGraphModule:
    return small(cifar_resnet(8, width=4))


def load(local: LocalGraphModule, view: Any) -> onnx.ModelProto:
    return onnx.load_from_string(onnx_model.write_onnx(Request(local, View(kind=view))))


@cache
def written(view: Any) -> bytes:
    return onnx_model.write_onnx(Request(resnet(), View(kind=view)))


@pytest.mark.parametrize("view", ["primary", "local"])
def test_onnxruntime_gives_what_the_model_gives(view: Any) -> None:
    proto = require_onnx(resnet(), view, written(view))
    onnx.checker.check_model(proto, full_check=True)
    require_members(resnet(), view, proto)


def test_weights_are_those_of_the_model_under_their_names() -> None:
    for view, module in (("primary", resnet().primary), ("local", resnet())):
        state = module.state_dict()
        held = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(written(view)).graph.initializer}
        named = {name for name in state if not name.endswith("num_batches_tracked")}
        assert named <= set(held)
        assert all(torch.equal(torch.from_numpy(held[name].copy()), state[name]) for name in named)


def test_each_module_has_its_own_convolutions() -> None:
    primary = resnet().primary
    kernels = {name for name, p in primary.named_parameters() if p.ndim == 4}
    planned = {(m.index, "primary"): len(kernels.intersection(m.parameters)) for m in resnet().plan.modules}
    assert convolutions(onnx.load_from_string(written("primary"))) == planned
    auxiliary = {(m.plan.index, "auxiliary"): sum(p.ndim == 4 for p in m.parameters()) for m in resnet().local_modules}
    assert convolutions(onnx.load_from_string(written("local"))) == {
        k: n for k, n in {**planned, **auxiliary}.items() if n
    }


def test_names_of_nodes_are_paths_that_begin_with_the_module() -> None:
    nodes = onnx.load_from_string(written("local")).graph.node
    assert len({node.name for node in nodes}) == len(nodes)
    for node in nodes:
        said = properties(node)
        start = f"module_{said['localize.module'].split()[0]}/"
        assert node.name.startswith(f"{start}auxiliary/" if said["localize.network"] == "auxiliary" else start)
    last = resnet().plan.modules[-1]
    (head,) = (node for node in nodes if "primary.fc.weight" in node.input)
    assert head.name == f"module_{last.index}/fc/Gemm"
    scopes = properties(head)["namespace"].split("/")
    assert [scope.partition(":")[0] for scope in scopes[:3]] == ["", f"{last.index} {last.name}", "fc"]


def test_the_file_says_what_it_is() -> None:
    proto = onnx.load_from_string(written("local"))
    said = properties(proto)
    assert Plan.from_json(said["localize.plan"]) == Plan.from_json(resnet().plan.to_json())
    assert (said["localize.method"], said["localize.view"]) == ("auglocal", "local")
    assert '"d": 1' in said["localize.options"]
    assert proto.producer_name == "localize"
    count = len(resnet().plan.modules) - 1
    assert [value.name for value in proto.graph.output] == [*(f"module_{k}.logits" for k in range(count)), "output"]
    assert [value.name for value in proto.graph.input] == ["input"]
    assert b"/tests/" not in written("local"), "the file tells where the user's files are"


def test_the_model_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    local = resnet().train()
    local.primary.bn1.eval()
    before = state_of(local)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        onnx_model.write_onnx(Request(local, View(kind="primary")))
    assert state_of(local) == before
    assert capfd.readouterr() == ("", "")


def test_hostile_names_tied_weights_and_a_dict() -> None:
    local = small(Blocks(), output="logits", modules=3)
    names = [value.name for value in load(local, "primary").graph.output]
    assert names == ["logits", "input_1"]
    proto = require_right(local, "local")
    assert [value.name for value in proto.graph.output][-2:] == ["logits", "input_1"]
    held = [i.name for i in proto.graph.initializer if i.name.startswith("primary.parts")]
    assert len(held) == 9  # five convolutions, two of them with one weight
    assert "primary.parts.it's.weight" in held


def test_neurons_in_groups() -> None:
    local = small(cifar_resnet(8, width=4), "gn-dgl", modules=2)
    proto = require_right(local, "primary")
    held = {i.name for i in proto.graph.initializer}
    assert {name for name, _ in local.primary.named_parameters()} <= held


def test_dropout_and_attention() -> None:
    options: dict[str, Any] = {**ACTIVE, "depth": 2, "embed_dim": 24, "img_size": 32}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **options)
    local = localize(model, d=2, modules=2, seed=0, example_inputs=torch.zeros(2, 3, 32, 32))
    require_right(local, "local", (1, 3))


def test_a_forward_that_branches_on_its_mode() -> None:
    local = small(Modal(), modules=3)
    content = onnx_model.write_onnx(Request(local, View(kind="primary")))
    proto = require_onnx(local, "primary", content)
    assert properties(proto)["localize.nodes"] == "by name and order"
    owned = {node.input[1]: properties(node)["localize.module"] for node in proto.graph.node if node.op_type == "Conv"}
    names = [f"{module.index} {module.name}" for module in local.plan.modules]
    assert all(owned[name] == names[m.index] for m in local.plan.modules for name in m.parameters if name in owned)
    with pytest.raises(LocalizeError, match="do not give in eval mode what the model gives"):
        onnx_model.write_onnx(Request(local, View(kind="local")))


def test_a_batch_size_that_matters() -> None:
    local = small(Paired(), modules=3)
    with pytest.warns(UserWarning, match="for batches of 2 images alone.*batch"):
        content = onnx_model.write_onnx(Request(local, View(kind="primary")))
    require_onnx(local, "primary", content, (2,))


def test_a_decision_on_values() -> None:
    local = small(Peeking(), modules=3, verify=False)
    with pytest.raises(
        ExportError, match=r"torch.export cannot take the model \(in Peeking\): .*data-dependent"
    ) as caught:
        onnx_model.write_onnx(Request(local, View(kind="primary")))
    assert caught.value.remedy
    assert not local.primary._forward_hooks


def test_no_weights() -> None:
    with torch.device("meta"):
        model = cifar_resnet(8, width=4)
    local = localize(model, d=1, example_inputs=torch.empty(2, 3, 16, 16, device="meta"))
    with pytest.raises(ExportError, match=r"no weights that could be written.*meta device"):
        onnx_model.write_onnx(Request(local, View(kind="primary")))


def test_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_model, "LIMIT", 1000)
    with pytest.raises(ExportError, match=r"do not fit in an ONNX file.*pt2"):
        onnx_model.write_onnx(Request(resnet(), View(kind="local")))


def test_packages_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(onnx_model, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ExportError, match=r"onnxscript cannot be imported. pip install 'localize\[export\]'"):
        onnx_model.write_onnx(Request(resnet(), View(kind="primary")))


def test_export_writes_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What is written is tested above; here, that the suffix finds it.
    path = export(resnet(), tmp_path / "net.pt2")
    assert torch.export.load(path).module()(images(resnet(), 2)).shape == (2, 10)
    with pytest.raises(ExportError, match="onnx has no view 'full'"):
        export(resnet(), tmp_path / "net.onnx", view="full")
    assert onnxruntime.InferenceSession(written("primary")).get_inputs()[0].shape[0] == "batch"
