"""Runs a benchmark: every method on a copy of one model, with equal weights and equal images."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from localize.api import localize
from localize.bench.contender import Contender, step_of
from localize.bench.flops import step_flops
from localize.bench.machine import environment
from localize.bench.report import Entry, Report
from localize.bench.setup import BenchError, Setup
from localize.bench.sweep.examine import example_of
from localize.bench.timing import Timing, take_turns
from localize.bench.work import step_macs
from localize.bench.zoo import ModelFactory
from localize.memory.live_bytes import peak_step_bytes
from localize.runtime.local_graph import LocalGraphModule

Tell = Callable[[str], None]
"""Takes a few words on what is being done."""


def measure(factory: ModelFactory, setup: Setup, on_progress: Tell | None = None) -> Report:
    """Memory, time and work of a training step of each method, on one model.

    Memory is counted on fake tensors and, on CUDA, also measured with each method alone on the device. Then all take
    steps in turns. What does not fit into the device's memory alone is not timed, and its entry says so.

    Args:
        factory: The model.
        setup: Methods, and how to run them.
        on_progress: Told what is being done.

    Raises:
        LocalizeError: The model cannot be built or localized.
        BenchError: No method fits into the device's memory, or not all of them together; or what the model returns
            is no logits.
    """
    tell = on_progress or (lambda text: None)
    with _threads(setup.threads):
        torch.manual_seed(setup.seed)
        model = factory.build(None, setup.image_size)
        locals_: dict[str, LocalGraphModule] = {}
        entries: dict[str, Entry] = {}
        for label, method, depth in setup.contenders():
            tell(f"{label}: counting")
            side = setup.image_size or factory.image_size
            locals_[label] = _localized(copy.deepcopy(model), method, depth, side, setup.seed)
            shapes_alone = _localized(copy.deepcopy(model).to("meta"), method, depth, side, setup.seed)
            entries[label] = count(label, shapes_alone, setup)
        if torch.device(setup.device).type == "cuda":
            for label, local in locals_.items():
                tell(f"{label}: memory")
                entries[label] = with_allocations(entries[label], local, setup)
        fitting = {label: local for label, local in locals_.items() if not entries[label].note}
        for label, timing in _timed(fitting, setup, tell).items():
            entries[label] = replace(entries[label], timing=timing)
        settings = _settings(setup, next(iter(locals_.values())))
    return Report(
        model=factory.spec,
        settings=settings,
        environment=environment(setup.device),
        entries=tuple(entries.values()),
    )


def count(label: str, local: LocalGraphModule, setup: Setup) -> Entry:
    """What follows without running anything.

    Args:
        label: Name of the contender.
        local: Its model, on the meta device; its layout in memory is set.
        setup: Batch, layout and types.

    Raises:
        BenchError: What the model returns is no logits.
    """
    plan, step = local.plan, step_of(setup)
    if plan.prediction.kind == "other":
        raise BenchError(f"{plan.model} returns {plan.output}", why="steps are timed with cross-entropy of logits")
    shape = plan.input.shape[1:]
    if setup.channels_last:
        local.to(memory_format=torch.channels_last)
    peak = peak_step_bytes(local, setup.batch_size, image_shape=shape, classes=plan.prediction.outputs, step=step)
    return Entry(
        label=label,
        method=plan.method,
        modules=len(plan.modules),
        params=sum(p.numel() for p in local.parameters()),
        plan_macs=plan.macs + plan.auxiliary_macs + plan.repeated_macs,
        fvcore_flops=step_flops(local).total,
        step_macs=step_macs(local, image_shape=shape, label_shape=plan.prediction.size, step=step),
        peak_bytes=peak,
    )


def _localized(model: nn.Module, method: str, depth: int, side: int | None, seed: int) -> LocalGraphModule:
    return localize(model, method, d=depth, example_inputs=example_of(model, side), seed=seed)


def with_allocations(entry: Entry, local: LocalGraphModule, setup: Setup) -> Entry:
    """With what CUDA's allocator gave out to the contender, alone on the device; with a note if that was too much.

    Args:
        entry: The contender's figures so far.
        local: Its model; it is on the CPU afterwards, without gradients.
        setup: Device and batch.
    """
    try:
        allocated, reserved = _allocations(local, setup)
        return replace(entry, allocated_bytes=allocated, reserved_bytes=reserved)
    except torch.OutOfMemoryError:
        return replace(entry, note="out of memory")
    finally:
        local.zero_grad(set_to_none=True)
        local.to("cpu")
        gc.collect()  # an error's traceback and its frames refer to each other
        torch.cuda.empty_cache()


def _allocations(local: LocalGraphModule, setup: Setup) -> tuple[int, int]:
    contender = Contender(local, setup)
    for _ in range(setup.warmup + 1):
        torch.cuda.reset_peak_memory_stats(setup.device)
        contender()
    torch.cuda.synchronize(setup.device)
    return torch.cuda.max_memory_allocated(setup.device), torch.cuda.max_memory_reserved(setup.device)


def _timed(locals_: Mapping[str, LocalGraphModule], setup: Setup, tell: Tell) -> dict[str, Timing]:
    if not locals_:
        raise BenchError("no method fits into the device's memory", remedy="Take a smaller batch")
    on_cuda = torch.device(setup.device).type == "cuda"
    try:
        return take_turns(
            {label: Contender(local, setup) for label, local in locals_.items()},
            setup.steps,
            warmup=setup.warmup,
            seed=setup.seed,
            wait=(lambda: torch.cuda.synchronize(setup.device)) if on_cuda else None,
            on_round=lambda done, total: tell(f"round {done} of {total}"),
        )
    except torch.OutOfMemoryError as error:
        raise BenchError(
            "the methods do not fit into the device's memory together",
            why="they take turns, and each keeps its weights and momentum",
            remedy="Take a smaller batch, or fewer methods at a time",
        ) from error


def _settings(setup: Setup, local: LocalGraphModule) -> dict[str, Any]:
    chosen = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(setup).items()}
    return {**chosen, "image_shape": list(local.plan.input.shape[1:]), "threads": torch.get_num_threads()}


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
