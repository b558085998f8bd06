"""Runs the passes that make a Network of a model, and verifies each stage's value before the next one sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from passes import verify
from passes.capture import LeafPolicy, capture
from passes.granularity import Granularity
from passes.ir import Network
from passes.partition import partition
from passes.shapes import infer_shapes


def analyse(
    model: nn.Module,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    policy: LeafPolicy | None = None,
    *,
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
) -> Network:
    """Capture, shapes, partition.

    Args:
        model: The user's model; left as it is.
        shape: Shape of an example input, batch first, the batch at least 2.
        dtype: Type of the input.
        policy: What stays a leaf when tracing.
        max_cut: See :func:`passes.partition.partition`.
        granularity: See :func:`passes.partition.partition`.

    Raises:
        CaptureError: See :func:`passes.capture.capture` and :func:`passes.shapes.infer_shapes`.
        PartitionError: See :func:`passes.partition.partition`.
    """
    captured = capture(model, policy)
    expect("capture", verify.captured(captured))
    shapes = infer_shapes(captured, shape, dtype)
    expect("shapes", verify.shapes(captured, shapes))
    network = Network(captured, shapes, partition(captured, shapes, max_cut, granularity))
    expect("partition", verify.partition(network))
    return network


def expect(stage: str, violations: Sequence[str]) -> None:
    """Asserts that a stage's value meets its specification; names the stage that failed."""
    assert not violations, f"{stage} produced an invalid value: " + "; ".join(violations)
