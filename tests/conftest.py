"""Settings and small models that all tests may use."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from torch import nn

from localize.models import CifarResNet, cifar_resnet

# Before they are imported: assertions that tests share show their values, as those of tests do.
pytest.register_assert_rewrite("tests.tools")

from tests.tools.chromium import Chromium, chromium  # noqa: E402

# One thread a worker: xdist already uses every core, and results do not depend on how many cores there are.
torch.set_num_threads(1)
# The same examples every time: what fails once fails again.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.load_profile("same")
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start


def pytest_configure(config: pytest.Config) -> None:
    # What a shell starts in the background ignores Ctrl-C, and so would the runs that tests interrupt.
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "registry: runs models of every family for real; only with `-m registry`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes many minutes, unless a marker or its own name asks for it."""
    if not config.option.markexpr and not any("::" in argument for argument in config.args):
        left_out = [item for item in items if any(item.get_closest_marker(name) for name in ("registry", "slow"))]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_collection() -> None:
    """Pause garbage collection while tests are collected, and exempt what that loaded from later collections."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def resnet() -> CifarResNet:
    """Return the smallest CIFAR ResNet: stem, three blocks, both kinds of shortcut; 4 local layers with narrow cuts."""
    return cifar_resnet(8, width=4)


@pytest.fixture
def chain() -> nn.Sequential:
    """Three convolutions and a classifier, without branches: 3 local layers."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Eight random images, 8 x 3 x 16 x 16, and labels of ten classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 16, 16, generator=generator), torch.randint(10, (8,), generator=generator)


@pytest.fixture(scope="session")
def browser() -> Iterator[Chromium]:
    """Start a browser that all tests of a worker share."""
    with chromium() as started:
        yield started
