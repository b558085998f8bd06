"""Run a benchmark: every method on a copy of one model, with equal weights and equal images."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

import torch
from torch import Tensor, nn

from localize.api import localize
from localize.bench.flops import step_flops, step_macs
from localize.bench.report import Entry, Report, environment
from localize.bench.setup import BenchError, Setup
from localize.bench.timing import Timing, take_turns
from localize.bench.zoo import ModelFactory, example_of
from localize.memory.peak import Step, peak_step_bytes
from localize.runtime.layout import channels_last_fault, lay_out
from localize.runtime.local_graph import LocalGraphModule

LEARNING_RATE = 1e-3
"""Low, so that weights stay finite however many steps are timed."""

Tell = Callable[[str], None]
"""A function that is called with a few words on the work that begins."""


def measure(factory: ModelFactory, setup: Setup, on_progress: Tell | None = None) -> Report:
    """Measure memory, time and work of a training step of each method, on one model.

    Memory is counted on fake tensors and, on CUDA, also measured with each method alone on the device. Then all
    methods take steps in turns. A method that does not fit into the device's memory alone is not timed, and its entry
    says so.

    Args:
        factory: The model.
        setup: Methods, and how to run them.
        on_progress: Called with a few words on the work that begins.

    Raises:
        LocalizeError: The model cannot be built or localized.
        BenchError: No method fits into the device's memory, or not all of them together; or the model does not return
            logits.
    """
    tell = on_progress or (lambda text: None)
    with _threads(setup.threads):
        torch.manual_seed(setup.seed)
        model = factory.build(None, setup.image_size)
        side = setup.image_size or factory.image_size
        locals_: dict[str, LocalGraphModule] = {}
        entries: dict[str, Entry] = {}
        for label, method, depth in setup.contenders():
            tell(f"{label}: counting")
            locals_[label] = _localized(copy.deepcopy(model), method, depth, side, setup.seed)
        setup = _with_layout_for_all(setup, locals_.values())
        for label, method, depth in setup.contenders():
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
    """Count the figures of a contender that need no real run.

    Args:
        label: Name of the contender.
        local: The contender's model on the meta device; its memory format is set.
        setup: Batch, layout and types.

    Raises:
        BenchError: The model does not return logits.
    """
    plan, step = local.plan, step_of(setup)
    if plan.prediction.kind == "other":
        raise BenchError(f"{plan.model} returns {plan.output}", why="steps are timed with cross-entropy of logits")
    shape = plan.input.shape[1:]
    if setup.channels_last:
        lay_out(local, torch.device(setup.device).type)
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


class Contender:
    """One method on its own copy of the model, on the device of the benchmark. A call takes one training step.

    Args:
        local: The localized model; it is moved to the device.
        setup: Batch and device.
    """

    def __init__(self, local: LocalGraphModule, setup: Setup) -> None:
        prediction, shape = local.plan.prediction, local.plan.input.shape[1:]
        generator = torch.Generator().manual_seed(setup.seed)
        images = torch.rand(setup.batch_size, *shape, generator=generator).to(setup.device)
        size = (setup.batch_size, *prediction.size)
        labels = torch.randint(prediction.outputs, size, generator=generator).to(setup.device)
        self.local = local.to(setup.device).train()
        if setup.channels_last:
            images = images.contiguous(memory_format=lay_out(local, images.device.type))
        self._batch = images, labels
        self._step = step_of(setup)
        parameters = [p for p in local.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    def __call__(self) -> None:
        """Take one training step: forward, backward, update."""
        self._step(self.local, *self._batch)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def step_of(setup: Setup) -> Step:
    """Return a function that runs forward and backward of a batch, module by module, with the autocast of the setup."""
    dtype = getattr(torch, setup.amp) if setup.amp else torch.bfloat16

    def step(module: nn.Module, images: Tensor, labels: Tensor) -> None:
        assert isinstance(module, LocalGraphModule)
        steps = module.steps(images, labels)
        while True:
            # One region per module: the backward pass runs outside, in the types that the forward pass chose.
            with torch.autocast(images.device.type, dtype, enabled=setup.amp is not None):
                output = next(steps, None)
            if output is None:
                return
            output.loss.backward()
            del output

    return step


def _with_layout_for_all(setup: Setup, locals_: Iterable[LocalGraphModule]) -> Setup:
    """Return the setup with channels last only if torch computes every contender correctly so; else warn.

    All contenders are measured in one layout.
    """
    if setup.channels_last and torch.device(setup.device).type == "cpu":
        for fault in filter(None, map(channels_last_fault, locals_)):
            warnings.warn(f"channels_last off: {fault}", stacklevel=3)
            return replace(setup, channels_last=False)
    return setup


def _localized(model: nn.Module, method: str, depth: int, side: int | None, seed: int) -> LocalGraphModule:
    return localize(model, method, d=depth, example_inputs=example_of(model, side), seed=seed)


def with_allocations(entry: Entry, local: LocalGraphModule, setup: Setup) -> Entry:
    """Return the entry with the bytes that CUDA's allocator gave out while the contender was alone on the device.

    If the device's memory was not enough, the entry has a note instead.

    Args:
        entry: The contender's figures so far.
        local: The contender's model; it is on the CPU afterwards, without gradients.
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
        gc.collect()  # the error's traceback and its frames refer to each other, and hold tensors
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


def _settings(setup: Setup, local: LocalGraphModule) -> dict[str, object]:
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
