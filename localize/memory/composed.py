"""A training step on fake tensors in which equal local modules run only once, which is fast enough for charts.

Modules are isolated: what a module does to memory follows from its own code, its auxiliary network and its inputs
alone, and from what is released meanwhile: the logits and loss of the module before, with whatever hangs on their
graph. So the operations of one module stand for those of every equal module, counted from what is alive when that
one runs. ResNet-110 at d=6 runs 13 of its 50 modules. Cascades read other modules, so models with cascades run whole.

Most of the time of such a step is torch's own dispatch on fake tensors, whose results torch caches by shapes:
DenseNet-121, in which no two layers have the same shapes, takes ten times as long for each operation as a ResNet.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from localize.memory.dry_run import DryRun
from localize.memory.optimizer_update import bytes_of
from localize.memory.settings import StepSettings
from localize.memory.timeline import Event, Timeline
from localize.methods.networks.local_loss import Batch
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalModule, LocalOutput
from passes.common.fake_tensors import fill
from passes.common.restore import untouched

_PLAIN = (int, float, bool, str, type(None), torch.dtype)


def is_composable(local: LocalGraphModule, settings: StepSettings) -> bool:
    """Return whether the modules are isolated, and the step can be run without a copy of the model."""
    if local.output_criterion is not None or settings.step != "batch" or settings.dtype is not None:
        return False
    modules = list(local.modules())
    # Hooks are silent while the model itself runs; these compute weights.
    hooks = [hook for module in modules for hook in module._forward_pre_hooks.values()]
    return not (
        any(module.cascade for module in local.plan.modules)
        or any(isinstance(module, torch.jit.ScriptModule) for module in modules)  # their tensors cannot be exchanged
        or any(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in hooks)
    )


@dataclass(slots=True)
class _Seen:
    """Memory events of a module that ran, for the modules equal to it."""

    index: int
    events: Sequence[Event]
    start: int
    """Bytes alive before the module ran."""
    end: int
    """Bytes alive after the module ran."""
    outputs: Sequence[_Handed | None]
    """Values that the module hands on, in order; of tensors only shape, stride and dtype."""
    given: int
    """Bytes of the module's logits and loss, which a training loop holds until the next module has run."""
    held: int = 0
    """Bytes that stay alive with the logits and loss, such as parts of their graph. Known once the next module has
    run."""


class ComposedRun(DryRun):
    """Dry runs of a model itself, in which only the first of equal local modules runs.

    While a module runs its parameters and buffers are fake; at the end of the step they are put back.

    Args:
        replica: The model.
        settings: How the steps are run.
        device: Device of the model.
    """

    def _prepare(self) -> None:
        """Fill nothing: which modules run is known only during the step."""

    def _forget(self) -> None:
        """Keep gradients: the fakes hold those of the step, and the model's own may belong to its training."""

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        with untouched(self.replica), super()._undisturbed():
            self.replica.train()
            self._filled: set[int] = set()
            self._stand_ins: dict[int, nn.Parameter] = {}
            self._held: object = None
            self._last: _Seen | None = None
            yield
            del self._filled, self._stand_ins, self._held, self._last

    def _step(self, timeline: Timeline, x: Tensor, y: object) -> tuple[int, int]:
        replica, seen = self.replica, dict[Hashable, _Seen]()
        values: dict[str, object] = {replica.local_modules[0].inputs[0]: x}
        trained = [p for p in replica.parameters() if p.requires_grad]
        for module in replica.local_modules:
            form = self._form(module, values, x)
            if form in seen:
                self._skip(timeline, module, values, seen[form])
                continue
            self._last = self._run(timeline, module, values, Batch(x, y, replica.criterion, module.plan.name))
            if None not in self._last.outputs:
                seen[form] = self._last
        self._held = None
        # Without what no loss reaches in modules that did not run: it has no gradient, and no state.
        parameters = [self._stand_in(p) for p in trained if id(p) in self._stand_ins]
        gradients = sum(bytes_of([p.grad]) for p in parameters)
        return gradients, self._update(timeline, len(replica.local_modules), parameters) if parameters else 0

    def _stand_in(self, parameter: nn.Parameter) -> nn.Parameter:
        """Return the fake whose gradient has the form that this parameter's gradient would have."""
        while id(parameter) in self._stand_ins:
            parameter = self._stand_ins[id(parameter)]
        return parameter

    def _form(self, module: LocalModule, values: dict[str, object], x: Tensor) -> Hashable:
        """Return everything that a module's events follow from."""
        index, last_read = module.plan.index, self.replica._last_read
        storages = [v.untyped_storage()._cdata for v in values.values() if isinstance(v, Tensor)]
        storages.append(x.untyped_storage()._cdata)
        inputs = tuple(
            (
                look(value),
                last_read[name] <= index,
                isinstance(value, Tensor) and storages.count(value.untyped_storage()._cdata),
            )
            for name, value in ((name, values[name]) for name in module.inputs)
        )
        return (
            inputs,
            index == 0,
            tuple(name in last_read for name in module.outputs),
            code_of(module.stage),
            module.auxiliary is not None and code_of(module.auxiliary),
            tuple(look(p) for p in self.replica.parameters_of(index)),
            (module.plan.recompute, module.reads),
            0 if self._last is None else self._last.given,
        )

    def _run(self, timeline: Timeline, module: LocalModule, values: dict[str, object], batch: Batch) -> _Seen:
        """Run a module's part of the step."""
        replica, index = self.replica, module.plan.index
        self._fill(timeline, module)
        given = [weakref.ref(v.untyped_storage()) for v in values.values() if isinstance(v, Tensor)]
        first, start = len(timeline.events), timeline.live
        timeline.enter(index, "forward")
        with self._autocast():
            logits, loss = replica._step(module, values, batch)
        if not loss.requires_grad:
            loss = loss.detach().requires_grad_()
        self._release(timeline)
        self._held = LocalOutput(batch.name, loss, logits)
        timeline.enter(index, "backward")
        loss.backward()
        old = {storage._cdata for ref in given if (storage := ref()) is not None}
        outputs = [_handed(values.get(name), old) for name in module.outputs]
        given_back = bytes_of(tree_leaves(self._held))
        return _Seen(index, tuple(timeline.events[first:]), start, timeline.live, outputs, given_back)

    def _release(self, timeline: Timeline) -> None:
        """Release the last module's logits and loss, as a training loop does once it has those of the next."""
        before, self._held = timeline.live, None
        if self._last is not None:
            self._last.held = before - timeline.live

    def _fill(self, timeline: Timeline, module: LocalModule) -> None:
        """Replace everything that a module runs with by fakes, whose bytes count already."""
        owners = []
        for owner in _owners(module, self.replica.criterion):
            if id(owner) not in self._filled:
                self._filled.add(id(owner))
                owners.append(owner)
        originals = [(owner, dict(owner._parameters)) for owner in owners]
        with _disable_current_modes(), self.mode:
            fakes = fill(owners)
        counted = timeline.live
        timeline.track(fakes)
        timeline.live = counted
        for owner, before in originals:
            self._stand_ins |= {id(p): owner._parameters[name] for name, p in before.items() if p is not None}  # type: ignore[misc]

    def _skip(self, timeline: Timeline, module: LocalModule, values: dict[str, object], seen: _Seen) -> None:
        """Repeat the memory events of an equal module."""
        index, replica = module.plan.index, self.replica
        shift = timeline.live - seen.start
        timeline.events += [
            Event(e.live + shift, e.operator, index, e.phase, "" if e.operator else e.place, e.shape)
            for e in seen.events
        ]
        self._release(timeline)
        with timeline.paused():
            self._held = torch.empty(seen.held, dtype=torch.uint8, device="cpu")
            for name in [name for name in values if replica._last_read[name] <= index]:
                del values[name]
            for name, output in zip(module.outputs, seen.outputs, strict=True):
                if name in replica._last_read:
                    assert output is not None  # else the form would not be among those seen
                    values[name] = output.make()
        timeline.live, self._last = seen.end + shift, seen
        pairs = zip(replica.parameters_of(index), replica.parameters_of(seen.index), strict=True)
        self._stand_ins |= {id(own): other for own, other in pairs if own is not other}


@dataclass(frozen=True, slots=True)
class _Handed:
    """A value that later modules read: an object, or the form of a tensor."""

    value: object
    """The object; None for tensors."""
    shape: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def make(self) -> object:
        """Return the object, or a tensor of the form."""
        if self.value is not None or not self.stride:
            return self.value
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="cpu")


def _handed(value: object, old: set[int]) -> _Handed | None:
    """Describe a value; None for views of older tensors, or of a part of a storage, which cannot be made again."""
    if not isinstance(value, Tensor):
        return _Handed(value)
    storage = value.untyped_storage()
    span = 1 + sum((size - 1) * step for size, step in zip(value.shape, value.stride(), strict=True))
    if storage._cdata in old or not value.ndim or storage.nbytes() != span * value.element_size():
        return None
    return _Handed(None, tuple(value.shape), value.stride(), value.dtype)


def _owners(module: LocalModule, criterion: object) -> Iterator[nn.Module]:
    """Yield the modules whose parameters and buffers a local module runs with."""
    stage = module.stage
    for node in stage.graph.nodes:
        path = str(node.target)
        if node.op == "call_module":
            yield from stage.get_submodule(path).modules()
        elif node.op == "get_attr":
            yield stage.get_submodule(path.rpartition(".")[0])
    for part in (module.auxiliary, criterion):
        if isinstance(part, nn.Module):
            yield from part.modules()


def look(value: object) -> Hashable:
    """Return the form of a tensor, or another value as it is."""
    if isinstance(value, Tensor):
        return (tuple(value.shape), value.stride(), value.dtype, value.requires_grad)
    return value if isinstance(value, _PLAIN) else repr(value)


def code_of(module: nn.Module) -> Hashable:
    """Return what a module runs, without names: graphs by node, others by class, settings, tensors and submodules."""
    if isinstance(module, fx.GraphModule):
        return _graph(module)
    settings = tuple(
        (key, value)
        for key, value in sorted(module.__dict__.items())
        if key[0] != "_" and (isinstance(value, _PLAIN) or (isinstance(value, tuple) and _is_plain(value)))
    )
    tensors = tuple((key, look(value)) for key, value in (*module._parameters.items(), *module._buffers.items()))
    children = tuple((name, code_of(child)) for name, child in module._modules.items() if child is not None)
    return (type(module), settings, tensors, children)


def _graph(module: fx.GraphModule) -> Hashable:
    index = {node: i for i, node in enumerate(module.graph.nodes)}
    return tuple(
        (node.op, _target(module, node), _arguments(node.args, index), _arguments(node.kwargs, index))
        for node in module.graph.nodes
    )


def _target(module: fx.GraphModule, node: fx.Node) -> Hashable:
    if node.op == "call_module":
        return code_of(module.get_submodule(str(node.target)))
    if node.op == "get_attr":
        value: Any = module
        for name in str(node.target).split("."):
            value = getattr(value, name)
        return code_of(value) if isinstance(value, nn.Module) else look(value)
    return "" if node.op in ("placeholder", "output") else node.target


def _arguments(value: object, index: Mapping[fx.Node, int]) -> Hashable:
    if isinstance(value, fx.Node):
        return ("node", index[value])
    if isinstance(value, (tuple, list)):
        return tuple(_arguments(item, index) for item in value)
    if isinstance(value, Mapping):
        return tuple((key, _arguments(item, index)) for key, item in value.items())
    if isinstance(value, slice):
        return ("slice", *(_arguments(item, index) for item in (value.start, value.stop, value.step)))
    return look(value)


def _is_plain(values: tuple[object, ...]) -> bool:
    return all(isinstance(value, _PLAIN) for value in values)
