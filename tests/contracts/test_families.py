"""Nothing is lost on the way from a model to its graph, and on to its local modules: bit for bit, in every family."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from localize import localize
from localize.compiler.inputs import leaf_policy
from passes.capture.capture import capture
from passes.common.interpreter import Interpreter
from passes.ir import TensorSpec
from tests.models.families import KINDS, TIMM, TORCHVISION, Member

pytestmark = pytest.mark.registry

every_member = pytest.mark.parametrize("member", [*TIMM, *KINDS, *TORCHVISION], ids=lambda member: member.name)

State = dict[str, torch.Tensor]


def seeded(run: Callable[[torch.Tensor], Any], x: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of a forward pass whose random decisions are all drawn from the same state."""
    torch.manual_seed(11)
    return [value for value in pytree.tree_leaves(run(x)) if isinstance(value, torch.Tensor)]


def step(run: Callable[[torch.Tensor], Any], model: nn.Module, x: torch.Tensor) -> State:
    """Return outputs, gradients and buffers of one training pass of ``run``, which is ``model`` in another form."""
    found = {f"output {i}": value for i, value in enumerate(seeded(run, x))}
    generator = torch.Generator().manual_seed(5)
    # Random weights, not a plain sum: softmax, norms and the like hand no gradient on from a sum.
    torch.stack(
        [(value * torch.randn(value.shape, generator=generator)).sum() for value in found.values()]
    ).sum().backward()
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | buffers(model)


def buffers(model: nn.Module) -> State:
    return {f"buffer {name}": value for name, value in model.named_buffers()}


def differences(found: State, expected: State) -> list[str]:
    """Return the names that are missing, superfluous, or not equal bit for bit."""
    odd = sorted(found.keys() ^ expected.keys())
    return odd + [name for name in found.keys() & expected.keys() if not torch.equal(found[name], expected[name])]


@every_member
def test_the_graph_is_the_model(member: Member) -> None:
    model, x = member.build(), member.batch()
    eager = copy.deepcopy(model)
    expected = step(eager, eager, x)
    # Were a gradient zero, the branch behind it might be wrong and the comparison not notice.
    assert [name for name, value in expected.items() if name.startswith("gradient") and not value.any()] == []
    captured = capture(model, leaf_policy(), example=TensorSpec(tuple(x.shape), x.dtype))
    found = step(partial(Interpreter(captured.model, captured.constants).run, captured.graph), model, x)
    assert differences(found, expected) == []


@every_member
def test_the_chain_of_modules_is_the_model(member: Member) -> None:
    model, x = member.build(), member.batch()
    eager = copy.deepcopy(model)
    local = localize(model, d=3, seed=0, example_inputs=x)
    local.train()
    found, expected = step(local, model, x), step(eager, eager, x)
    # What the output's gradient reaches is the last module, and there it is the one of plain backpropagation.
    last = {f"gradient of {name}" for name in local.plan.modules[-1].parameters}
    expected = {name: value for name, value in expected.items() if not name.startswith("gradient") or name in last}
    assert differences(found, expected) == []
    inference = zip(seeded(local.eval(), x), seeded(eager.eval(), x), strict=True)
    assert all(torch.equal(a, b) for a, b in inference)
