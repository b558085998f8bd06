"""Examine one model by name: build it on the meta device, localize it, run one fake training step, write a record."""

from __future__ import annotations

import traceback
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from localize.api import localize
from localize.bench.sweep.isolation import fake_step
from localize.bench.sweep.record import LARGE_SHARE, ExamineSettings, ModelRecord, Progress
from localize.bench.zoo import example_of, find_model
from localize.compiler.inputs import input_of
from localize.methods import get_method
from localize.methods.networks.pooling import GlobalAveragePool
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import fake_mode
from passes.common.parameters import uses
from passes.errors import AdaptError, CaptureError, LocalizeError, MethodError, PartitionError, first_line
from passes.ir import Network

CLASSES = 1000
"""Number of outputs of a classifier that is added to an encoder."""

REASON_LENGTH = 300
"""Characters of a reason that are kept: some of torch's errors are pages long."""


def examine(name: str, family: str, settings: ExamineSettings, progress: Progress = lambda stage: None) -> ModelRecord:
    """Build a model on the meta device, localize it, and run one training step on fake tensors.

    Args:
        name: As :func:`~localize.bench.zoo.find_model` takes it. The model keeps its own number of outputs.
        family: The model's family, for the record.
        settings: How to localize the model.
        progress: Called with the stage that begins: build, localize, step.

    Returns:
        The record. An error of any kind that the model causes is part of it.
    """
    facts: dict[str, Any] = {"name": name, "family": family, "status": "failed", "stage": "build"}
    _restart_peak()
    try:
        factory = find_model(name)
        with _stage("build", facts, progress):
            model = factory.build(meta=True)
        facts["params"] = sum(p.numel() for p in model.parameters())
        with _stage("localize", facts, progress):
            local, facts["classifier_added"] = _compile(model, settings, factory.image_size)
        facts |= figures(local)
        with _stage("step", facts, progress):
            reach = fake_step(local)
        facts |= {"untrained": reach.untrained, "stage": "isolation" if reach.violations else ""}
        facts["status"] = "failed" if reach.violations else "localized"
        facts["reason"] = (
            _short(f"{len(reach.violations)} times, as: {reach.violations[0]}") if reach.violations else ""
        )
    except LocalizeError as error:
        facts |= {"status": "refused", "stage": _stage_of(error, facts["stage"]), "reason": _short(error.reason)}
        facts |= {"where": error.where or "", "source": error.source or ""}
    except Exception as error:  # a bug of this package or of the model must not stop a sweep
        facts |= {"reason": _short(f"{type(error).__name__}: {first_line(error)}"), "source": _innermost(error)}
    return ModelRecord(**facts, peak_mb=_peak_mb())


def compile_model(model: nn.Module, settings: ExamineSettings, example: torch.Tensor | None) -> LocalGraphModule:
    """Localize a model with the options of the settings.

    Args:
        model: The primary network.
        settings: Method, depth and where to cut.
        example: An input; None if the model's configuration says what it takes.

    Raises:
        LocalizeError: The model cannot be localized; see :func:`localize.localize`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a model's own code may warn when it is traced, which says nothing to the user
        return localize(model, settings.method, example_inputs=example, seed=0, **settings.keywords())


def _compile(model: nn.Module, settings: ExamineSettings, image_size: int | None) -> tuple[LocalGraphModule, bool]:
    """Localize a model, or an encoder with a classifier after it; return too whether a classifier was added."""
    example = example_of(model, image_size)
    try:
        local = compile_model(model, settings, example)
        prediction = local.plan.prediction
        local_losses = get_method(settings.method).local
        if not local_losses or prediction.kind != "dense" or prediction.size == local.plan.input.spatial:
            return local, False
        raise MethodError(f"the model returns features of {local.plan.output}, not a map of its input's size")
    except MethodError:
        shape, dtype = input_of(model, example)
        example = torch.empty(shape, dtype=dtype, device="meta")
        with fake_mode(), torch.no_grad():
            features: Any = model.train()(example)
        # Dimensions of positions: of tokens (N, T, C), of images (N, C, H, W).
        positions = {3: (1,), 4: (2, 3)}.get(getattr(features, "ndim", 0))
        if positions is None:
            raise
    channels = features.shape[1 if features.ndim == 4 else -1]
    classifier = nn.Linear(channels, CLASSES, device="meta", dtype=features.dtype)
    whole = nn.Sequential(OrderedDict(encoder=model, pool=GlobalAveragePool(positions), classifier=classifier))
    return compile_model(whole, settings, example), True


def figures(local: LocalGraphModule) -> dict[str, Any]:
    """Return the fields of a :class:`~localize.bench.sweep.record.ModelRecord` that a localized model determines."""
    plan = local.plan
    every = [block for module in plan.modules if module.auxiliary for block in module.auxiliary.blocks]
    blocks = [block for block in every if block.source is not None]  # plain blocks copy no layer
    largest = max(plan.layers, key=lambda layer: layer.macs)
    share = largest.macs / max(1, plan.macs)
    return {
        "macs": plan.macs,
        "input_shape": tuple(plan.input.shape[1:]),
        "nodes": len(local.compiled.network.captured.nodes),
        "opaque": plan.opaque,
        "layers": len(plan.layers),
        "modules": len(plan.modules),
        "cut_width": max(getattr(layer, "width", 1) for layer in plan.layers),
        "largest_share": round(share, 4),
        "tied": _tied(local.compiled.network, largest.index) if share > LARGE_SHARE else (),
        "blocks": len(blocks),
        "repaired": sum(block.adapter is None for block in blocks),
    }


def _tied(network: Network, index: int) -> tuple[str, ...]:
    part, own = network.partition, set(network.partition.nodes[index])
    users = uses(network.captured, frozenset(part.shared), part.portable)
    parameters = network.captured.model.named_parameters()
    return tuple(name for name, p in parameters if len(own.intersection(users.get(id(p), ()))) > 1)


@contextmanager
def _stage(name: str, facts: dict[str, Any], progress: Progress) -> Iterator[None]:
    facts["stage"] = name
    progress(name)
    start = perf_counter()
    try:
        yield
    finally:
        facts[f"{name}_seconds"] = round(perf_counter() - start, 3)


_STAGES: dict[type[LocalizeError], str] = {
    CaptureError: "capture",
    PartitionError: "partition",
    AdaptError: "plan",
    MethodError: "plan",
}


def _stage_of(error: LocalizeError, stage: str) -> str:
    return _STAGES.get(type(error), stage) if stage == "localize" else stage


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."


def _innermost(error: Exception) -> str:
    """Return the last source line outside torch in the error's traceback; empty if there is none."""
    library = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((library, "<"))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _restart_peak() -> None:
    """Reset the peak that the kernel keeps of the process's memory; Linux alone can do it."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mb() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 // 1_000_000
    except (OSError, IndexError):
        return 0
