"""Random convolutional networks: a program drawn by hypothesis, run by a flat module over leaf layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import nn

SIZE = 16
"""Height and width of the images."""
CLASSES = 5


class FourLayers(nn.Module):
    """Four convolutions, each with a batch norm, and a linear layer of ten outputs; how they run is to be said."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1) for i in range(4))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(4))
        self.fc = nn.Linear(8, 10)


@dataclass(frozen=True)
class Instruction:
    """Runs a kind of operation on values, given by their index, and appends its result."""

    kind: str
    reads: tuple[int, ...]
    layer: int
    """Index of its leaf layer; -1 for operations without one."""


class Program(nn.Module):
    """Runs instructions one after the other; the last value goes through the classifier."""

    def __init__(self, layers: list[nn.Module], instructions: list[Instruction], channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.instructions = instructions
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = [x]
        for step in self.instructions:
            read = [values[index] for index in step.reads]
            values.append(self.run(step, read))
        logits: torch.Tensor = self.fc(values[-1].mean((2, 3)))
        return logits

    def run(self, step: Instruction, read: list[torch.Tensor]) -> torch.Tensor:
        if step.kind == "add":
            return read[0] + read[1]
        if step.kind == "cat":
            return torch.cat(read, 1)
        if step.kind == "gate":
            return read[0] * read[1].sigmoid()
        if step.kind == "squeeze":
            return read[0].mean((2, 3), keepdim=True)
        if step.kind == "relu":
            return read[0].relu()
        if step.kind == "shuffle":
            samples, channels, height, width = read[0].shape
            groups = read[0].view(samples, 2, channels // 2, height, width)
            return groups.transpose(1, 2).reshape(samples, channels, height, width)
        if step.kind == "size":
            return read[0] * (1 / read[1].shape[-1])
        result: torch.Tensor = self.layers[step.layer](read[0])
        return result

    def extra_repr(self) -> str:
        return "\n".join(str(step) for step in self.instructions)


class Builder:
    """Writes a program, keeping the channels and the size of each value."""

    def __init__(self) -> None:
        self.layers: list[nn.Module] = []
        self.instructions: list[Instruction] = []
        self.shapes: list[tuple[int, int]] = [(3, SIZE)]

    @property
    def last(self) -> int:
        return len(self.shapes) - 1

    def emit(self, kind: str, reads: tuple[int, ...], shape: tuple[int, int], layer: nn.Module | None = None) -> int:
        if layer is not None:
            self.layers.append(layer)
        self.instructions.append(Instruction(kind, reads, -1 if layer is None else len(self.layers) - 1))
        self.shapes.append(shape)
        return self.last

    def conv(self, source: int, channels: int, stride: int = 1, kernel: int = 3, groups: int = 1) -> int:
        before, size = self.shapes[source]
        layer = nn.Conv2d(before, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        return self.emit("conv", (source,), (channels, -(-size // stride)), layer)

    def norm(self, source: int) -> int:
        return self.emit("norm", (source,), self.shapes[source], nn.BatchNorm2d(self.shapes[source][0]))

    def relu(self, source: int, inplace: bool = False) -> int:
        if inplace:
            return self.emit("relu_", (source,), self.shapes[source], nn.ReLU(inplace=True))
        return self.emit("relu", (source,), self.shapes[source])

    def unit(self, source: int, channels: int, stride: int = 1, inplace: bool = False) -> int:
        """Convolution, norm, activation."""
        return self.relu(self.norm(self.conv(source, channels, stride)), inplace)

    def finish(self) -> Program:
        return Program(self.layers, self.instructions, self.shapes[self.last][0])


WIDTHS = (4, 6, 8)


def _chain(draw: Any, b: Builder) -> None:
    b.unit(b.last, draw(st.sampled_from(WIDTHS)), draw(st.sampled_from([1, 1, 2])), draw(st.booleans()))


def _residual(draw: Any, b: Builder) -> None:
    """Two convolutions and a shortcut, projected where the shape changes; the activation before or after."""
    source, stride = b.last, draw(st.sampled_from([1, 1, 2]))
    channels = draw(st.sampled_from([b.shapes[source][0], *WIDTHS]))
    preactivated = draw(st.booleans())
    # In place, the shortcut too sees what is left: some networks do that. An activation's own output must stay, though.
    inplace = b.instructions[-1].kind in ("norm", "add", "cat", "shuffle") and draw(st.booleans())
    value = b.unit(b.relu(source, inplace) if preactivated else source, channels, stride)
    value = b.norm(b.conv(value, channels))
    shortcut = source
    if b.shapes[value] != b.shapes[source]:
        shortcut = b.norm(b.conv(source, channels, stride, kernel=1))
    value = b.emit("add", (value, shortcut), b.shapes[value])
    if not preactivated:
        b.relu(value, draw(st.booleans()))


def _dense(draw: Any, b: Builder) -> None:
    """Concatenate new channels with the old ones."""
    source, grown = b.last, draw(st.sampled_from((2, 4)))
    value = b.unit(source, grown)
    channels, size = b.shapes[source]
    b.emit("cat", (source, value), (channels + grown, size))


def _branches(draw: Any, b: Builder) -> None:
    """Inception: branches of different depth, concatenated."""
    source, stride = b.last, draw(st.sampled_from([1, 2]))
    ends = []
    for depth in draw(st.lists(st.integers(1, 2), min_size=2, max_size=3)):
        value = b.unit(source, 4, stride)
        for _ in range(depth - 1):
            value = b.unit(value, 4)
        ends.append(value)
    b.emit("cat", tuple(ends), (4 * len(ends), b.shapes[ends[0]][1]))


def _squeeze_excite(draw: Any, b: Builder) -> None:
    source = b.unit(b.last, draw(st.sampled_from(WIDTHS)))
    channels, _ = b.shapes[source]
    squeezed = b.emit("squeeze", (source,), (channels, 1))
    narrow = b.relu(b.conv(squeezed, 2, kernel=1))
    gate = b.conv(narrow, channels, kernel=1)
    b.emit("gate", (source, gate), b.shapes[source])


def _separable(draw: Any, b: Builder) -> None:
    channels, _ = b.shapes[b.last]
    value = b.relu(b.norm(b.conv(b.last, channels, draw(st.sampled_from([1, 2])), groups=channels)))
    b.norm(b.conv(value, draw(st.sampled_from(WIDTHS)), kernel=1))


def _pool(draw: Any, b: Builder) -> None:
    channels, size = b.shapes[b.last]
    if size >= 4:
        kind = draw(st.sampled_from((nn.MaxPool2d, nn.AvgPool2d)))
        b.emit("pool", (b.last,), (channels, size // 2), kind(2))


def _shuffle(draw: Any, b: Builder) -> None:
    """ShuffleNet's exchange between groups of channels, which computes with sizes."""
    b.emit("shuffle", (b.last,), b.shapes[b.last])


def _size(draw: Any, b: Builder) -> None:
    """Scales by the size of any earlier value: a number, which no cut need carry."""
    b.emit("size", (b.last, draw(st.integers(0, b.last))), b.shapes[b.last])


@st.composite
def programs(draw: Any, smallest: int = 2, largest: int = 5) -> Program:
    """Networks of a stem and a few parts, never smaller than 2x2 at the end."""
    b = Builder()
    b.unit(0, draw(st.sampled_from(WIDTHS)))
    parts = (_chain, _residual, _residual, _dense, _branches, _squeeze_excite, _separable, _pool, _shuffle, _size)
    for part in draw(st.lists(st.sampled_from(parts), min_size=smallest, max_size=largest)):
        if b.shapes[b.last][1] > 4 or part in (_dense, _squeeze_excite, _shuffle, _size):
            part(draw, b)
    b.unit(b.last, draw(st.sampled_from(WIDTHS)))
    return b.finish()


def bounded(examples: int) -> settings:
    """Run the same examples each time, as many as the clock allows."""
    unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=unhurried
    )
