"""A real training step of each family: every parameter learns, and fresh logits are as large as the model's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from localize import localize
from tests.models.families import CLASSES, KINDS, TIMM, Member

pytestmark = pytest.mark.registry

FACTOR = 10
"""Between the spread of a fresh auxiliary network's logits and that of the model's own."""

APART = frozenset(
    {
        "crossvit_9_dagger_240",
        "crossvit_tiny_240",
        "deit3_small_patch16_224",
        "efficientvim_m1",
        "mobilenetv4_hybrid_medium",
        "naflexvit_base_patch16_siglip",
        "nest_tiny",
        "repvgg_a0",
        "res2next50",
        "resnest14d",
        "test_byobnet",
        "test_vit3",
        "test_vit4",
        "tresnet_m",
        "vit_base_patch16_siglip_224",
        "vit_pe_core_tiny_patch16_384",
        "vit_small_patch16_18x2_224",
    }
)
"""Models with auxiliary networks that lie further apart, mostly by a factor of 10 to 30: where cuts fall inside blocks,
whose branches start as zero; where what the model's classifier reads, a class token or attention's pooling, says
next to nothing of the image at first, so that its own logits hardly differ."""


def images(member: Member) -> torch.Tensor:
    """Random ones whose neighbouring pixels are alike, as in photographs."""
    noise = member.batch()
    coarse = torch.randn(len(noise), 3, 4, 4, generator=torch.Generator().manual_seed(3))
    return F.interpolate(coarse, size=noise.shape[2:], mode="bicubic") + 0.3 * noise


@pytest.mark.parametrize("member", [*TIMM, *KINDS], ids=lambda member: member.name)
def test_one_real_step(member: Member) -> None:
    model, x = member.fresh(), images(member)
    local = localize(model, d=3, seed=0, example_inputs=x)
    spreads = []
    for out in local.steps(x, torch.arange(len(x)) % CLASSES):
        assert bool(out.loss.isfinite()), out.name
        spreads.append(float(out.logits.detach().std()))
        out.loss.backward()
    missing = [name for name, p in local.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert all(bool(p.grad.isfinite().all()) for p in local.parameters() if p.grad is not None)
    own = spreads[-1]
    # A classifier that starts as zero has no scale to compare with.
    apart = [s for s in spreads[:-1] if own and not own / FACTOR <= s <= own * FACTOR]
    assert not apart or member.name in APART
