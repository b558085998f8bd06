"""A real training step of each family: every parameter learns, and fresh logits are as large as the model's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from localize import localize
from tests.families import CLASSES, KINDS, TIMM, Member

pytestmark = pytest.mark.registry

FACTOR = 10
"""Between the spread of a fresh auxiliary network's logits and that of the model's own."""

APART = {
    "csatv2": "the model's classifier normalizes first",
}
"""Models some of whose auxiliary networks lie further from the model's logits than that, and why."""


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
    apart = [s for s in spreads[:-1] if not own / FACTOR <= s <= own * FACTOR]
    assert bool(apart) == (member.name in APART)
