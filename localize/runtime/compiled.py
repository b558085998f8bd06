"""Compiled regions: one compiled artefact for each distinct piece of a network, called in place of all equal pieces.

No module is wrapped or renamed: while a local module takes its step, torch's own hook for compiled calls is set on the
modules that are regions, and afterwards it is removed. A region that cannot be compiled runs uncompiled, and a warning
names it and the reason. Because the hook is set for the time of a step alone, names, ``state_dict``, inference, copies
and recomputed layers (whose second run must save what the first one saved) never see it.
"""

from __future__ import annotations

import contextlib
import linecache
import warnings
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from localize.runtime.local_module import LocalModule
from localize.runtime.regions import Code, Region, look, regions_of, structure
from passes.errors import first_line

Backend = str | Callable[..., object]
Args = tuple[object, ...]
Named = dict[str, object]

HOOK = "_compiled_call_impl"
"""Attribute of ``nn.Module`` that answers its calls after ``Module.compile``; never pickled or copied."""

MOST_SHAPES = 4
"""Largest number of input shapes that are compiled for."""
PATIENCE = 16
"""Steps on a further input shape before that is compiled for, too: an epoch's last batch is not worth it."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(eq=False)
class Artefacts:
    """Compiled code by the key that it is specialized on; copies of a network share it."""

    backend: Backend
    fault: str | None = None
    """Reason why the network cannot be trained with channels last on a CPU
    (:func:`localize.runtime.layout.channels_last_fault`); None if it can."""
    count: int = 0
    """Number of graphs that were compiled."""
    functions: dict[Hashable, Callable[..., object] | str] = field(default_factory=dict)
    """Compiled functions; a text in the place of one says why there is none."""
    structures: dict[Hashable, int] = field(default_factory=dict)
    """Numbers that stand for structures in keys."""
    eager: dict[str, str] = field(default_factory=dict)
    """Reasons by the names of regions that run uncompiled."""

    def number(self, region: Region) -> int:
        """Return a number that is equal for regions of the same structure."""
        return self.structures.setdefault(structure(region), len(self.structures))

    def run(self, key: Hashable, region: Region, eager: Callable[..., object], args: Args, kwargs: Named) -> object:
        """Run a region, compiled if it can be."""
        function = self.functions.get(key)
        if isinstance(function, str):
            self.leave(region.name, function)
            return eager(*args, **kwargs)
        try:
            return self._call(key, region, args, kwargs)
        except _failures() as error:
            # Compiling computes on no real tensors: buffers and generators are unchanged, so the region can run
            # now. An error of its own is raised by this run, in its own form.
            result = eager(*args, **kwargs)
            why = self.functions[key] = f"it cannot be compiled: {_complaint(error)}"
            self.leave(region.name, why)
            return result

    def _call(self, key: Hashable, region: Region, args: Args, kwargs: Named) -> object:
        function = self.functions.get(key)
        assert not isinstance(function, str)
        if function is not None:
            try:
                return function(*args, *region.arguments(), **kwargs)
            except _failures() as error:
                if not _complaint(error).partition(":")[0].endswith("Warning"):
                    raise
        # Torch warns about itself while it compiles; that must not become an error where warnings are errors.
        function = self.functions[key] = function or self._function(region.code)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch(\.|$)")
            return function(*args, *region.arguments(), **kwargs)

    def leave(self, name: str, why: str) -> None:
        """Record a region that runs uncompiled; warn once for each reason."""
        if name not in self.eager:
            if why not in self.eager.values():
                warnings.warn(f"{name} runs uncompiled: {why}", stacklevel=2)
            self.eager[name] = why

    def _function(self, code: Code) -> Callable[..., object]:
        """Return a function of a region's inputs and arguments, compiled when called, with a code object of its own."""
        space: dict[str, Any] = dict(code.names)
        # A file name of its own: torch 2.11 shares one code object among functions whose lines it cannot find.
        file = f"<region {zlib.crc32(code.source.encode()):08x}>"
        linecache.cache[file] = (len(code.source), None, code.source.splitlines(keepends=True), file)
        exec(compile(code.source, file, "exec"), space)
        function: Callable[..., object] = space["forward"]
        return torch.compile(function, backend=self._compile, fullgraph=True, dynamic=False)

    def _compile(self, graph: fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        from torch._dynamo.backends.registry import lookup_backend
        from torch._functorch import config

        self.count += 1
        backend: Callable[..., object] = lookup_backend(self.backend) if isinstance(self.backend, str) else self.backend
        if self.backend == "inductor":
            # The same random numbers as without compiling, so that dropout draws the same masks.
            patches = {"fallback_random": True}
            if self.fault is not None and all(tensor.device.type == "cpu" for tensor in inputs):
                # Inductor lays convolutions out with channels last on its own account.
                patches["layout_optimization"] = False
            backend = partial(backend, config_patches=patches)
        # Compile the backward pass now, too, so that its failures are caught where the region can still run
        # uncompiled. Compiled graphs donate buffers, which rules out retain_graph; that switch is global, so it stays.
        with config.patch(force_non_lazy_backward_lowering=True):
            compiled = backend(graph, inputs)
            assert callable(compiled)
            return compiled


class CompiledRegions:
    """The regions of a network's local modules.

    Args:
        artefacts: Compiled code so far; new code is added to it.
    """

    def __init__(self, artefacts: Artefacts) -> None:
        self.artefacts = artefacts
        self.regions: dict[LocalModule, list[_Dispatch]] = {}
        self._steps: dict[Hashable, int] = {}
        self._shapes: set[Hashable] = set()
        self._active = False

    def start(self, x: torch.Tensor) -> None:
        """Decide whether a step on input ``x`` runs compiled code: for its first shape, and for frequent ones."""
        shape = (tuple(x.shape), x.dtype, x.device)
        if shape not in self._shapes and len(self._shapes) < MOST_SHAPES:
            self._steps[shape] = self._steps.get(shape, 0) + 1
            if not self._shapes or self._steps[shape] > PATIENCE:
                self._shapes.add(shape)
        self._active = shape in self._shapes

    @contextlib.contextmanager
    def installed(self, modules: Sequence[LocalModule]) -> Iterator[None]:
        """Answer calls of the modules' regions by compiled code inside, if gradients are computed in train mode."""
        if not (self._active and torch.is_grad_enabled() and all(m.training for m in modules)) or _watched():
            yield
            return
        answering = [dispatch for module in modules for dispatch in self._of(module)]
        # A module that the user has compiled keeps the user's compiled code.
        free = [(d.region.module.__dict__, d) for d in answering if d.region.module.__dict__.get(HOOK) is None]
        for own, dispatch in free:
            own[HOOK] = dispatch
        try:
            yield
        finally:
            for own, _ in free:
                own.pop(HOOK, None)

    def count(self) -> tuple[int, int]:
        """Return the numbers of regions so far, and of distinct structures among them."""
        numbers = [dispatch.number for several in self.regions.values() for dispatch in several]
        return len(numbers), len(set(numbers))

    def _of(self, module: LocalModule) -> list[_Dispatch]:
        if module not in self.regions:
            self.regions[module] = [_Dispatch(region, self.artefacts) for region in regions_of(module)]
        return self.regions[module]


class _Dispatch:
    """Answers a region's calls."""

    def __init__(self, region: Region, artefacts: Artefacts) -> None:
        self.region, self.artefacts = region, artefacts
        self.number = artefacts.number(region)

    def __call__(self, *args: object, **kwargs: object) -> object:
        eager = self.region.module._call_impl
        if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            # Activations are recomputed in the backward pass, or saved elsewhere: both runs must be equal.
            return eager(*args, **kwargs)
        inputs = [_specialization(value) for value in (*args, *kwargs.values())]
        if None in inputs:
            return eager(*args, **kwargs)
        hooked = next((m for m in self.region.called() if self._is_hooked(m)), None)
        if hooked is not None:
            self.artefacts.leave(self.region.name, f"a {type(hooked).__name__} has hooks, or a call of its own")
            return eager(*args, **kwargs)
        return self.artefacts.run((self.number, _mode(args), *inputs, *kwargs), self.region, eager, args, kwargs)

    def _is_hooked(self, module: nn.Module) -> bool:
        own = module.__dict__
        return any(own[name] for name in _HOOKS) or (own.get(HOOK) is not None and module is not self.region.module)


def _specialization(value: object) -> Hashable:
    """Return what compiled code is specialized on in an argument; None for one that it does not support."""
    if isinstance(value, torch.Tensor):
        return look(value) if type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided else None
    return (type(value), value) if value is None or isinstance(value, (bool, int, float, str)) else None


def _mode(args: Sequence[object]) -> Hashable:
    """Return the settings that compiled code is specialized on, apart from its arguments."""
    device = next((value.device.type for value in args if isinstance(value, torch.Tensor)), "cpu")
    cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (cast, torch.are_deterministic_algorithms_enabled())


def _watched() -> bool:
    """Return whether a mode observes every operation (a memory count, fake tensors), or a hook every module's call."""
    return _get_current_dispatch_mode() is not None or nn.modules.module._has_any_global_hook()


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)


def _complaint(error: BaseException) -> str:
    """Return the complaint of a compiler in one line."""
    cause = getattr(error, "inner_exception", None) or error.__cause__
    return first_line(error) if cause is None else f"{type(cause).__name__}: {first_line(cause)}"
