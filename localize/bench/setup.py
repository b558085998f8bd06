"""How a benchmark is run."""

from __future__ import annotations

from dataclasses import dataclass

from localize.methods import get_method, with_depth
from passes.errors import LocalizeError


class BenchError(LocalizeError):
    """A benchmark cannot be run as asked."""


AMP_TYPES = ("bfloat16", "float16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """Methods to compare, and how their steps are run.

    Raises:
        BenchError: A figure is out of range, or the type of autocast is unknown.
        MethodError: A method is unknown, or refuses a depth.
    """

    methods: tuple[str, ...]
    depths: tuple[int, ...] = (4,)
    """Of auxiliary networks: methods that have a depth take part once for each."""
    batch_size: int = 64
    image_size: int | None = None
    """Pixels a side; None leaves it to the model."""
    steps: int = 20
    """Rounds that count."""
    warmup: int = 3
    """Rounds before them: allocators fill their pools, libraries choose their algorithms."""
    seed: int = 0
    """Of weights, images and orders."""
    device: str = "cpu"
    amp: str | None = None
    """Type that forward passes are autocast to, one region a local module. Losses are not scaled."""
    channels_last: bool = False
    threads: int | None = None
    """Of torch on the CPU; None for torch's own choice."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "steps", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise BenchError(f"{name.replace('_', ' ')} must be at least 1, not {value}")
        if not self.methods or not self.depths:
            raise BenchError("no methods to compare", remedy="Give some, such as auglocal,bp,checkpoint")
        if self.amp is not None and self.amp not in AMP_TYPES:
            raise BenchError(f"unknown amp {self.amp!r}", remedy=f"Known: {', '.join(AMP_TYPES)}")
        for _, method, depth in self.contenders():
            options = get_method(method).Options
            options(**with_depth(options, depth, {}))

    def contenders(self) -> list[tuple[str, str, int]]:
        """Label, method and depth of each."""
        found: dict[str, tuple[str, str, int]] = {}
        for method in self.methods:
            for depth in self.depths:
                chosen = with_depth(get_method(method).Options, depth, {})
                label = " ".join([method, *(f"{key}={value}" for key, value in chosen.items())])
                found.setdefault(label, (label, method, depth))
        return list(found.values())
