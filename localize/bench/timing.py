"""Times of several contenders, taken in turns: whatever else the machine does meanwhile hits all of them alike."""

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
    """Seconds of a step, over the rounds that count."""

    samples: tuple[float, ...]
    """One a round, in order."""

    @property
    def median(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The interquartile range; 0 of a single sample."""
        if len(self.samples) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return high - low

    def over(self, other: Timing) -> float:
        """How many times as long as ``other``: the median of the rounds' ratios, which drift leaves alone."""
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
    """Runs every contender once a round, in an order that is shuffled anew for each round.

    Args:
        contenders: What to run, by name.
        rounds: Rounds that count.
        warmup: Rounds before those.
        seed: Of the orders.
        wait: Returns once the device has finished what it was given; None where calls return finished.
        on_round: Told after each round how many are done, and how many there are, the warm-up counted.
        clock: Seconds.

    Returns:
        The times of each contender, in the order in which they came in.

    Raises:
        LocalizeError: There is no contender, or no round that counts.
    """
    if not contenders or rounds < 1 or warmup < 0:
        raise LocalizeError("nothing to measure", why=f"{len(contenders)} contenders, {rounds} rounds, {warmup} before")
    found: dict[Name, list[float]] = {name: [] for name in contenders}
    settle = wait or (lambda: None)
    for done, order in enumerate(_orders(list(contenders), rounds + warmup, seed), 1):
        for name in order:
            settle()
            began = clock()
            contenders[name]()
            settle()
            found[name].append(clock() - began)
        if on_round is not None:
            on_round(done, rounds + warmup)
    return {name: Timing(tuple(seconds[warmup:])) for name, seconds in found.items()}


def _orders(names: Sequence[Name], rounds: int, seed: int) -> Iterator[list[Name]]:
    generator = random.Random(seed)
    for _ in range(rounds):
        yield generator.sample(names, len(names))
