"""The passes that turn a model into a Network, each one's value verified before the next pass sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from passes import verify as spec
from passes.capture.fidelity import capture_verified
from passes.capture.leaf_policy import LeafPolicy, weighted_layers
from passes.errors import PartitionError
from passes.ir import Captured, Network, TensorSpec
from passes.partition.granularity import Granularity
from passes.partition.output_choice import deepest_first
from passes.partition.partition import partition, partition_again
from passes.shapes.infer import infer_shapes
from passes.structure import Output


def analyse(
    model: nn.Module,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    policy: LeafPolicy | None = None,
    *,
    output: Output | None = None,
    joint: bool = False,
    verify: bool = True,
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
    like: Network | None = None,
) -> Network:
    """Capture a model, infer its shapes and partition it into local layers.

    Args:
        model: The user's model; it is not changed.
        shape: Shape of an example input, batch first, the batch at least 2.
        dtype: Type of the input.
        policy: What stays a leaf when tracing.
        output: See :func:`passes.capture.capture.capture`.
        joint: See :func:`passes.capture.capture.capture`. Without ``output``, the deepest value is then the primary
            output.
        verify: Whether graph and model are compared on random input.
        max_cut: See :func:`passes.partition.partition.partition`.
        granularity: See :func:`passes.partition.partition.partition`.
        like: A network from which ``model`` was made by changing leaf layers; its partition is used again.

    Raises:
        CaptureError: See :func:`passes.capture.fidelity.capture_verified` and :func:`passes.shapes.infer.infer_shapes`.
        PartitionError: See :func:`passes.partition.partition.partition`.
    """
    captured = capture_verified(model, policy, output, TensorSpec(tuple(shape), dtype), verify, joint)
    expect("capture", spec.captured(captured))
    shapes = infer_shapes(captured, shape, dtype)
    if joint and output is None:
        captured, shapes = deepest_first(captured, shapes)
    expect("shapes", spec.shapes(captured, shapes))
    if like is not None and tuple(captured.by_name) == tuple(like.captured.by_name):
        network = Network(captured, shapes, partition_again(captured, shapes, like.partition))
        expect("partition", spec.partition(network))
        return network
    try:
        network = Network(captured, shapes, partition(captured, shapes, max_cut, granularity))
    except PartitionError as error:
        raise _with_hidden(error, captured) from error
    expect("partition", spec.partition(network))
    return network


def _with_hidden(error: PartitionError, captured: Captured) -> PartitionError:
    """Return the error with a list of the modules that could not be traced and hide layers in which cuts might lie."""
    hidden = [leaf for leaf in captured.opaque if weighted_layers(captured.model.get_submodule(leaf.path)) > 1]
    if not hidden:
        return error
    whole = "; ".join(
        f"{leaf.path}{f' ({leaf.source})' if leaf.source else ''} is kept whole: {leaf.reason}" for leaf in hidden[:3]
    )
    why = f"{error.why}; {whole}" if error.why else whole
    return PartitionError(error.what, where=error.where, source=error.source, why=why, remedy=error.remedy)


def expect(stage: str, violations: Sequence[str]) -> None:
    """Assert that a stage's value has no violations; the message names the stage that failed."""
    assert not violations, f"{stage} produced an invalid value: " + "; ".join(violations)
