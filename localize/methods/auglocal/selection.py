"""Selection of the later layers that an auxiliary network copies, and of its depth. Arithmetic on 0-based indices."""

from __future__ import annotations


def uniform(layer: int, hidden: int, layers: int) -> tuple[int, ...]:
    """Return layers spread evenly over those that follow ``layer``; the last layer is always among them.

    AugLocal (ICLR 2024), section 3.2: beta_i = l + round((L - l) * i / (d_l - 1)) for i = 1..d_l - 1. The paper leaves
    halves open. Its released code rounds the whole index, counted from 0, to even, and so does this:
    round(l + (L - 1 - l) * i / (d_l - 1)). Where fewer than ``hidden`` layers remain, all that remain are taken. The
    order of operations decides ties, so it must stay.

    Args:
        layer: The layer whose output the auxiliary network reads, l.
        hidden: Hidden layers wanted, d_l - 1.
        layers: L.

    >>> uniform(2, 3, 16)
    (6, 11, 15)
    """
    remaining = layers - 1 - layer
    if remaining <= hidden:
        return tuple(range(layer + 1, layers))
    return tuple(round(layer + remaining * i / hidden) for i in range(1, hidden + 1))


def sequential(layer: int, hidden: int, layers: int) -> tuple[int, ...]:
    """Return the layers right after ``layer``, as many as wanted or left (AugLocal, ICLR 2024, section 4.5, "Seq.").

    Args:
        layer: The layer whose output the auxiliary network reads.
        hidden: Hidden layers wanted.
        layers: L.
    """
    return tuple(range(layer + 1, min(layer + 1 + hidden, layers)))


def repetitive(layer: int, hidden: int, layers: int) -> tuple[int, ...]:
    """Return ``layer`` itself, repeated (AugLocal, ICLR 2024, section 4.5, "Repe."; table 10).

    As many times as :func:`uniform` would take layers, so that the strategies compare at one depth.

    Args:
        layer: The layer whose output the auxiliary network reads.
        hidden: Hidden layers wanted.
        layers: L.
    """
    return (layer,) * min(hidden, layers - 1 - layer)


def pyramid(hidden: int, module: int, modules: int, tau: float) -> int:
    """Return the number of hidden layers of a module's auxiliary network, which shrinks linearly towards the output.

    AugLocal (ICLR 2024), section 3.3, equation 3, in the released code's form: with h hidden layers asked for and M
    local modules, max(1, round(h * (1 - i*tau/(M-2)) + i*tau/(M-2))) for i = 0..M-2. The order of operations decides
    ties, so it is kept. With two modules there is one auxiliary network, and nothing to shrink.

    Args:
        hidden: Hidden layers asked for, d - 1.
        module: Index i of the local module.
        modules: M, the last module without auxiliary network counted.
        tau: Decay; 0 switches the pyramid off.
    """
    if hidden < 1 or modules <= 2:
        return hidden
    return max(1, round(hidden * (1 - module * tau / (modules - 2)) + module * tau / (modules - 2)))
