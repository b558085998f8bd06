"""The diversity penalty, against one written out sample by sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from localize.methods.networks.terms import diversity


def _slow(logits: list[np.ndarray], target: list[int], temperature: float) -> float:
    """Equation 1, one pair and one sample at a time."""
    found = []
    for a in range(len(logits)):
        for b in range(len(logits)):
            if a == b:
                continue
            for sample, true in enumerate(target):
                wrong = []
                for group in (a, b):
                    scaled = np.exp(logits[group][sample] / temperature)
                    p = scaled / scaled.sum()
                    p[true] = 0
                    wrong.append(p / p.sum())
                one, other = wrong
                found.append(one @ other / np.sqrt((one @ one) * (other @ other)))
    return float(np.mean(found))


@given(
    groups=st.integers(2, 4),
    samples=st.integers(1, 4),
    classes=st.integers(2, 6),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_equation_1(groups: int, samples: int, classes: int, temperature: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = [3 * rng.standard_normal((samples, classes)) for _ in range(groups)]
    target = rng.integers(classes, size=samples).tolist()
    found = diversity([torch.from_numpy(v) for v in logits], torch.tensor(target), temperature)
    assert found.ndim == 0
    assert float(found) == pytest.approx(_slow(logits, target, temperature), abs=1e-9)


def test_its_gradient_reaches_each_group_through_its_own_terms() -> None:
    target = torch.tensor([0, 2])
    values = [torch.randn(2, 4, dtype=torch.float64) for _ in range(3)]
    for group in range(3):
        others = [v for i, v in enumerate(values) if i != group]

        def own(x: torch.Tensor, others: list[torch.Tensor] = others) -> torch.Tensor:
            """Return the sum of its similarities to the others."""
            return torch.stack([diversity([x, other], target) for other in others]).sum()

        leaves = [v.detach().clone().requires_grad_() for v in values]
        diversity(leaves, target).backward()
        x = values[group]
        step = 1e-6
        numeric = torch.zeros_like(x)
        for i in range(x.numel()):
            moved = torch.zeros_like(x).flatten()
            moved[i] = step
            up, down = x + moved.view_as(x), x - moved.view_as(x)
            # Of six ordered pairs the group comes first in two, once with each other one; the rest is detached.
            numeric.view(-1)[i] = (own(up) - own(down)) / (2 * step) / (3 * 2)
        found = leaves[group].grad
        assert found is not None
        assert torch.allclose(found, numeric, atol=1e-7)


def test_sure_predictions_have_finite_gradients() -> None:
    logits = [torch.tensor([[1000.0, 0, 1, 2]], requires_grad=True) for _ in range(2)]
    diversity(logits, torch.tensor([0])).backward()
    assert all(v.grad is not None and v.grad.isfinite().all() for v in logits)


def test_equal_groups_are_as_alike_as_can_be() -> None:
    x = torch.randn(5, 7)
    assert float(diversity([x, x], torch.arange(5))) == pytest.approx(1)
    two = [torch.randn(3, 2) for _ in range(2)]
    assert float(diversity(two, torch.tensor([0, 1, 0]))) == pytest.approx(1)
