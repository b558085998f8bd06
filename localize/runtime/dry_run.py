"""One training step on fake tensors, run as a training loop runs it: by local modules, under autocast, with updates."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from localize.forecast import Schedule
from localize.fused import without_strays
from localize.local_graph import LocalGraphModule
from localize.local_module import LocalOutput
from localize.runtime.memory import fill_with_fakes
from localize.runtime.recipe import OPTIMIZERS, Recipe
from localize.runtime.timeline import Event, Timeline
from passes.errors import InputError, LocalizeError, PlanError, first_line
from passes.shapes import fake_mode, quiet

MakeOptimizer = Callable[[list[nn.Parameter]], Optimizer]

_FLOAT_TARGETS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
"""Criteria whose target is of the logits' shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a training step is run.

    Raises:
        PlanError: A dtype or a schedule that is none.
        RecipeError: The optimizer is unknown.
    """

    dtype: torch.dtype | str | None = None
    """Of parameters, buffers and images; None leaves them as they are."""
    amp: torch.dtype | str | None = None
    """Of autocast around forward passes, a region a local module; None without."""
    optimizer: str | MakeOptimizer = "sgd"
    """A name of ``localize.runtime.recipe``, or a function from parameters to an optimizer."""
    step: Schedule = "batch"
    target: Callable[[int], Any] | None = None
    """From the batch size to what the criterion takes; by default class indices, or zeros of the logits' shape where
    the criterion is a binary cross-entropy."""

    def __post_init__(self) -> None:
        for name in ("dtype", "amp"):
            object.__setattr__(self, name, _floating(getattr(self, name), name))
        if self.step not in ("batch", "module"):
            raise PlanError(f"unknown step {self.step!r}", remedy="Give step='batch' or step='module'")
        if isinstance(self.optimizer, str):
            Recipe(optimizer=self.optimizer)

    @property
    def optimizer_name(self) -> str:
        """The optimizer in a word."""
        made = self.optimizer
        return made if isinstance(made, str) else str(getattr(made, "__qualname__", type(made).__name__))

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of these parameters."""
        if isinstance(self.optimizer, str):
            return OPTIMIZERS[self.optimizer](parameters, Recipe(optimizer=self.optimizer))
        return self.optimizer(parameters)


def _floating(given: Any, name: str) -> torch.dtype | None:
    found = getattr(torch, given, None) if isinstance(given, str) else given
    if found is None and given is None:
        return None
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise PlanError(
            f"{name}={given!r} is no type of floating-point numbers", remedy="Give float32, bfloat16 or float16"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What a step did to memory, at one batch size."""

    batch: int
    events: list[Event]
    timeline: Timeline
    """Names the places of ``events``."""
    parameters: int
    buffers: int
    optimizer_state: int
    inputs: int
    gradients: int

    def operators(self) -> list[Any]:
        """What ran, in order."""
        return [event.operator for event in self.events]

    def peak(self) -> int:
        """Most bytes alive."""
        return max(event.live for event in self.events) + self.optimizer_state


class DryRun:
    """Training steps of one model on fake tensors, one for each batch size asked for.

    Args:
        replica: The model, on the meta device; it is filled with fake tensors, and trained by steps that compute
            nothing.
        settings: How.
    """

    def __init__(self, replica: LocalGraphModule, settings: Settings) -> None:
        self.replica = replica.train()
        self.settings = settings
        with fake_mode() as self.mode:
            fill_with_fakes(replica, settings.dtype)  # type: ignore[arg-type]
        self._recordings: dict[int, Recording] = {}

    def record(self, batch: int) -> Recording:
        """Runs a step.

        Args:
            batch: Samples.

        Raises:
            PlanError: It cannot be run on fake tensors, at this batch size or with this target.
        """
        if batch not in self._recordings:
            with self._undisturbed():
                self._recordings[batch] = self._record(batch)
        return self._recordings[batch]

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Nothing around the call counts, and garbage is not collected at odd moments."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            with (
                torch.random.fork_rng(devices=[]),
                torch.inference_mode(False),
                torch.enable_grad(),
                torch.autocast("cpu", enabled=False),
                quiet(),
                self.mode,
            ):
                yield
        finally:
            if collecting:
                gc.enable()

    def _record(self, batch: int) -> Recording:
        replica, timeline = self.replica, Timeline()
        spec = replica.plan.input
        x = torch.empty((batch, *spec.shape[1:]), dtype=self.settings.dtype or spec.dtype, device="cpu")  # type: ignore[arg-type]
        try:
            y = self._target(batch)
            timeline.track(list(replica.parameters()), list(replica.buffers()), x, y)
            with timeline, timeline.following(replica):
                gradients, state = self._step(timeline, x, y)
        except LocalizeError as error:
            raise self._refused(batch, error) from error
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
            raise PlanError(
                f"the memory of a step of {batch} samples cannot be forecast",
                why=f"it does not run on tensors without values: {first_line(error)}",
            ) from error
        finally:
            for parameter in replica.parameters():
                parameter.grad = None
        return Recording(
            batch=batch,
            events=timeline.events,
            timeline=timeline,
            parameters=_bytes(replica.parameters()),
            buffers=_bytes(replica.buffers()),
            optimizer_state=state,
            inputs=_bytes(tree_leaves((x, y))),
            gradients=gradients,
        )

    def _step(self, timeline: Timeline, x: Tensor, y: Any) -> tuple[int, int]:
        """One step, as a loop over ``local.steps`` runs it.

        Returns:
            The most bytes of gradients held at one time, and the bytes of optimizer state.
        """
        replica, most, state = self.replica, 0, 0
        updates = self._updates()
        count = len(replica.plan.modules)
        steps = self._steps(x, y)
        output: LocalOutput | None = None
        for index in range(count):
            timeline.enter(index, "forward")
            with self._autocast():
                # What the loop's variable holds is alive until the next output is there.
                output = next(steps)
            timeline.enter(index, "backward")
            output.loss.backward()
            most = max(most, _bytes(p.grad for p in replica.parameters() if p.grad is not None))
            if index in updates:
                state += self._update(timeline, index, updates[index])
        next(steps, None)
        del output
        if count in updates:
            state += self._update(timeline, count, updates[count])
        return most, state

    def _steps(self, x: Tensor, y: Any) -> Iterator[LocalOutput]:
        replica = self.replica
        if replica.output_criterion is None:
            return replica.steps(x, y)
        # A gradient of a parameter that a plain function closes over would go to the user's own.
        owned = [replica.parameters_of(k) for k in range(len(replica.plan.modules))]
        return without_strays(replica.steps(x, y), owned)

    def _updates(self) -> Mapping[int, list[nn.Parameter]]:
        """Parameters by the local module after which they are updated; one past the last for the end of the step."""
        modules = range(len(self.replica.plan.modules))
        if self.settings.step == "batch":
            parameters = [p for p in self.replica.parameters() if p.requires_grad]
            return {len(modules): parameters} if parameters else {}
        last = {p: index for index in modules for p in self.replica.parameters_of(index)}
        groups = {index: [p for p, its in last.items() if its == index] for index in modules}
        return {index: group for index, group in groups.items() if group}

    def _update(self, timeline: Timeline, index: int, parameters: list[nn.Parameter]) -> int:
        """An optimizer's update, as from the second step on; frees the gradients, and returns the bytes of its state.

        It runs on the meta device: there it takes a twentieth of the time that fake tensors take.
        """
        timeline.enter(index, "update")
        twins = [_meta_twin(parameter) for parameter in parameters]
        with _disable_current_modes(), Timeline() as apart:
            apart.recording = False
            apart.track(twins, [twin.grad for twin in twins])
            before = apart.live
            optimizer = self.settings.make_optimizer(twins)
            optimizer.step()
            resident, apart.recording = apart.live, True
            optimizer.step()
        timeline.insert(apart.events, resident)
        for parameter in parameters:
            parameter.grad = None
        return int(resident - before)

    def _autocast(self) -> torch.autocast:
        kind: Any = self.settings.amp
        return torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None)

    def _target(self, batch: int) -> Any:
        if self.settings.target is not None:
            return self.settings.target(batch)
        plan, prediction = self.replica.plan, self.replica.plan.prediction
        if isinstance(self.replica.criterion, _FLOAT_TARGETS):
            return torch.zeros((batch, prediction.outputs, *prediction.size), device="cpu")
        positions = plan.output.shape[2:] if prediction.kind == "other" else prediction.size
        return torch.zeros((batch, *positions), dtype=torch.int64, device="cpu")

    def _refused(self, batch: int, error: LocalizeError) -> LocalizeError:
        if self.settings.target is not None or not isinstance(error, InputError):
            return error
        return PlanError(
            f"the memory of a step of {batch} samples cannot be forecast",
            why=str(error),
            remedy="Where the loss takes other targets than class indices, give target=, a function from the batch "
            "size to a target",
        )


def _meta_twin(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter on the meta device like this one, with a gradient if it has one."""
    with _disable_current_modes():
        twin, gradient = (
            None if t is None else torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            for t in (parameter, parameter.grad)
        )
        assert twin is not None
        made = nn.Parameter(twin)
        made.grad = gradient
        return made


def _bytes(tensors: Any) -> int:
    """Bytes of tensors, storages that several share once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if isinstance(t, Tensor)}
    return sum(storages.values())
