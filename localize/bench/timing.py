"""Step times of several contenders that take turns, so that whatever else the machine does slows all of them alike."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from passes.errors import LocalizeError

Name = TypeVar("Name")


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one contender's step in each timed round."""

    samples: tuple[float, ...]
    """Seconds in the order of the rounds."""

    @property
    def median(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """Interquartile range in seconds; 0 for a single sample."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return high - low

    def over(self, other: Timing) -> float:
        """Return how many times as long as ``other`` this takes.

        This is the median of the ratios within rounds, so a machine that grows slower from round to round does not
        change it.

        >>> Timing((2.0, 4.0, 8.0)).over(Timing((1.0, 2.0, 4.0)))
        2.0
        """
        return statistics.median(mine / its for mine, its in zip(self.samples, other.samples, strict=True))


def take_turns(
    contenders: Mapping[Name, Callable[[], object]],
    rounds: int,
    *,
    warmup: int = 0,
    seed: int = 0,
    wait: Callable[[], object] | None = None,
    on_round: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, Timing]:
    """Run every contender once a round, each round in a new random order, and time each call.

    Args:
        contenders: Functions to time, by name.
        rounds: Rounds that are timed.
        warmup: Rounds before those, which are not.
        seed: Seed of the random orders.
        wait: Returns once the device has finished its work; None where a call returns only when its work is finished.
        on_round: Called after each round with the number of rounds done and the number of all rounds, warm-up included.
        clock: Returns the time in seconds.

    Returns:
        The times of each contender, in the order of ``contenders``.

    Raises:
        LocalizeError: There are no contenders, ``rounds`` is below 1 or ``warmup`` below 0.
    """
    if not contenders or rounds < 1 or warmup < 0:
        raise LocalizeError("nothing to measure", why=f"{len(contenders)} contenders, {rounds} rounds, {warmup} before")
    seconds: dict[Name, list[float]] = {name: [] for name in contenders}
    settle = wait or (lambda: None)
    for done, order in enumerate(_orders(list(contenders), rounds + warmup, seed), 1):
        for name in order:
            settle()
            began = clock()
            contenders[name]()
            settle()
            seconds[name].append(clock() - began)
        if on_round is not None:
            on_round(done, rounds + warmup)
    return {name: Timing(tuple(samples[warmup:])) for name, samples in seconds.items()}


def _orders(names: Sequence[Name], rounds: int, seed: int) -> Iterator[list[Name]]:
    generator = random.Random(seed)
    for _ in range(rounds):
        yield generator.sample(names, len(names))
