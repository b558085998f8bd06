"""The primary network's prediction: the task that the heads of auxiliary networks are made for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from passes.errors import MethodError
from passes.ir import Layout, TensorSpec


@dataclass(frozen=True, slots=True)
class Prediction:
    """The form of the logits that local losses are computed from.

    >>> str(Prediction("vector", 10)), str(Prediction("dense", 21, (64, 64), "NCHW"))
    ('10 logits', '21 logits at 64x64')
    """

    kind: Literal["vector", "dense", "other"]
    """``"vector"``: a vector of logits for each sample. ``"dense"``: a map of logits (semantic segmentation, any dense
    prediction). ``"other"``: something that there is no head for."""
    outputs: int
    """Number of logits, at each position of a map; 0 for ``"other"``."""
    size: tuple[int, ...] = ()
    """Height and width of the map, depth before them for volumes; empty for a vector."""
    layout: Layout = "NC"
    """Order of dimensions: (N, C), (N, C, H, W), (N, H, W, C) or (N, C, D, H, W)."""

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
    """Return the form of the logits in a network's output.

    Args:
        output: The primary output: (N, C) is a vector of logits; (N, C, H, W), (N, H, W, C) and (N, C, D, H, W) are
            maps of them.
        outputs: Number of logits of local losses, where the output itself holds none; then always a vector.

    Raises:
        MethodError: ``outputs`` is not an integer >= 1.
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
    """Check, for a method with local losses, that the model returns logits.

    Raises:
        MethodError: The model returns something else.
    """
    if prediction.kind == "other":
        raise MethodError(
            f"the model returns {output} a sample, and method {method!r} needs a vector of logits or a map of them",
            why=f"an output of rank {len(output.shape)} does not say which of its dimensions are classes",
            remedy="Return (N, classes) or (N, classes, H, W); or give outputs=, criterion= and output_criterion=; or "
            "use method='bp'",
        )
