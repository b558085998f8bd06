"""Small networks that run a test's own code, in a submodule or in the model's own forward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from passes.ir import TensorSpec

EXAMPLE = torch.empty(2, 4, 8, 8)

SPEC = TensorSpec(tuple(EXAMPLE.shape))

Change = Callable[[Any, Any], Any]


class Part(nn.Module):
    """Two convolutions, and code of the test's own, given the module and its input (N, 4, H, W)."""

    table: torch.Tensor

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.conv, self.more = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        self.register_buffer("table", torch.randn(4, 16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.more(self.conv(self.change(self, x)))
        return result


class Root(Part):
    """The same code in a model's own forward."""

    def __init__(self, change: Change) -> None:
        super().__init__(change)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.fc(super().forward(x).mean((2, 3)))
        return result


def net(part: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 4, 1), part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def by_size(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[2] > 4 else x


def by_rank(m: Part, x: torch.Tensor) -> torch.Tensor:
    if x.ndim != 4 or len(x.shape) != 4 or x.dim() != 4:
        raise ValueError("no image")
    return x * 2


def loop(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[:, i] * (i + 1) for i in range(x.shape[1])], 1)


def loop_over_parts(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([part * i for i, part in enumerate(x.chunk(2, 1))], 1)


def star(m: Part, x: torch.Tensor) -> torch.Tensor:
    def total(*parts: torch.Tensor) -> torch.Tensor:
        found = parts[0]
        for part in parts[1:]:
            found = found + part
        return found

    return x + total(*x.split(1, 1))


def length(m: Part, x: torch.Tensor) -> torch.Tensor:
    batch, one = int(x.shape[0]), int.from_bytes(b"\1", "big")
    if not isinstance(one, int) or len([one]) != 1:
        raise TypeError("int is int")
    return x.reshape(len(x), -1).view(batch, 4, x.shape[2], -1) * one


def position_table(m: Part, x: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(x.shape[2], device=x.device, dtype=x.dtype)
    return x + rows[:, None] + torch.zeros(x.shape[0], 1, 1, 1)


def slice_of_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x + m.table[:, : x.shape[2], : x.shape[3]]


def own_drop_path(m: Part, x: torch.Tensor) -> torch.Tensor:
    kept = (torch.rand(x.shape[0], 1, 1, 1) < 0.5).to(x.dtype)
    return x * kept.div_(0.5)


def floats(m: Part, x: torch.Tensor) -> torch.Tensor:
    scale: float = float(x.shape[1]) ** -0.5
    return x * scale + max(x.shape[2], 3) % 5


def written_item(m: Part, x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 0] = 1.5
    y[:, 1:2] += m.scale[:1]
    return y


def assertion(m: Part, x: torch.Tensor) -> torch.Tensor:
    assert x.shape[2] % 2 == 0, "odd"
    torch._assert(x.shape[0] % 2 == 0, "batch must be even")
    return x


def made_in_forward(m: Part, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = nn.ReLU()(x)
    return result


CAPTURED: tuple[Change, ...] = (
    by_size, by_rank, loop, loop_over_parts, star, length, position_table, slice_of_buffer, own_drop_path, floats,
    written_item, assertion, made_in_forward,
)  # fmt: skip


def by_value(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.mean() > 0 else x


def by_item(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * int(x.argmax())


def by_batch(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if x.shape[0] > 3 else x


def by_batch_loop(m: Part, x: torch.Tensor) -> torch.Tensor:
    return torch.stack([x[i] for i in range(len(x))])


def by_type(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.float16 else x


def by_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    return x * 2 if m.table.sum() > 0 else x


def own_buffer(m: Part, x: torch.Tensor) -> torch.Tensor:
    m.table.mul_(0.5)
    return x


REFUSED: dict[Change, str] = {
    by_value: "values of a tensor",
    by_item: "values of a tensor",
    by_batch: "batch size",
    by_batch_loop: "batch size",
    by_type: "dtype",
    by_buffer: "values of a tensor",
}
