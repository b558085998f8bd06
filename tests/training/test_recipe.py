"""Training settings: the paper's numbers, and the learning rate at every step."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from localize.training.recipe import Recipe, RecipeError


def test_defaults_are_the_papers() -> None:
    assert Recipe().settings() == {
        "epochs": 400,
        "batch_size": 1024,
        "optimizer": "sgd",
        "lr": 0.8,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "warmup_epochs": 10,
        "warmup_lr": 0.01,
        "amp": None,
        "channels_last": False,
        "accumulate": 1,
        "clip": None,
        "clip_by": "global",
        "ema": None,
        "step": "batch",
    }


def test_types_that_are_not_offered_are_refused() -> None:
    assert Recipe(amp="bfloat16").amp == "bfloat16"
    with pytest.raises(RecipeError, match="unknown amp 'float16'"):
        Recipe(amp="float16")


def test_sgd_rate_follows_the_batch_size() -> None:
    assert Recipe(batch_size=128).peak_lr == pytest.approx(0.1)  # the paper's STL-10
    assert Recipe(batch_size=128, lr=0.3).peak_lr == 0.3
    assert Recipe(batch_size=128, optimizer="adamw").peak_lr == 1e-3


@pytest.mark.parametrize(("epochs", "warmup"), [(400, 10), (100, 10), (99, 9.9), (5, 0.5)])
def test_warm_up_shrinks_with_short_runs(epochs: int, warmup: float) -> None:
    assert Recipe(epochs=epochs).warmup == pytest.approx(warmup)


def test_first_rate_stays_below_a_small_peak() -> None:
    assert Recipe(lr=0.02).first_lr == pytest.approx(0.002)
    assert Recipe(batch_size=128).first_lr == pytest.approx(0.01)


def test_rate_rises_linearly_then_falls_as_a_cosine() -> None:
    recipe = Recipe(epochs=20, warmup_epochs=4)
    rates = [recipe.lr_at(step, 10) for step in range(200)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[20] == pytest.approx((0.01 + 0.8) / 2)
    assert rates[40] == pytest.approx(0.8)
    assert rates[120] == pytest.approx(0.4)
    assert rates[80] == pytest.approx(0.4 * (1 + 0.5**0.5))
    assert 0 < rates[-1] < 1e-3
    rising = [later - earlier for earlier, later in itertools.pairwise(rates[:41])]
    assert max(rising) - min(rising) < 1e-9
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[40:]))


def test_without_warm_up_the_run_starts_at_the_peak() -> None:
    recipe = Recipe(epochs=3, warmup_epochs=0)
    assert recipe.lr_at(0, 7) == 0.8


def test_warm_up_of_the_whole_run() -> None:
    recipe = Recipe(epochs=3, warmup_epochs=3)
    assert recipe.lr_at(20, 7) < recipe.lr_at(21, 7) == 0.8


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 1e-4, "lr": 0.8}),
        ("adam", torch.optim.Adam, {"weight_decay": 1e-4, "lr": 1e-3}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 1e-4, "lr": 1e-3}),
    ],
)
def test_optimizers(name: str, kind: type, expected: dict[str, Any]) -> None:
    optimizer = Recipe(optimizer=name).build_optimizer(nn.Linear(2, 2).parameters())
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in expected} == expected


def test_sgd_without_momentum() -> None:
    assert Recipe(momentum=0).build_optimizer(nn.Linear(2, 2).parameters()).defaults["nesterov"] is False


def test_frozen_parameters_are_left_out() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    (group,) = Recipe().build_optimizer(layer.parameters()).param_groups
    assert [id(p) for p in group["params"]] == [id(layer.weight)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, "unknown optimizer 'lion'. Known: sgd, adam, adamw"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be above 0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"accumulate": 0}, "cannot be split into 0"),
        ({"accumulate": 5, "batch_size": 4}, "a batch of 4 cannot be split into 5"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"clip_by": "layer"}, "unknown clip_by 'layer'. Known: global, module"),
        ({"ema": 1.0}, "ema must be at least 0 and below 1"),
        ({"step": "never"}, "unknown step 'never'. Known: batch, module"),
        ({"step": "module", "clip": 1.0}, "Take clip_by 'module'"),
        ({"epochs": 5, "warmup_epochs": 6}, "warm-up of 6 epochs is longer"),
        ({"warmup_epochs": -1}, "warmup_epochs must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**settings)


def test_a_recipe_does_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]
