"""What a recipe says of a block, held against the block that was built from it."""

from __future__ import annotations

import torch
from torch import nn

from passes.adapt.copy_recipe import CopyRecipe


def assert_built(recipe: CopyRecipe, module: nn.Module) -> None:
    """Run the block on random values, and check its shape, its parameters, and a gradient for each."""
    out = module(torch.randn(recipe.input.shape))
    assert tuple(out.shape) == recipe.output.shape
    assert sum(p.numel() for p in module.parameters()) == recipe.params
    out.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())
