"""A training step on fake tensors, run as a training loop runs it: by local modules, under autocast, with updates."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._foreach_utils import _get_foreach_kernels_supported_devices
from torch.utils._pytree import tree_leaves

from localize.memory.optimizer_update import bytes_of, second_update
from localize.memory.settings import StepSettings
from localize.memory.timeline import Event, Timeline
from localize.runtime.fused_loss import without_strays
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalOutput
from passes.common.fake_tensors import fake_mode, fill_with_fakes, quiet
from passes.errors import InputError, LocalizeError, PlanError, first_line

_FLOAT_TARGETS = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
"""Criteria whose target has the shape of the logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Memory events of one training step, at one batch size."""

    batch: int
    events: list[Event]
    timeline: Timeline
    """The timeline that recorded ``events``; it knows the module path of each."""
    parameters: int
    buffers: int
    optimizer_state: int
    inputs: int
    gradients: int

    def operators(self) -> list[OpOverload | None]:
        """Return the operators that ran, in order."""
        return [event.operator for event in self.events]

    def peak(self) -> int:
        """Return the most bytes alive at one time."""
        return max(event.live for event in self.events) + self.optimizer_state


class DryRun:
    """Training steps of one model on fake tensors, one for each batch size asked for.

    Args:
        replica: A copy of the model on the meta device. It is filled with fake tensors and trained by steps that
            compute
            nothing.
        settings: How the steps are run.
        device: Device of the model itself: on GPUs, optimizers update all parameters at once.
    """

    def __init__(self, replica: LocalGraphModule, settings: StepSettings, device: torch.device) -> None:
        self.replica = replica
        self.settings = settings
        self.foreach = device.type in _get_foreach_kernels_supported_devices()
        with fake_mode() as self.mode:
            self._prepare()
        self._recordings: dict[int, Recording] = {}

    def _prepare(self) -> None:
        fill_with_fakes(self.replica.train(), self.settings.dtype)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """Type of the images: that of the parameters, which may have changed since the model was localized."""
        planned = self.replica.plan.input.dtype
        floating = (p.dtype for p in self.replica.primary.parameters() if p.is_floating_point())
        return next(floating, planned) if planned.is_floating_point else planned

    def record(self, batch: int) -> Recording:
        """Run a step, or return the recording of an earlier one.

        Args:
            batch: Number of samples.

        Raises:
            PlanError: The step cannot be run on fake tensors at this batch size or with this target.
        """
        if batch not in self._recordings:
            with self._undisturbed():
                self._recordings[batch] = self._record(batch)
        return self._recordings[batch]

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Shield a step from modes around the call, and from garbage collection at odd moments."""
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
        x = torch.empty((batch, *replica.plan.input.shape[1:]), dtype=self.dtype, device="cpu")
        try:
            y = self._target(batch)
            timeline.track(list(replica.parameters()), list(replica.buffers()), x, y)
            with timeline, timeline.following(replica):
                gradients, state = self._step(timeline, x, y)
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError) as error:
            raise self._refused(batch, error) from error
        finally:
            self._forget()
        return Recording(
            batch=batch,
            events=timeline.events,
            timeline=timeline,
            parameters=bytes_of(replica.parameters()),
            buffers=bytes_of(replica.buffers()),
            optimizer_state=state,
            inputs=bytes_of(tree_leaves((x, y))),
            gradients=gradients,
        )

    def _forget(self) -> None:
        for parameter in self.replica.parameters():
            parameter.grad = None

    def _step(self, timeline: Timeline, x: Tensor, y: object) -> tuple[int, int]:
        """Run a step as a loop over ``local.steps`` does.

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
            if index in updates or index == count - 1:  # gradients only grow until then
                most = max(most, bytes_of(p.grad for p in replica.parameters() if p.grad is not None))
            if index in updates:
                state += self._update(timeline, index, updates[index])
        next(steps, None)
        del output
        if count in updates:
            state += self._update(timeline, count, updates[count])
        return most, state

    def _steps(self, x: Tensor, y: object) -> Iterator[LocalOutput]:
        replica = self.replica
        if replica.output_criterion is None:
            return replica.steps(x, y)
        # A gradient of a parameter that a plain function closes over would go to the user's own.
        owned = [replica.parameters_of(k) for k in range(len(replica.plan.modules))]
        return without_strays(replica.steps(x, y), owned)

    def _updates(self) -> Mapping[int, list[nn.Parameter]]:
        """Group parameters by the local module after which they are updated.

        The number of modules stands for the end of the step.
        """
        modules = range(len(self.replica.plan.modules))
        if self.settings.step == "batch":
            parameters = [p for p in self.replica.parameters() if p.requires_grad]
            return {len(modules): parameters} if parameters else {}
        last = {p: index for index in modules for p in self.replica.parameters_of(index)}
        groups = {index: [p for p, its in last.items() if its == index] for index in modules}
        return {index: group for index, group in groups.items() if group}

    def _update(self, timeline: Timeline, index: int, parameters: list[nn.Parameter]) -> int:
        """Add an optimizer's update, as from the second step on, and free the gradients.

        Returns:
            Bytes of the optimizer's state.
        """
        timeline.enter(index, "update")
        update = second_update(parameters, self.settings, foreach=self.foreach, mode=self.mode)
        timeline.insert(update.events, update.resident)
        for parameter in parameters:
            parameter.grad = None
        return update.state

    def _autocast(self) -> torch.autocast:
        kind: Any = self.settings.amp
        return torch.autocast("cpu", kind or torch.bfloat16, enabled=kind is not None)

    def _target(self, batch: int) -> object:
        if self.settings.target is not None:
            return self.settings.target(batch)
        plan, prediction = self.replica.plan, self.replica.plan.prediction
        if isinstance(self.replica.criterion, _FLOAT_TARGETS):
            return torch.zeros((batch, prediction.outputs, *prediction.size), device="cpu")
        positions = plan.output.shape[2:] if prediction.kind == "other" else prediction.size
        return torch.zeros((batch, *positions), dtype=torch.int64, device="cpu")

    def _refused(self, batch: int, error: Exception) -> LocalizeError:
        """Return an error of the step in terms of the forecast."""
        what = f"the memory of a step of {batch} samples cannot be forecast"
        cause = error.__cause__ or error
        if isinstance(cause, (DataDependentOutputException, DynamicOutputShapeException)):
            return PlanError(
                what,
                where=getattr(error, "where", None),
                why=f"it depends on the values of a tensor ({first_line(cause)}), and nothing is computed",
                remedy="Where a loss looks at values, localize with one that does not, and takes as much",
            )
        if isinstance(error, InputError) and self.settings.target is None:
            return PlanError(
                what,
                why=str(error),
                remedy="Where the loss takes other targets than class indices, give target=, a function from the batch "
                "size to a target",
            )
        if isinstance(error, LocalizeError):
            return error
        return PlanError(what, why=f"it does not run on tensors without values: {first_line(error)}")
