"""What the user holds: LocalGraphModule, its local modules, and the outputs of its steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import fx, nn

from localize.fused import LossScale, fused_loss, without_strays
from localize.losses import Criterion, check_target, checked
from localize.plan import LocalModulePlan, Plan
from passes.codegen import PRIMARY
from passes.errors import InputError, LocalizeError, first_line
from passes.outputs import Structure

HEAD_WEIGHT = 0.3
"""Weight of the losses of a model's own auxiliary classifiers (Szegedy et al., CVPR 2015, section 5)."""


class LocalOutput(NamedTuple):
    """What one local module gives in one training step."""

    name: str
    """Name of the local module."""
    loss: torch.Tensor
    """Local loss, a scalar; its backward reaches this module's parameters and its auxiliary network's, and no other."""
    logits: Any
    """What the loss was computed from: (N, classes), or (N, classes, H, W); the last module's is all that the model
    returns, where there is an ``output_criterion``."""


class LocalModule(nn.Module):
    """One local module: generated code over the user's layers, and the auxiliary network that trains them.

    The layers belong to ``LocalGraphModule.primary``; here they are only called, so every parameter has one name.
    """

    def __init__(
        self,
        plan: LocalModulePlan,
        stage: fx.GraphModule,
        auxiliary: nn.Module | None,
        inputs: Sequence[str],
        outputs: Sequence[str],
        reads: int = 1,
    ) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.reads = reads
        self.auxiliary = auxiliary
        # Not registered: its submodules are the user's, and have their names in the primary network already.
        self.__dict__["stage"] = stage

    @property
    def code(self) -> str:
        """The generated Python of this module."""
        return str(self.__dict__["stage"].code)

    def forward(self, *values: Any) -> Any:
        """Runs the module's layers on detached values; returns the cut, and beside it what else later modules need."""
        return self.__dict__["stage"](*[v.detach() if isinstance(v, torch.Tensor) else v for v in values])

    def logits(self, *cut: torch.Tensor) -> torch.Tensor:
        """What the local loss is computed from: the auxiliary network's output, or the primary's in the last module."""
        if self.auxiliary is None:
            return cut[0]
        result: torch.Tensor = self.auxiliary(*cut)
        return result

    def extra_repr(self) -> str:
        """Name and layers."""
        return f"{self.plan.name}, layers={list(self.plan.layers)}"


def _several(result: Any) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)


class LocalGraphModule(fx.GraphModule):
    """A model that learns by local losses; made by :func:`localize.localize`.

    ``primary`` is the user's own model object. Its parameters are named ``primary.<own name>`` here; those of auxiliary
    networks ``module_<k>.auxiliary.<...>``. Calling it gives the primary network's output; in eval mode the user's
    model itself runs.
    """

    primary: nn.Module

    def __init__(
        self,
        primary: nn.Module,
        modules: Sequence[LocalModule],
        graph: fx.Graph,
        plan: Plan,
        criterion: Criterion,
        output_criterion: Criterion | None,
        remake: Callable[[nn.Module, Criterion | None], LocalGraphModule],
        structure: Structure,
    ) -> None:
        training = primary.training
        super().__init__({f"module_{k}": module for k, module in enumerate(modules)}, graph, "LocalGraphModule")
        self._modules = {PRIMARY: primary, **self._modules}
        self._plan = plan
        self._remake = remake
        self._structure = structure
        self._loss_scale = LossScale()
        self._last_read = {name: k for k, module in enumerate(modules) for name in module.inputs}
        self.criterion = criterion
        # A module's parameters are this module's too, trained by the last loss.
        self.output_criterion = output_criterion
        self.training = training
        for module in modules:
            module.train(training)

    def recompile(self) -> Any:
        """Compiles the graph, and puts the choice between training and inference before it."""
        result = super().recompile()
        kind: Any = type(self)
        generated = kind.forward

        def forward(self: LocalGraphModule, x: torch.Tensor, y: Any = None) -> Any:
            if y is not None:
                return self.loss(x, y)
            # Functional dropout and the like bake the training flag into a trace: inference runs the user's own module.
            return self._structure.rebuild(_several(generated(self, x))) if self.training else self.primary(x)

        kind.forward = forward
        return result

    @property
    def plan(self) -> Plan:
        """Everything that was decided."""
        return self._plan

    @property
    def local_modules(self) -> tuple[LocalModule, ...]:
        """The K local modules, input to output."""
        found = tuple(self._modules[f"module_{k}"] for k in range(len(self._plan.modules)))
        return found  # type: ignore[return-value]

    def steps(self, x: torch.Tensor, y: Any) -> Iterator[LocalOutput]:
        """One training step, a local module at a time.

        Call ``backward`` on each loss before taking the next: a module's graph is then freed before the next one runs.

        Args:
            x: Input of the primary network, batch first.
            y: Target, handed to the criterion: for cross-entropy class indices (N,), or (N, H, W) for maps.

        Yields:
            One :class:`LocalOutput` per local module, input to output.

        Raises:
            InputError: ``x`` or ``y`` does not fit the model.
        """
        self._check(x, y)
        check_target(self.criterion, y, self._plan.prediction.outputs)
        values: dict[str, Any] = {self.local_modules[0].inputs[0]: x}
        for module in self.local_modules:
            try:
                read = self._run(module, values)
                logits = self._predicted(module, read)
            except (RuntimeError, AssertionError, ValueError) as error:
                self._explain(x, error)
                raise
            loss = self._loss(module, logits, read, y)
            del read
            if torch.is_grad_enabled() and not loss.requires_grad:
                # All that this module would train is frozen: the caller's backward should find nothing, not fail.
                loss = loss.detach().requires_grad_()
            yield LocalOutput(module.plan.name, loss, logits)
            # The caller has gone backward: nothing here may keep the module's graph alive while the next one runs.
            del logits, loss

    def _predicted(self, module: LocalModule, read: Sequence[Any]) -> Any:
        if module.auxiliary is None and self.output_criterion is not None:
            return self._structure.rebuild(read)
        return module.logits(*read)

    def _loss(self, module: LocalModule, logits: Any, read: Sequence[torch.Tensor], y: Any) -> torch.Tensor:
        if module.auxiliary is None and self.output_criterion is not None:
            return checked(self.output_criterion, logits, y, module.plan.name)
        loss = checked(self.criterion, logits, y, module.plan.name)
        if module.auxiliary is None:
            for head in read[1:]:
                if isinstance(head, torch.Tensor) and head.shape == logits.shape:
                    loss = loss + HEAD_WEIGHT * checked(self.criterion, head, y, module.plan.name)
        return loss

    def _run(self, module: LocalModule, values: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        """Runs a module; leaves in ``values`` what later modules read, without graph.

        Returns:
            What the local loss is computed from, with its graph.
        """
        result = module(*[values[name] for name in module.inputs])
        results = (result,) if len(module.outputs) == 1 else result
        for name in [name for name in values if self._last_read[name] <= module.plan.index]:
            del values[name]
        for name, value in zip(module.outputs, results, strict=True):
            if name in self._last_read:
                values[name] = value.detach() if isinstance(value, torch.Tensor) else value
        return tuple(results[: module.reads])

    def loss(self, x: torch.Tensor, y: Any) -> torch.Tensor:
        """The sum of the local losses, as one scalar whose one backward delivers the gradients of :meth:`steps`.

        Bit for bit the same gradients: each module's are computed during this call, and its graph is freed at once; the
        backward hands ``grad_output * gradient`` to the parameters. ``local(x, y)`` is the same, and the form to use
        under ``DistributedDataParallel``.

        Args:
            x: Input of the primary network, batch first.
            y: Target, handed to the criterion.

        Returns:
            A scalar.

        Raises:
            InputError: ``x`` or ``y`` does not fit the model.
        """
        self._check(x, y)
        if not torch.is_grad_enabled():
            return torch.stack([out.loss for out in self.steps(x, y)]).sum()
        owned = [self.parameters_of(k) for k in range(len(self._plan.modules))]
        steps = self.steps(x, y)
        if self.output_criterion is not None:
            steps = without_strays(steps, owned)
        return fused_loss(steps, owned, self._loss_scale, x.device.type)

    def parameters_of(self, index: int) -> list[nn.Parameter]:
        """What the loss of module ``index`` trains: its part of the primary network, and its auxiliary network."""
        module = self.local_modules[index]
        found = [self.primary.get_parameter(name) for name in module.plan.parameters]
        found += module.parameters()
        if module.auxiliary is None and isinstance(self.output_criterion, nn.Module):
            held = {id(p) for p in (*self.primary.parameters(), *found)}
            found += [p for p in self.output_criterion.parameters() if id(p) not in held]
        return [p for p in found if p.requires_grad]

    def _check(self, x: torch.Tensor, y: Any) -> None:
        spec = self._plan.input
        if not isinstance(x, torch.Tensor) or x.ndim != len(spec.shape) or not x.shape[0]:
            got = f"a {type(x).__name__}" if not isinstance(x, torch.Tensor) else f"shape {tuple(x.shape)}"
            raise InputError(
                f"the input must be a tensor of shape (batch, {', '.join(map(str, spec.shape[1:]))}); it has {got}"
            )
        if x.shape[1] != spec.shape[1] and spec.layout == "NCHW":
            raise InputError(f"the input has {x.shape[1]} channels, and the model was localized for {spec.shape[1]}")
        if self._plan.prediction.kind == "dense" and len(self.local_modules) > 1 and x.shape[2:] != spec.shape[2:]:
            size, planned = ("x".join(map(str, shape[2:])) for shape in (x.shape, spec.shape))
            raise InputError(
                f"the input is {size}, and local losses were made for maps of {planned} input",
                remedy="Train on crops of one size; localize() makes them for that of example_inputs",
            )
        if isinstance(y, torch.Tensor) and y.ndim and y.shape[0] != x.shape[0]:
            raise InputError(f"the input has {x.shape[0]} samples and the target {y.shape[0]}")

    def _explain(self, x: torch.Tensor, error: Exception) -> None:
        """Puts an error from within the network in terms of the input, if the input is not what was planned for."""
        spec = self._plan.input
        if tuple(x.shape[1:]) != spec.shape[1:] or x.dtype != spec.dtype:
            got = f"{'x'.join(map(str, x.shape[1:]))}, {str(x.dtype).removeprefix('torch.')}"
            raise InputError(
                f"the model does not run on an input of {got}",
                why=first_line(error),
                remedy=f"It was localized for {spec}, {str(spec.dtype).removeprefix('torch.')}; give example_inputs of "
                "another shape to localize() if the model takes one",
            ) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> LocalGraphModule:
        twin = self._remake(copy.deepcopy(self.primary, memo), copy.deepcopy(self.output_criterion, memo))
        memo[id(self)] = twin
        for old, new in zip(self.local_modules, twin.local_modules, strict=True):
            new.load_state_dict(old.state_dict())
            new.train(old.training)
        for old_parameter, new_parameter in zip(self.parameters(), twin.parameters(), strict=True):
            new_parameter.requires_grad_(old_parameter.requires_grad)
        twin.training = self.training
        return twin

    def __reduce__(self) -> NoReturn:
        raise LocalizeError(
            "a LocalGraphModule is rebuilt, not pickled",
            why="unpickling a GraphModule traces its source again and may change it",
            remedy="Save local.state_dict() and local.plan.to_json(); call localize() on a new model before loading",
        )
