"""Layers of groups of channels, against dense ones whose other weights are zero."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from passes.layers.grouped import Gathered, GroupedLayerNorm, GroupedLinear


@given(groups=st.integers(1, 4), inputs=st.integers(1, 3), outputs=st.integers(1, 3), bias=st.booleans())
def test_a_grouped_linear_layer_is_a_block_diagonal_one(groups: int, inputs: int, outputs: int, bias: bool) -> None:
    layer = GroupedLinear(groups * inputs, groups * outputs, groups, bias).double()
    dense = nn.Linear(groups * inputs, groups * outputs, bias).double()
    with torch.no_grad():
        dense.weight.copy_(torch.block_diag(*layer.weight.chunk(groups)))
        if bias:
            dense.bias.copy_(layer.bias)
    for shape in ((3,), (2, 5), (2, 3, 4)):
        x = torch.randn(*shape, groups * inputs, dtype=torch.float64)
        assert torch.allclose(layer(x), dense(x))
    assert layer.weight.numel() == groups * inputs * outputs


@given(groups=st.integers(1, 4), size=st.integers(2, 4), images=st.booleans())
def test_a_grouped_layer_norm_is_one_for_each_group(groups: int, size: int, images: bool) -> None:
    channels = groups * size
    norm = GroupedLayerNorm(channels, groups, dim=1 if images else -1).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, channels, 3, 3, dtype=torch.float64) if images else torch.randn(2, 5, channels).double()
    last = x.movedim(1, -1) if images else x
    parts = [
        nn.functional.layer_norm(part, (size,), norm.weight[i * size :][:size], norm.bias[i * size :][:size])
        for i, part in enumerate(last.split(size, -1))
    ]
    expected = torch.cat(parts, -1)
    assert torch.allclose(norm(x), expected.movedim(-1, 1) if images else expected)


def test_a_gathered_convolution_is_a_dense_one_with_zeros() -> None:
    """Two groups own channels 0, 3 and 1, 4; channel 2 is everybody's."""
    reads = ((0, 2, 3), (1, 2, 4))
    own = nn.Conv2d(6, 4, 3, groups=2)
    layer = Gathered(own, [i for row in reads for i in row], 1)
    dense = nn.Conv2d(5, 4, 3)
    assert own.bias is not None
    assert dense.bias is not None
    with torch.no_grad():
        dense.weight.zero_()
        for group, row in enumerate(reads):
            for position, channel in enumerate(row):
                dense.weight[2 * group : 2 * group + 2, channel] = own.weight[2 * group :][:2, position]
        dense.bias.copy_(own.bias)
    x = torch.randn(2, 5, 6, 6)
    assert torch.allclose(layer(x), dense(x), atol=1e-6)
    fresh = Gathered(nn.Conv2d(6, 4, 3, groups=2), [0] * 6, 1)
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh(x), layer(x))
