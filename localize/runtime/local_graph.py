"""``LocalGraphModule``: a localized model, which runs local modules one after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

import networkx as nx
import torch
from torch import fx, nn
from torch.fx.graph import PythonCode

from localize.methods.base import Compiled
from localize.methods.networks.local_loss import Batch
from localize.methods.networks.losses import check_target, checked
from localize.plan.plan import Plan
from localize.runtime.cascade import keep_overwritten, last_reads, run_attached, window_of
from localize.runtime.error_context import explain_input, explain_memory
from localize.runtime.exporting import ViewKind, load_exports
from localize.runtime.fused_loss import LossScale, fused_loss, without_strays
from localize.runtime.layout import channels_last_fault
from localize.runtime.local_module import LocalModule, LocalOutput, several
from localize.runtime.options import Runtime, read_runtime
from localize.runtime.predictions import ensemble, in_eval_mode, predictions, require_inference
from localize.runtime.schedule import Schedule
from passes.codegen.generate import PRIMARY, returned
from passes.errors import InputError, LocalizeError

HEAD_WEIGHT = 0.3
"""Weight of the losses of a model's own auxiliary classifiers (Szegedy et al., CVPR 2015, section 5)."""


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
        compiled: Compiled,
    ) -> None:
        training = primary.training
        super().__init__({f"module_{k}": module for k, module in enumerate(modules)}, graph, "LocalGraphModule")
        self._modules = {PRIMARY: primary, **self._modules}
        self._plan = plan
        self._compiled = compiled
        self._structure = compiled.network.captured.structure
        self._schedule = Schedule()
        self._loss_scale = LossScale()
        self._last_read = last_reads(modules)
        self._infers = False
        self.criterion = compiled.criteria.local
        # If it is a module, it is registered here: its parameters are trained by the last loss.
        self.output_criterion = compiled.criteria.output
        self.training = training
        for module in modules:
            module.train(training)

    def recompile(self) -> PythonCode:
        """Compile the graph, and choose between training and inference before it runs."""
        code = super().recompile()
        kind: Any = type(self)
        generated = kind.forward

        def forward(self: LocalGraphModule, x: torch.Tensor, y: object = None) -> object:
            if y is not None:
                return self.loss(x, y)
            # A trace holds the training flag of functional dropout and the like: inference runs the user's own module.
            return self._structure.rebuild(several(generated(self, x))) if self.training else self.primary(x)

        kind.forward = forward
        return code

    @property
    def runtime(self) -> Schedule:
        """The way steps run, and why: ``print(local.runtime)``. Set it to a name or a :class:`localize.Runtime`."""
        return self._schedule

    @runtime.setter
    def runtime(self, asked: str | Runtime) -> None:
        options = read_runtime(asked)
        if options != self._schedule.asked:
            self._schedule.leave(self)
            self._schedule = Schedule(options, fault=channels_last_fault(self))

    @property
    def plan(self) -> Plan:
        """Decisions that the model was compiled from."""
        return self._plan

    @property
    def compiled(self) -> Compiled:
        """The record that the model was compiled from: the captured network, the method and its options, the losses."""
        return self._compiled

    @property
    def local_modules(self) -> tuple[LocalModule, ...]:
        """The K local modules, input to output."""
        modules = tuple(self._modules[f"module_{k}"] for k in range(len(self._plan.modules)))
        return modules  # type: ignore[return-value]

    def steps(self, x: torch.Tensor, y: object) -> Iterator[LocalOutput]:
        """Take one training step, one local module at a time.

        Call ``backward`` on each loss before taking the next: a module's graph is then freed before the next one runs.
        That saves the memory; adding up the losses first keeps all graphs alive. For the same reason do not wrap the
        iterator in ``enumerate`` or ``zip``: they keep their last item. Module k's input depends on earlier modules'
        weights after the batch before only.

        Args:
            x: Input of the primary network, batch first.
            y: Target, handed to the criterion: for cross-entropy class indices (N,), or (N, H, W) for maps.

        Yields:
            One :class:`LocalOutput` per local module, input to output.

        Raises:
            InputError: ``x`` or ``y`` does not fit the model.
            OutOfMemoryError: A forward pass needs more memory than there is.
        """
        self._check(x, y)
        check_target(self.criterion, y, self._plan.prediction.outputs)
        x = self._schedule.start(self, x)
        values: dict[str, object] = {self.local_modules[0].inputs[0]: x}
        for module in self.local_modules:
            try:
                with self._schedule.running(window_of(self.local_modules, module.plan.index) or [module]):
                    logits, loss = self._step(module, values, Batch(x, y, self.criterion, module.plan.name))
            except InputError:
                raise
            except (RuntimeError, AssertionError, ValueError) as error:
                explain_memory(self._plan, x, "forward pass", module.plan.index, error)
                explain_input(self._plan, x, error)
                raise
            if torch.is_grad_enabled() and not loss.requires_grad:
                # All parameters of this module are frozen: the caller's backward must do nothing, not fail.
                loss = loss.detach().requires_grad_()
            yield LocalOutput(module.plan.name, loss, logits)
            # The caller has called backward: no name here may keep the module's graph alive while the next one runs.
            del logits, loss

    def _step(self, module: LocalModule, values: dict[str, object], batch: Batch) -> tuple[object, torch.Tensor]:
        """Run a module; return its prediction and its local loss."""
        cascade = module.plan.cascade
        if cascade is None:
            return self._supervised(module, self._run(module, values), batch)
        # The cascade goes first: the values that it starts from are freed when the module itself has run.
        upstream = run_attached(window_of(self.local_modules, module.plan.index), values) if cascade.reaches else None
        own = self._run(module, values)
        logits, loss = self._supervised(module, own, batch)
        beyond = self._supervised(module, upstream or own, batch, cascaded=True)[1]
        return logits, cascade.independent * loss + cascade.cascaded * beyond

    def _supervised(
        self, module: LocalModule, read: Sequence[Any], batch: Batch, *, cascaded: bool = False
    ) -> tuple[object, torch.Tensor]:
        if module.auxiliary is not None:
            return module.supervise(read, batch, cascaded=cascaded)
        if self.output_criterion is not None:
            output = self._structure.rebuild(read)
            return output, checked(self.output_criterion, output, batch.y, batch.name)
        logits, *heads = read
        loss = batch.loss(logits)
        for head in heads:
            if isinstance(head, torch.Tensor) and head.shape == logits.shape:
                loss = loss + HEAD_WEIGHT * batch.loss(head)
        return logits, loss

    def _run(self, module: LocalModule, values: dict[str, object]) -> tuple[torch.Tensor, ...]:
        """Run a module; keep in ``values`` what later modules read, without graph, and drop the rest.

        Returns:
            The values that the local loss is computed from, with their graph.
        """
        keep_overwritten(module, values, self._last_read)
        results = returned(module.outputs, module(*[values[name] for name in module.inputs]))
        for name in [name for name in values if self._last_read[name] <= module.plan.index]:
            del values[name]
        for name, value in zip(module.outputs, results, strict=True):
            if name in self._last_read:
                values[name] = value.detach() if isinstance(value, torch.Tensor) else value
        return tuple(results[: module.reads])

    def loss(self, x: torch.Tensor, y: object) -> torch.Tensor:
        """Return the sum of the local losses: one scalar, whose backward delivers the gradients of :meth:`steps`.

        The gradients are the same bit for bit. Those of each module are computed during this call, and its graph is
        freed at once; the backward adds ``grad_output * gradient`` to each parameter's ``grad``. ``local(x, y)`` is the
        same, and the form to use under ``DistributedDataParallel``.

        Args:
            x: Input of the primary network, batch first.
            y: Target, handed to the criterion.

        Returns:
            A scalar.

        Raises:
            InputError: ``x`` or ``y`` does not fit the model.
            OutOfMemoryError: The step needs more memory than there is.
        """
        self._check(x, y)
        if not torch.is_grad_enabled():
            return torch.stack([out.loss for out in self.steps(x, y)]).sum()
        owned = [self.parameters_of(k) for k in range(len(self._plan.modules))]
        steps = self.steps(x, y)
        if self.output_criterion is not None:
            steps = without_strays(steps, owned)
        failed, dtype = partial(self._failed, x), self._schedule.dtype
        return fused_loss(steps, owned, self._loss_scale, x.device.type, failed, dtype)

    def _failed(self, x: torch.Tensor, index: int, error: RuntimeError) -> None:
        explain_memory(self._plan, x, "backward pass", index, error)

    def predictions(self, x: torch.Tensor) -> tuple[Any, ...]:
        """Return the prediction of each local module, in inference: early exits of the network.

        Modules run in eval mode, and return to their modes. Prediction k costs the primary network's first k + 1 local
        modules and one auxiliary network.

        Args:
            x: Input of the primary network, batch first.

        Returns:
            The logits of each auxiliary network, (N, classes) or (N, classes, H, W), then the primary network's output.

        Raises:
            InputError: ``x`` does not fit the model.
            LocalizeError: The model's forward branches on its mode in a way that the captured graph does not show.
        """
        self._check(x, None)
        with in_eval_mode(self):
            try:
                exits = predictions(self.local_modules, self.primary, x)
                if not self._infers:
                    require_inference(self.local_modules, self._structure, x, exits[-1])
                    self._infers = True
            except (RuntimeError, AssertionError) as error:
                explain_input(self._plan, x, error)
                raise
        return exits

    def ensemble(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layerwise ensemble: class probabilities over all depths, of which deeper ones count more.

        Patel et al., "Local Learning with Neuron Groups", section 3.4 (after Belilovsky et al., "Greedy layerwise
        learning can scale to ImageNet", ICML 2019): the mean of the softmax of :meth:`predictions`, prediction j
        weighted by 2^j / (1 + 2 + 4 + ...); of modules of several groups of neurons the mean over groups. The primary
        network's output is the deepest one.

        Args:
            x: Input of the primary network, batch first.

        Returns:
            Probabilities of the logits' shape, (N, classes) or (N, classes, H, W).

        Raises:
            InputError: ``x`` does not fit the model.
            LocalizeError: As for :meth:`predictions`; or the model's output is not logits of the same classes.
        """
        return ensemble(self.predictions(x), self._plan.prediction)

    def parameters_of(self, index: int) -> list[nn.Parameter]:
        """Return the parameters that the loss of module ``index`` trains.

        These are its part of the primary network's and those of its auxiliary networks; with a cascaded loss
        (``plan.modules[index].cascade``), also those of earlier modules that it reaches.
        """
        module = self.local_modules[index]
        names = (*(module.plan.cascade.parameters if module.plan.cascade else ()), *module.plan.parameters)
        trained = [self.primary.get_parameter(name) for name in names]
        trained += module.parameters()
        if module.auxiliary is None and isinstance(self.output_criterion, nn.Module):
            held = {id(p) for p in (*self.primary.parameters(), *trained)}
            trained += [p for p in self.output_criterion.parameters() if id(p) not in held]
        return [p for p in trained if p.requires_grad]

    def export(
        self,
        path: str | PathLike[str],
        *,
        format: str | None = None,
        view: ViewKind | None = None,
        module: int | None = None,
        fold: bool = False,
        force: bool = False,
    ) -> Path:
        """Write the model as a picture, a page, a graph, or a file for another program.

        The file is written whole or not at all.

        Args:
            path: The file. Its suffix says the format: ``.dot``, ``.svg``, ``.png``, ``.pdf``, ``.html``, ``.json``,
                ``.graphml``, ``.onnx``, ``.pt2`` or ``.py``.
            format: The format, where the suffix is another one.
            view: What is shown: ``"primary"``, the network alone; ``"local"``, local modules with their losses;
                ``"auxiliary"``, the auxiliary networks; ``"full"``, all. By default what the format is for.
            module: Index of a local module, to show that one alone.
            fold: Draws consecutive local modules that are alike once, with their number.
            force: Whether a file that exists is replaced.

        Returns:
            The path.

        Raises:
            ExportError: The format is unknown or has no such view, the file exists, or a program or package that the
                format needs is missing: the message says how to get it.
        """
        return load_exports().export(self, path, format=format, view=view, module=module, fold=fold, force=force)

    def to_networkx(
        self, *, view: ViewKind = "full", module: int | None = None, fold: bool = False
    ) -> nx.MultiDiGraph[str]:
        """Return the model as a graph of layers, auxiliary networks and losses.

        Nodes have ``kind`` (``"layer"``, ``"block"``, ``"head"``, ``"loss"``, ...), ``label``, ``module`` (index of the
        local module), ``group`` (the frames that it stands in), and what the plan knows of them: ``name``,
        ``parameters``, ``macs``, ``output`` and so on. Edges have ``kind``: ``"cut"`` where a value is detached.

        Args:
            view: As for :meth:`export`.
            module: Index of a local module, to have that one alone, its layers as operations.
            fold: As for :meth:`export`.

        Raises:
            ExportError: There is no such view or module.
        """
        return load_exports().to_networkx(self, view=view, module=module, fold=fold)

    def add_graph(self, writer: object, *, view: ViewKind = "full", fold: bool = False) -> None:
        """Write the model to TensorBoard, whose graphs tab then shows local modules as boxes that open.

        Args:
            writer: A ``torch.utils.tensorboard.SummaryWriter``.
            view: As for :meth:`export`.
            fold: As for :meth:`export`.

        Raises:
            ExportError: TensorBoard is not installed, or ``writer`` is none of its writers.
        """
        load_exports().add_graph(self, writer, view=view, fold=fold)

    def _check(self, x: torch.Tensor, y: object) -> None:
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

    def __deepcopy__(self, memo: dict[int, object]) -> LocalGraphModule:
        model, output = copy.deepcopy(self.primary, memo), copy.deepcopy(self.output_criterion, memo)
        twin = self._compiled.emit(self._plan, self._compiled.over(model, output))
        assert isinstance(twin, LocalGraphModule)
        memo[id(self)] = twin
        for old, new in zip(self.local_modules, twin.local_modules, strict=True):
            new.load_state_dict(old.state_dict())
            new.train(old.training)
        for old_parameter, new_parameter in zip(self.parameters(), twin.parameters(), strict=True):
            new_parameter.requires_grad_(old_parameter.requires_grad)
        twin.training = self.training
        twin._schedule = self._schedule.copied()
        return twin

    def __reduce__(self) -> NoReturn:
        raise LocalizeError(
            "a LocalGraphModule is rebuilt, not pickled",
            why="unpickling a GraphModule traces its source again and may change it",
            remedy="Save local.state_dict() and local.plan.to_json(); call localize() on a new model before loading",
        )
