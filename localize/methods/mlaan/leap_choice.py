"""Choice of the later layers that MLAAN copies in front of an auxiliary network. Arithmetic on 0-based indices."""

from __future__ import annotations

from collections.abc import Sequence


def leaps(layer: int, count: int, starts: Sequence[int], layers: int) -> tuple[int, ...]:
    """Choose later layers, early, middle and deep ones: the first of each later stage, then some of the last stage.

    MLAAN (AAAI 2025), section "Leap Augmented Modules", says that much. The released code has tables written by hand,
    and no rule gives them all: for ResNet-32, those of 8 and of 16 modules differ after the same block. This rule gives
    the table of 8 modules:

    - the first layer of each stage that begins after ``layer``, or ``count`` - 1 of those firsts, spread evenly;
    - then, of the layers after the last stage's first, as many as are left of ``count``, but ``count`` - 1 at most: the
      last layer, and from there towards the input in even steps. Where no stage begins any more, the steps go through
      all layers that are left; else the firsts are the early and the middle ones, and the steps are shorter: at most
      n / (2 * ``count``), rounded half to even, where n layers follow ``layer``.

    Args:
        layer: The layer whose output the auxiliary network reads.
        count: Layers wanted, p.
        starts: Indices of the layers at which stages begin.
        layers: L.
    """
    later = [start for start in starts if start > layer]
    tail = range((later[-1] if later else layer) + 1, layers)
    room = count - 1 if tail else count
    firsts = later
    if len(later) > room:
        firsts = [later[round(len(later) * i / room) - 1] for i in range(1, room + 1)]
    wanted = min(count - len(firsts), max(1, count - 1), len(tail))
    if not wanted:
        return tuple(firsts)
    step = len(tail) // wanted
    if later:
        step = max(1, min(step, round((layers - 1 - layer) / (2 * count))))
    return (*firsts, *sorted(layers - 1 - step * i for i in range(wanted)))
