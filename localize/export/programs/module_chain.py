"""Local modules in inference as children of one module, so that what traces it says which of them it is in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import MappingKey, SequenceKey, tree_flatten_with_path, tree_leaves

from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.local_module import LocalModule
from localize.runtime.predictions import in_eval_mode
from passes.codegen.eval_mode import as_in_inference
from passes.codegen.generate import PRIMARY, returned

AUXILIARY = "auxiliary"
"""Name of a module's auxiliary networks, as in :class:`LocalModule`."""


def module_key(index: int) -> str:
    """Name of a local module among the children of :class:`LocalGraphModule`."""
    return f"module_{index}"


class _Stage(nn.Module):
    """A local module's layers, and its auxiliary networks, as in inference."""

    def __init__(self, module: LocalModule, *, auxiliary: bool) -> None:
        super().__init__()
        # Not registered: its layers have their names in the primary network already.
        self.__dict__["module"] = module
        if auxiliary and module.auxiliary is not None:
            self.add_module(AUXILIARY, module.auxiliary)

    def forward(self, *values: Any) -> tuple[tuple[Any, ...], Any]:
        """The module's outputs, and its prediction; None without auxiliary networks."""
        module: LocalModule = self.__dict__["module"]
        results = returned(module.outputs, module.infer(*values))
        if AUXILIARY not in self._modules:
            return results, None
        with as_in_inference(module):
            return results, module.logits(*results[: module.reads])


class ModuleChain(nn.Module):
    """A localized model's modules one behind the other, as in inference.

    Parameters and buffers have the names that they have in the :class:`LocalGraphModule`.

    Args:
        local: The localized model, which it shares all with.
        auxiliary: Whether auxiliary networks run too.
        kept: Which of the last module's values are given, in order; by default all.
    """

    def __init__(self, local: LocalGraphModule, *, auxiliary: bool, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.add_module(PRIMARY, local.primary)
        self.kept = kept
        self.__dict__["local_modules"] = local.local_modules
        for module in local.local_modules:
            self.add_module(module_key(module.plan.index), _Stage(module, auxiliary=auxiliary))

    def forward(self, x: Tensor) -> tuple[Any, ...]:
        """The predictions of local modules, then values of the primary network's output."""
        modules: Sequence[LocalModule] = self.__dict__["local_modules"]
        values: dict[str, Any] = {modules[0].inputs[0]: x}
        found: list[Any] = []
        for module in modules:
            stage = self.get_submodule(module_key(module.plan.index))
            results, logits = stage(*[values[name] for name in module.inputs])
            values.update(zip(module.outputs, results, strict=True))
            found += [] if logits is None else [logits]
        last = [values[name] for name in modules[-1].outputs[: modules[-1].reads]]
        return (*found, *(last if self.kept is None else [last[i] for i in self.kept]))


def chain_of(local: LocalGraphModule, x: Tensor, *, auxiliary: bool) -> ModuleChain | None:
    """The chain that gives what the primary network gives in eval mode; None where there is none.

    There is none where the forward pass branches on its mode, in a way that shows in the values that it gives for
    ``x``: local modules are what it does in train mode.
    """
    with in_eval_mode(local):
        wanted = tensors(local.primary(x))
        given = ModuleChain(local, auxiliary=False)(x)
    kept = [next((i for i, one in enumerate(given) if _same(one, value)), None) for value in wanted]
    if None in kept:
        return None
    return ModuleChain(local, auxiliary=auxiliary, kept=[i for i in kept if i is not None])


def _same(one: Any, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@contextmanager
def giving(model: nn.Module, form: Callable[[Any], Any]) -> Iterator[None]:
    """Inside, a model returns what ``form`` makes of what it returns."""
    hook = model.register_forward_hook(lambda module, args, result: form(result))
    try:
        yield
    finally:
        hook.remove()


def plainly(value: Any) -> Any:
    """The same values in containers that torch knows; what a dataclass or a mapping has None for is left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {key: plainly(item) for key, item in value.items() if item is not None}
    if isinstance(value, Mapping):
        return {str(key): plainly(item) for key, item in value.items() if item is not None}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(plainly(item) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(plainly(item) for item in value)
    return value


def tensors(value: Any) -> list[Tensor]:
    """The tensors in what a model returned, in order."""
    return [leaf for leaf in tree_leaves(plainly(value)) if isinstance(leaf, Tensor)]


def tensor_names(value: Any, base: str) -> list[str]:
    """A name for each tensor in what a model returned: keys and attributes by themselves, indices behind ``base``."""
    found = []
    for path, leaf in tree_flatten_with_path(plainly(value))[0]:
        if isinstance(leaf, Tensor):
            words = [str(k.idx) if isinstance(k, SequenceKey) else _key(k) for k in path]
            indexed = not path or isinstance(path[0], SequenceKey) or base != "output"
            found.append(".".join([base, *words] if indexed else words))
    return found


def _key(step: Any) -> str:
    return str(step.key) if isinstance(step, MappingKey) else str(getattr(step, "name", step))
