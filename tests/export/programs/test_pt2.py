"""Programs of ``torch.export``: the model bit for bit, and each operation in its local module."""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from localize import LocalGraphModule, Plan, localize
from localize.export import Request, View
from localize.export.programs import programs
from localize.export.programs.exported_program import PLAN_FILE, write_program
from localize.models import cifar_resnet
from localize.runtime.exporting import ExportError
from tests.models.zoo import ZOO, Entry
from tests.tools.exports import images, require_alike, require_program, state_of, with_statistics

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
CHECKED = [entry for entry in ZOO if entry.name == "convnext_atto-drop"]
"""With dropout and stochastic depth; thirty models are in test_programs_registry.py."""


def small(model: nn.Module, method: str = "auglocal", **options: Any) -> LocalGraphModule:
    return localize(with_statistics(model), method, d=2, example_inputs=EXAMPLE, seed=0, **options)


def written(local: LocalGraphModule, view: Any) -> bytes:
    return write_program(Request(local, View(kind=view)))


@pytest.mark.parametrize("method", ["auglocal", "dgl", "predsim", "infopro", "mlaan", "gn-dgl", "bp"])
def test_all_methods_on_a_small_model(method: str) -> None:
    local = small(cifar_resnet(8, width=4), method, modules=1 if method == "bp" else 3)
    require_program(local, "local", written(local, "local"))
    if method in ("bp", "gn-dgl"):
        require_program(local, "primary", written(local, "primary"))


@pytest.mark.parametrize("entry", CHECKED, ids=lambda entry: entry.name)
def test_models(entry: Entry) -> None:
    local = entry.localize(modules=3)
    require_program(local, "local", written(local, "local"), (1, 3))


def test_operations_say_where_they_belong() -> None:
    local = small(cifar_resnet(8, width=4))
    files = {PLAN_FILE: ""}
    program = torch.export.load(io.BytesIO(written(local, "local")), extra_files=files)
    assert Plan.from_json(files[PLAN_FILE]) == Plan.from_json(local.plan.to_json())
    names = [f"{module.index} {module.name}" for module in local.plan.modules]
    told = [node.meta["custom"] for node in program.graph.nodes if node.op == "call_function"]
    assert [each["localize.module"] for each in told if each["localize.network"] == "auxiliary"]
    order = [names.index(each["localize.module"]) for each in told if each["localize.network"] == "primary"]
    assert sorted(order) == order
    assert {*order} == {*range(len(names))}


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch 2.11's own unflatten meets its own deprecation
def test_the_primary_network_can_be_unflattened() -> None:
    local = small(cifar_resnet(8, width=4))
    program = torch.export.load(io.BytesIO(written(local, "primary")))
    assert {*program.state_dict} == {*local.primary.state_dict()}
    again = torch.export.unflatten(program)
    local.primary.eval()
    with torch.no_grad():
        require_alike([again(EXAMPLE)], [local.primary(EXAMPLE)])


def test_the_model_is_left_alone(capfd: pytest.CaptureFixture[str]) -> None:
    local = small(cifar_resnet(8, width=4)).train()
    local.primary.bn1.eval()
    local.primary.conv1.weight.requires_grad_(False)
    before = state_of(local)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        written(local, "local")
    assert state_of(local) == before
    assert capfd.readouterr() == ("", "")


def test_recomputed_activations_are_no_matter() -> None:
    local = small(cifar_resnet(8, width=4), recompute=True, modules=2)
    require_program(local, "local", written(local, "local"))


def test_half_precision_and_channels_last() -> None:
    model = with_statistics(cifar_resnet(8, width=4)).bfloat16().to(memory_format=torch.channels_last)
    local = localize(model, d=1, modules=2, example_inputs=EXAMPLE.bfloat16(), seed=0)
    loaded = torch.export.load(io.BytesIO(written(local, "local"))).module()
    require_alike(loaded(EXAMPLE.bfloat16()), local.predictions(EXAMPLE.bfloat16()), exact=True)


def test_a_model_elsewhere_is_copied_to_the_cpu() -> None:
    local = small(cifar_resnet(8, width=4))
    there = programs.copy_on_cpu(local)
    assert there is not local
    x = images(local, 3)
    require_alike(there.predictions(x), local.predictions(x), exact=True)


def test_what_it_decides_by_values() -> None:
    class Peeking(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = super().forward(x)
            return x if self.training or bool(x.sum() > 0) else -x

    model = Peeking(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    local = localize(model, "bp", example_inputs=EXAMPLE, verify=False)
    with pytest.raises(ExportError, match=r"torch.export cannot take the model \(in Peeking\)"):
        written(local, "primary")


class Counting(nn.Sequential):
    """Counts its runs, keeps what it saw last, and asks a hook."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.runs: torch.Tensor
        self.register_buffer("runs", torch.zeros(()))
        self.seen: torch.Tensor | None = None
        self[3].register_forward_hook(lambda module, args, result: result * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, (N, 4)."""
        self.runs.add_(1)
        self.seen = x
        result: torch.Tensor = super().forward(x)
        return result


def test_state_and_hooks_of_the_users_own() -> None:
    local = small(Counting(), "bp", verify=False)
    primary: Any = local.primary
    before = (state_of(primary), primary.seen)
    content = written(local, "primary")
    assert (state_of(primary), primary.seen) == before
    require_program(local, "primary", content)
