"""What a sweep is run with and what it writes: settings, one record per model, its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from localize.methods import get_method, with_depth
from passes.errors import LocalizeError

LARGE_SHARE = 0.5
"""Share of a model's MACs above which the report names a layer."""

Progress = Callable[[str], object]
"""A function that is called with the name of the stage that begins."""

Status = Literal["localized", "refused", "failed", "timeout"]


class SweepError(LocalizeError):
    """A sweep cannot run, or its file belongs to another sweep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamineSettings:
    """How models are localized.

    Raises:
        MethodError: The method is unknown, or does not take this depth.
    """

    method: str = "auglocal"
    d: int = 3
    """Depth of auxiliary networks."""
    max_cut: int | None = None
    """Most tensors that may cross a border between layers; None for the default of :func:`localize.localize`."""
    granularity: str | tuple[str, ...] | None = None
    """What a layer is: "minimal", "block", or names of modules to cut after; None for the same function's default."""
    output: str | int | None = None
    """Key or index of the value to train, where the model returns several."""

    def __post_init__(self) -> None:
        options = get_method(self.method).Options
        options(**with_depth(options, self.d, {}))

    def keywords(self) -> dict[str, Any]:
        """Return the keyword arguments of :func:`localize.localize`, the method excepted."""
        further = {"max_cut": self.max_cut, "granularity": self.granularity, "output": self.output}
        return {"d": self.d, **{key: value for key, value in further.items() if value is not None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """The result of examining one model. Figures are 0 or empty where the examination stopped before them."""

    name: str
    """Name of the model, as :func:`~localize.bench.zoo.find_model` takes it."""
    family: str
    """Name of the library's Python module that defines the model."""
    status: Status
    """``localized``: localized, and the step kept to the plan. ``refused``: with an error that names the cause.
    ``failed``: an unforeseen error, a loss that reached a wrong parameter, or a process that died."""
    stage: str = ""
    """Stage in which the examination stopped: build, capture, partition, plan, localize, step, isolation."""
    reason: str = ""
    """Why the examination stopped, in one line."""
    where: str = ""
    """Module path in the model at which it stopped."""
    source: str = ""
    """Source line at which it stopped, ``file.py:12``."""
    params: int = 0
    """Parameter elements."""
    macs: int = 0
    """Multiply-accumulates of convolutions and linear layers at batch 1."""
    input_shape: tuple[int, ...] = ()
    """Shape of one sample."""
    nodes: int = 0
    """Nodes of the captured graph."""
    opaque: tuple[str, ...] = ()
    """Submodules that were kept whole because they cannot be traced."""
    layers: int = 0
    """Number of local layers, L."""
    modules: int = 0
    """Number of local modules, K."""
    cut_width: int = 0
    """Most tensors that cross a border between layers."""
    largest_share: float = 0.0
    """The largest layer's share of the model's MACs, 0..1."""
    tied: tuple[str, ...] = ()
    """Parameters that several operations of the largest layer share, where that layer holds more than half of the MACs:
    it is not cut between their uses."""
    blocks: int = 0
    """Copied layers in all auxiliary networks."""
    repaired: int = 0
    """Copied layers that were made to fit without an adapter in front."""
    classifier_added: bool = False
    """Whether the model returns features, and was examined with pooling and a linear layer after it."""
    untrained: tuple[str, ...] = ()
    """Trainable parameters that no loss reaches."""
    build_seconds: float = 0.0
    localize_seconds: float = 0.0
    step_seconds: float = 0.0
    peak_mb: int = 0
    """Most memory that the process held, torch itself included; 1 MB is 1,000,000 bytes."""

    @property
    def seconds(self) -> float:
        """Seconds of the whole examination."""
        return self.build_seconds + self.localize_seconds + self.step_seconds

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelRecord:
        """Read the result of ``dataclasses.asdict``, after JSON has turned its tuples into lists."""
        fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**fields)
