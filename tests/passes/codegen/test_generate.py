"""Generated code: what a person reads, and what runs."""

from __future__ import annotations

import textwrap

import pytest
import torch
from torch import nn

from localize import localize
from localize.models import cifar_resnet


class Block(nn.Module):
    """Residual, with a scale that the forward reads itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.full((4,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = x + self.second(self.first(x).relu()) * self.scale
        return result


class Tokens(nn.Module):
    """Patches, positions, two blocks, and a reshape that needs the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, 2)
        self.position = nn.Parameter(torch.zeros(1, 16, 4))
        self.blocks = nn.Sequential(Block(), Block())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, _, h, w = x.shape
        x = self.stem(x).flatten(2).transpose(1, 2) + self.position
        x = self.blocks(x).reshape(n, h // 2 * (w // 2), 4)
        result: torch.Tensor = self.head(x.mean(1))
        return result


def text(code: str) -> str:
    return code.strip() + "\n"


def golden(code: str) -> str:
    return textwrap.dedent(code).lstrip("\n")


def test_a_line_a_local_module() -> None:
    local = localize(cifar_resnet(8, width=4), d=2, max_cut=1)
    assert text(local.code) == golden(
        """
        def forward(self, x):
            conv1 = self.module_0(x);  x = None
            layer1 = self.module_1(conv1);  conv1 = None
            layer2_layer3 = self.module_2(layer1);  layer1 = None
            return layer2_layer3
        """
    )


def test_a_module_calls_the_users_own_blocks() -> None:
    stem, block, last = localize(cifar_resnet(8, width=4), d=2, max_cut=1).local_modules
    assert text(stem.code) == golden(
        """
        def forward(self, x):
            conv1 = self.primary.conv1(x);  x = None
            bn1 = self.primary.bn1(conv1);  conv1 = None
            relu = self.primary.relu(bn1);  bn1 = None
            return relu
        """
    )
    assert text(block.code) == golden(
        """
        def forward(self, relu):
            layer1 = self.primary.layer1(relu);  relu = None
            return layer1
        """
    )
    assert "self.primary.layer2(" in last.code
    assert "self.primary.fc(" in last.code


def test_sizes_pass_beside_the_cut() -> None:
    local = localize(Tokens(), d=2, example_inputs=torch.empty(2, 3, 8, 8))
    assert text(local.code) == golden(
        """
        def forward(self, x):
            stem = self.module_0(x);  x = None
            add = stem[0]
            getitem = stem[1]
            mul_2 = stem[2];  stem = None
            blocks_0_blocks_1 = self.module_1(add, getitem, mul_2);  add = getitem = mul_2 = None
            return blocks_0_blocks_1
        """
    )
    assert text(local.local_modules[1].code) == golden(
        """
        def forward(self, add, getitem, mul_2):
            blocks = self.primary.blocks(add);  add = None
            reshape = blocks.reshape(getitem, mul_2, 4);  blocks = getitem = mul_2 = None
            mean = reshape.mean(1);  reshape = None
            head = self.primary.head(mean);  mean = None
            return head
        """
    )
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 3])
    assert torch.equal(local(x), local.primary(x))
    local.loss(x, y).backward()
    assert all(p.grad is not None for p in local.parameters())


def test_an_auxiliary_block_is_written_out() -> None:
    auxiliary = localize(Tokens(), d=2, example_inputs=torch.empty(2, 3, 8, 8)).local_modules[0].auxiliary
    assert auxiliary is not None
    block = auxiliary.get_submodule("block_0")
    assert text(str(block.code)) == golden(
        """
        def forward(self, x):
            blocks_1_scale = self.blocks_1_scale
            blocks_1_first = self.blocks_1_first(x)
            relu_1 = blocks_1_first.relu();  blocks_1_first = None
            blocks_1_second = self.blocks_1_second(relu_1);  relu_1 = None
            mul_1 = blocks_1_second * blocks_1_scale;  blocks_1_second = blocks_1_scale = None
            add_2 = x + mul_1;  x = mul_1 = None
            return add_2
        """
    )


def test_code_sees_what_changes_in_the_users_model() -> None:
    model = Tokens()
    local = localize(model, d=2, example_inputs=torch.empty(2, 3, 8, 8))
    x = torch.randn(2, 3, 8, 8)
    fired: list[str] = []
    model.blocks[0].register_forward_hook(lambda *_: fired.append("hook"))
    model.head = nn.Linear(4, 7)
    model.position = nn.Parameter(torch.ones(1, 16, 4))
    assert torch.equal(local(x), model(x))
    assert fired == ["hook", "hook"]
    assert local(x).shape == (2, 7)


class Sized(nn.Module):
    """A block that is told a size and makes no use of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: torch.Tensor, size: tuple[int, int], mask: torch.Tensor | None = None) -> torch.Tensor:
        result: torch.Tensor = self.conv(x).relu()
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_arguments_that_a_block_does_not_use(masked: bool) -> None:
    """A size is handed on; a tensor is not, so the block's operations are written out one by one."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, padding=1)
            self.blocks = nn.ModuleList(Sized() for _ in range(3))
            self.fc = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x)
            size = (x.shape[2], x.shape[3])
            mask = x * 2 if masked else None
            for block in self.blocks:
                x = block(x, size, mask)
            logits: torch.Tensor = self.fc(x.mean((2, 3)))
            return logits

    local = localize(Net(), d=2, last="single", example_inputs=torch.empty(2, 3, 8, 8))
    assert [module.plan.name for module in local.local_modules] == ["stem", "blocks.0", "blocks.1", "blocks.2"]
    assert ("getitem_1), None)" in local.local_modules[2].code) != masked
    for module, out in zip(local.plan.modules, local.steps(torch.randn(2, 3, 8, 8), torch.tensor([1, 2])), strict=True):
        local.zero_grad()
        out.loss.backward()
        reached = {name for name, p in local.primary.named_parameters() if p.grad is not None}
        assert reached == {*module.parameters}


@pytest.mark.parametrize(
    "name", ['a"b', "a\\b", "line\nbreak", "\ud800", "日本 <b>", "it's", "class", '"); raise SystemExit("']
)
def test_names_that_no_line_of_code_can_hold(name: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.tensor(0.5)))
            self.add_module(f"{name} convolution", nn.Conv2d(3, 3, 3, padding=1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.get_submodule(f"{name} convolution")(x) * getattr(self, name)
            return result

    model = nn.Sequential()
    for i in range(3):
        model.add_module(f"{name}{i or ''}", Scaled())
    model.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)))
    local = localize(model, d=2, modules=2, example_inputs=torch.empty(2, 3, 8, 8), seed=0)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(local.train()(x), model(x))
    local.loss(x, torch.tensor([0, 1])).backward()
    assert [n for n, p in local.named_parameters() if p.grad is None] == []
    assert all(module.code.isascii() or name.isprintable() for module in local.local_modules)
