"""What the primary network predicts: the task that the heads of auxiliary networks are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.errors import MethodError
from passes.ir import Layout, TensorSpec


@dataclass(frozen=True, slots=True)
class Prediction:
    """What local losses are computed from."""

    kind: Literal["vector", "dense", "other"]
    """A vector of logits a sample; a map of them (semantic segmentation, any dense prediction); or something that no
    auxiliary network can be given a head for."""
    outputs: int
    """Number of logits, of each position where there are several; 0 for ``"other"``."""
    size: tuple[int, ...] = ()
    """Height and width of the map, depth before them for volumes; empty for a vector."""
    layout: Layout = "NC"
    """Where the logits are: (N, C), (N, C, H, W), (N, H, W, C) or (N, C, D, H, W)."""

    def shape(self, samples: int) -> tuple[int, ...]:
        """Return the shape of the logits of a batch.

        Raises:
            MethodError: There are no logits (``kind`` is ``"other"``).

        >>> Prediction("vector", 10).shape(32)
        (32, 10)
        >>> Prediction("dense", 21, (64, 64), "NCHW").shape(8)
        (8, 21, 64, 64)
        """
        if self.kind == "other":
            raise MethodError("the model returns no logits, so they have no shape")
        if self.layout == "NHWC":
            return (samples, *self.size, self.outputs)
        return (samples, self.outputs, *self.size)

    def __str__(self) -> str:
        if self.kind == "other":
            return "no logits"
        places = "x".join(map(str, self.size))
        return f"{self.outputs} logits at {places}" if places else f"{self.outputs} logits"


def prediction_of(output: TensorSpec, outputs: int | None = None) -> Prediction:
    """The task that a network's output stands for.

    Args:
        output: The primary output: (N, C) is a vector of logits; (N, C, H, W), (N, H, W, C) and (N, C, D, H, W) are
            maps of them.
        outputs: Number of logits of local losses where the output itself is none; then always a vector.

    Raises:
        MethodError: ``outputs`` is no number of logits.
    """
    if outputs is not None:
        if not isinstance(outputs, int) or isinstance(outputs, bool) or outputs < 1:
            raise MethodError(f"outputs must be an integer >= 1, got {outputs!r}")
        return Prediction("vector", outputs)
    if output.layout == "NC":
        return Prediction("vector", output.channels)
    if output.layout in ("NCHW", "NHWC", "NCDHW"):
        return Prediction("dense", output.channels, output.spatial, output.layout)
    return Prediction("other", 0)


def require_logits(prediction: Prediction, output: TensorSpec, method: str) -> None:
    """Refuses a method with local losses where the model's output is nothing that they could be computed from.

    Raises:
        MethodError: It is no logits.
    """
    if prediction.kind == "other":
        raise MethodError(
            f"the model returns {output} a sample, and method {method!r} needs a vector of logits or a map of them",
            why=f"an output of rank {len(output.shape)} does not say which of its dimensions are classes",
            remedy="Return (N, classes) or (N, classes, H, W); or give outputs=, criterion= and output_criterion=; or "
            "use method='bp'",
        )
