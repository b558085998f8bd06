"""Compiled regions: one compiled artefact for each distinct piece of a network, called in place of all alike pieces.

Nothing is wrapped and nothing is renamed: while a local module takes its step, the modules that are regions have
torch's own hook for compiled calls set, and afterwards they have not. Whatever cannot be compiled runs as it is, and a
warning says which region and why.
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

Backend = str | Callable[..., Any]

HOOK = "_compiled_call_impl"
"""Where ``nn.Module`` keeps what answers its calls, once ``Module.compile`` was called; never pickled or copied."""

MOST_SHAPES = 4
"""Input shapes that are compiled for, at most."""
PATIENCE = 16
"""Steps with another shape of the input until that is compiled for as well: an epoch's last batch is not worth it."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(eq=False)
class Artefacts:
    """Compiled code by what it is specialized on; copies of a network share it."""

    backend: Backend
    count: int = 0
    """How many graphs were compiled."""
    functions: dict[Hashable, Callable[..., Any] | str] = field(default_factory=dict)
    """A text says why there is no compiled code."""
    structures: dict[Hashable, int] = field(default_factory=dict)
    """Numbers of structures: shorter keys."""
    eager: dict[str, str] = field(default_factory=dict)
    """Regions that run uncompiled, and why."""

    def number(self, region: Region) -> int:
        """The same for regions of the same structure."""
        return self.structures.setdefault(structure(region), len(self.structures))

    def run(self, key: Hashable, region: Region, eager: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What the region gives, compiled if it can be."""
        function = self.functions.get(key)
        if isinstance(function, str):
            self.leave(region.name, function)
            return eager(*args, **kwargs)
        try:
            return self._call(key, region, args, kwargs)
        except _failures() as error:
            # Compiling runs nothing for real: buffers and generators are as they were. An error of the region's own
            # comes again here, as its own.
            result = eager(*args, **kwargs)
            why = self.functions[key] = f"it cannot be compiled: {_told(error)}"
            self.leave(region.name, why)
            return result

    def _call(self, key: Hashable, region: Region, args: Any, kwargs: Any) -> Any:
        function: Any = self.functions.get(key)
        if function is not None:
            try:
                return function(*args, *region.arguments(), **kwargs)
            except _failures() as error:
                if not _told(error).partition(":")[0].endswith("Warning"):
                    raise
        # Something is compiled: what torch warns of while it does is its own business, and to be no error either.
        function = self.functions[key] = function or self._function(region.code)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"torch(\.|$)")
            return function(*args, *region.arguments(), **kwargs)

    def leave(self, name: str, why: str) -> None:
        """Notes a region that runs uncompiled; warns once for each reason."""
        if name not in self.eager:
            if why not in self.eager.values():
                warnings.warn(f"{name} runs uncompiled: {why}", stacklevel=2)
            self.eager[name] = why

    def _function(self, code: Code) -> Callable[..., Any]:
        """A function of a region's inputs and arguments, with a code object of its own; compiled when it is called."""
        space = dict(code.names)
        # A file that lists its lines: torch 2.11 shares one code object among functions that have none.
        file = f"<region {zlib.crc32(code.source.encode()):08x}>"
        linecache.cache[file] = (len(code.source), None, code.source.splitlines(keepends=True), file)
        exec(compile(code.source, file, "exec"), space)
        made: Callable[..., Any] = space["forward"]
        return torch.compile(made, backend=self._compile, fullgraph=True, dynamic=False)

    def _compile(self, graph: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        from torch._dynamo.backends.registry import lookup_backend
        from torch._functorch import config

        self.count += 1
        backend: Callable[..., Any] = lookup_backend(self.backend) if isinstance(self.backend, str) else self.backend
        if self.backend == "inductor":
            # Random numbers as without compiling, so that dropout drops the same.
            backend = partial(backend, config_patches={"fallback_random": True})
        # The backward pass is compiled here too, where what goes wrong is seen.
        with config.patch(force_non_lazy_backward_lowering=True):
            made: Callable[..., Any] = backend(graph, inputs)
            return made


class CompiledRegions:
    """The regions of a network's local modules.

    Args:
        artefacts: Where compiled code is, and goes.
    """

    def __init__(self, artefacts: Artefacts) -> None:
        self.artefacts = artefacts
        self.regions: dict[LocalModule, list[_Dispatch]] = {}
        self._seen: dict[Hashable, int] = {}
        self._shapes: set[Hashable] = set()
        self._active = False

    def start(self, x: torch.Tensor) -> None:
        """Decides whether a step on this input runs compiled code: with the first shape, and with frequent ones."""
        shape = (tuple(x.shape), x.dtype, x.device)
        if shape not in self._shapes and len(self._shapes) < MOST_SHAPES:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            if not self._shapes or self._seen[shape] > PATIENCE:
                self._shapes.add(shape)
        self._active = shape in self._shapes

    @contextlib.contextmanager
    def installed(self, modules: Sequence[LocalModule]) -> Iterator[None]:
        """Calls of the modules' regions run compiled code inside, where gradients are computed in train mode."""
        if not (self._active and torch.is_grad_enabled() and all(m.training for m in modules)) or _watched():
            yield
            return
        answering = [dispatch for module in modules for dispatch in self._of(module)]
        # A module that its user has compiled stays as it is.
        free = [(d.region.module.__dict__, d) for d in answering if d.region.module.__dict__.get(HOOK) is None]
        for own, dispatch in free:
            own[HOOK] = dispatch
        try:
            yield
        finally:
            for own, _ in free:
                own.pop(HOOK, None)

    def count(self) -> tuple[int, int]:
        """Regions seen so far, and distinct structures among them."""
        found = [dispatch.number for several in self.regions.values() for dispatch in several]
        return len(found), len(set(found))

    def _of(self, module: LocalModule) -> list[_Dispatch]:
        if module not in self.regions:
            self.regions[module] = [_Dispatch(region, self.artefacts) for region in regions_of(module)]
        return self.regions[module]


class _Dispatch:
    """Answers a region's calls."""

    def __init__(self, region: Region, artefacts: Artefacts) -> None:
        self.region, self.artefacts = region, artefacts
        self.number = artefacts.number(region)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        eager = self.region.module._call_impl
        if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            # Activations are computed anew in the backward pass, or go elsewhere: both runs must be alike.
            return eager(*args, **kwargs)
        inputs = [_seen(value) for value in (*args, *kwargs.values())]
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


def _seen(value: Any) -> Hashable:
    """What compiled code is specialized on in an argument; None where it has no business with such a one."""
    if isinstance(value, torch.Tensor):
        return look(value) if type(value) in (torch.Tensor, nn.Parameter) and value.layout == torch.strided else None
    return (type(value), value) if value is None or isinstance(value, (bool, int, float, str)) else None


def _mode(args: Sequence[Any]) -> Hashable:
    """What compiled code is specialized on beside its arguments, and changes."""
    device = next((value.device.type for value in args if isinstance(value, torch.Tensor)), "cpu")
    cast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
    return (cast, torch.are_deterministic_algorithms_enabled())


def _watched() -> bool:
    """Whether something looks at every operation (a count of memory, fake tensors), or at every module's call."""
    return _get_current_dispatch_mode() is not None or nn.modules.module._has_any_global_hook()


def _failures() -> tuple[type[Exception], ...]:
    from torch._dynamo import exc

    return (exc.TorchDynamoException, exc.FailOnRecompileLimitHit)


def _told(error: BaseException) -> str:
    """What a compiler complains of, in one line."""
    cause = getattr(error, "inner_exception", None) or error.__cause__
    return first_line(error) if cause is None else f"{type(cause).__name__}: {first_line(cause)}"
