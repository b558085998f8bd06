"""A captured graph against the model that it was captured from."""

from __future__ import annotations

import torch

from passes.capture.replay import replay
from passes.ir import Captured


def assert_agrees(captured: Captured, x: torch.Tensor) -> None:
    model = captured.model.train()
    torch.manual_seed(0)
    expected = model(x)
    torch.manual_seed(0)
    assert torch.equal(replay(captured, x)[0], expected)
