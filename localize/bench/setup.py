"""How a benchmark is run: which methods take part, and in what circumstances."""

from __future__ import annotations

from dataclasses import dataclass

from localize.methods import get_method, with_depth
from passes.errors import LocalizeError


class BenchError(LocalizeError):
    """A benchmark cannot be run as requested."""


AMP_TYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Methods to compare, and how their steps are run.

    Raises:
        BenchError: A number is out of range, there is no method, or the type of autocast is unknown.
        MethodError: A method is unknown, or does not take one of the depths.
    """

    methods: tuple[str, ...]
    depths: tuple[int, ...] = (4,)
    """Depths of auxiliary networks: a method that has a depth takes part once for each."""
    batch_size: int = 64
    image_size: int | None = None
    """Pixels a side; None leaves it to the model."""
    steps: int = 20
    """Rounds that are timed."""
    warmup: int = 3
    """Rounds before the timed ones: allocators fill their pools, libraries choose their algorithms."""
    seed: int = 0
    """Seed of weights, images and the order of the contenders."""
    device: str = "cpu"
    amp: str | None = None
    """Type that forward passes are autocast to, one region per local module. Losses are not scaled."""
    channels_last: bool = False
    threads: int | None = None
    """Threads of torch on the CPU; None for torch's own choice."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"{name.replace('_', ' ')} must be at least 1, got {value}")
        if not self.methods or not self.depths:
            raise BenchError("no methods to compare", remedy="Give some, such as auglocal,bp,checkpoint")
        if self.amp is not None and self.amp not in AMP_TYPES:
            raise BenchError(f"unknown amp {self.amp!r}", remedy=f"Known: {', '.join(AMP_TYPES)}")
        for _, method, depth in self.contenders():
            options = get_method(method).Options
            options(**with_depth(options, depth, {}))

    def contenders(self) -> list[tuple[str, str, int]]:
        """Return label, method and depth of each contender, without repetitions.

        >>> [label for label, _, _ in Setup(methods=("dgl", "auglocal"), depths=(2, 4)).contenders()]
        ['dgl', 'auglocal d=2', 'auglocal d=4']
        """
        by_label: dict[str, tuple[str, str, int]] = {}
        for method in self.methods:
            for depth in self.depths:
                depth_option = with_depth(get_method(method).Options, depth, {})
                label = " ".join([method, *(f"{key}={value}" for key, value in depth_option.items())])
                by_label.setdefault(label, (label, method, depth))
        return list(by_label.values())
