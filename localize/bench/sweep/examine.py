"""One model by name: built on the meta device, localized, trained for a fake step. What came of it is a record."""

from __future__ import annotations

import traceback
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from torch import nn

from localize.api import localize
from localize.bench.sweep.isolation import fake_step
from localize.bench.zoo import example_of, find_model
from localize.compiler.inputs import input_of
from localize.methods import get_method, with_depth
from localize.methods.networks.pooling import GlobalAveragePool
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import fake_mode
from passes.common.parameters import uses
from passes.errors import AdaptError, CaptureError, LocalizeError, MethodError, PartitionError, first_line
from passes.ir import Network


class SweepError(LocalizeError):
    """A sweep cannot run, or its file belongs to another."""


LARGE_SHARE = 0.5
"""Share of a model's MACs above which a layer is looked into."""
CLASSES = 1000
"""Outputs of a classifier that is added."""

Status = Literal["localized", "refused", "failed", "timeout"]

REASON_LENGTH = 300
"""Characters of a reason that are kept: some of torch's errors run to pages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamineSettings:
    """How models are to be localized.

    Raises:
        MethodError: The method is unknown, or the depth is none.
    """

    method: str = "auglocal"
    d: int = 3
    """Depth of auxiliary networks."""
    max_cut: int | None = None
    """Most tensors that may cross a border between layers; None leaves it to :func:`localize.localize`."""
    granularity: str | tuple[str, ...] | None = None
    """What a layer is: "minimal", "block", or the names of cuts; None leaves it to :func:`localize.localize`."""
    output: str | int | None = None
    """Which of several values that the model returns is trained."""

    def __post_init__(self) -> None:
        options = get_method(self.method).Options
        options(**with_depth(options, self.d, {}))

    def keywords(self) -> dict[str, Any]:
        """As :func:`localize.localize` takes them."""
        further = {"max_cut": self.max_cut, "granularity": self.granularity, "output": self.output}
        return {"d": self.d, **{key: value for key, value in further.items() if value is not None}}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """What examining one model came to. Figures are 0 or empty where the examination did not get that far."""

    name: str
    """As :func:`~localize.bench.zoo.find_model` takes it."""
    family: str
    """The library's module that defines it."""
    status: Status
    """``localized``: localized, and the step kept to the plan. ``refused``: with an error that names the cause.
    ``failed``: an unforeseen error, a loss that reached what it must not, or a process that died."""
    stage: str = ""
    """Where it stopped: build, capture, partition, plan, localize, step, isolation."""
    reason: str = ""
    """In one line."""
    where: str = ""
    """Module path in the model."""
    source: str = ""
    """Source line, ``file.py:12``."""
    params: int = 0
    macs: int = 0
    """Convolution and linear multiply-accumulates at batch 1."""
    input_shape: tuple[int, ...] = ()
    """Of one sample."""
    nodes: int = 0
    """Of the captured graph."""
    opaque: tuple[str, ...] = ()
    """Submodules that were kept whole because they cannot be traced."""
    layers: int = 0
    """L."""
    modules: int = 0
    """K."""
    cut_width: int = 0
    """Most tensors that cross a border between layers."""
    largest_share: float = 0.0
    """The largest layer's share of the model's MACs, 0..1."""
    tied: tuple[str, ...] = ()
    """Where the largest layer holds more than half of the MACs: the parameters that several of its operations share. It
    is not cut between their uses."""
    blocks: int = 0
    """Copied layers in all auxiliary networks."""
    repaired: int = 0
    """Those of them that were made to fit without an adapter in front."""
    classifier_added: bool = False
    """Whether it returns features of many positions, and was examined with pooling and a linear layer behind it."""
    untrained: tuple[str, ...] = ()
    """Trainable parameters that no loss reaches."""
    build_seconds: float = 0.0
    localize_seconds: float = 0.0
    step_seconds: float = 0.0
    peak_mb: int = 0
    """Most memory that the process held, torch itself included; 1 MB is 1,000,000 bytes."""

    @property
    def seconds(self) -> float:
        """All that the examination took."""
        return self.build_seconds + self.localize_seconds + self.step_seconds

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelRecord:
        """Reads what ``dataclasses.asdict`` gave, after a way through JSON."""
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)


def examine(
    name: str, family: str, settings: ExamineSettings, progress: Callable[[str], object] = lambda stage: None
) -> ModelRecord:
    """Builds a model on the meta device, localizes it, and runs one training step on fake tensors.

    Args:
        name: As :func:`~localize.bench.zoo.find_model` takes it. The model has as many outputs as it likes.
        family: Goes into the record.
        settings: How to localize.
        progress: Is told the stage that begins: build, localize, step.

    Returns:
        The record; whatever error the model causes is in it.
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
    except Exception as error:  # a bug, of ours or of the model's: it must not stop a sweep
        facts |= {"reason": _short(f"{type(error).__name__}: {first_line(error)}"), "source": _innermost(error)}
    return ModelRecord(**facts, peak_mb=_peak_mb())


def compile_model(model: nn.Module, settings: ExamineSettings, example: torch.Tensor | None) -> LocalGraphModule:
    """Localizes a model as the settings say.

    Args:
        model: The primary network.
        settings: How.
        example: An input, if the model's configuration does not say what it takes.

    Raises:
        LocalizeError: As :func:`localize.localize` does.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of a model's own code on being traced say nothing to who asks for it
        return localize(model, settings.method, example_inputs=example, seed=0, **settings.keywords())


def _compile(model: nn.Module, settings: ExamineSettings, image_size: int | None) -> tuple[LocalGraphModule, bool]:
    """Localizes a model, or, if it is an encoder, the same model with a classifier behind it; whether that was so."""
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
        positions = {3: (1,), 4: (2, 3)}.get(getattr(features, "ndim", 0))  # of tokens, of images
        if positions is None:
            raise
    channels = features.shape[1 if features.ndim == 4 else -1]
    classifier = nn.Linear(channels, CLASSES, device="meta", dtype=features.dtype)
    whole = nn.Sequential(OrderedDict(encoder=model, pool=GlobalAveragePool(positions), classifier=classifier))
    return compile_model(whole, settings, example), True


def figures(local: LocalGraphModule) -> dict[str, Any]:
    """The fields of a :class:`ModelRecord` that follow from a localized model."""
    plan = local.plan
    planned = [block for module in plan.modules if module.auxiliary for block in module.auxiliary.blocks]
    blocks = [block for block in planned if block.source is not None]  # plain ones copy nothing
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
def _stage(name: str, facts: dict[str, Any], progress: Callable[[str], object]) -> Iterator[None]:
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
    """The last source line outside torch that the error passed."""
    library = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((library, "<"))]
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _restart_peak() -> None:
    """Makes the kernel count the process's peak memory from now on, where it can: Linux alone does."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_mb() -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024 // 1_000_000
    except (OSError, IndexError):
        return 0
