"""Chain the local modules in eval mode as children of one module, so that a trace tells which one each call is in.

``torch.export`` records for each operation the modules in whose forward it ran, even if they are reached by another way
than through the root's children. So the chain registers modules that only call the code of the local modules and hold
nothing: each operation names its local module, and parameters keep their names of the ``LocalGraphModule``.
"""

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
from passes.common.parameters import hold

AUXILIARY = "auxiliary"
"""Name of the auxiliary networks of a module, as in :class:`LocalModule`."""


def module_key(index: int) -> str:
    """Return the name of a local module among the children of :class:`LocalGraphModule`.

    >>> module_key(3)
    'module_3'
    """
    return f"module_{index}"


class _Stage(nn.Module):
    """The layers of a local module and its auxiliary networks, in eval mode."""

    module: LocalModule

    def __init__(self, module: LocalModule, *, auxiliary: bool) -> None:
        super().__init__()
        # Kept from torch: the layers are registered as children of the primary network already.
        hold(self, module=module)
        if auxiliary and module.auxiliary is not None:
            self.add_module(AUXILIARY, module.auxiliary)

    def forward(self, *values: object) -> tuple[tuple[object, ...], object]:
        """Return the outputs of the module, and its prediction; None without auxiliary networks."""
        module = self.module
        results = returned(module.outputs, module.infer(*values))
        if AUXILIARY not in self._modules:
            return results, None
        with as_in_inference(module):
            return results, module.logits(*results[: module.reads])


class ModuleChain(nn.Module):
    """The local modules of a localized model one after the other, in eval mode.

    Parameters and buffers are shared with the :class:`LocalGraphModule`, and have the same names.

    Args:
        local: The localized model.
        auxiliary: Whether the auxiliary networks run too.
        kept: Positions of the outputs of the last module that are returned, in order; None for all.
    """

    local_modules: Sequence[LocalModule]

    def __init__(self, local: LocalGraphModule, *, auxiliary: bool, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.add_module(PRIMARY, local.primary)
        self.kept = kept
        hold(self, local_modules=local.local_modules)
        for module in local.local_modules:
            self.add_module(module_key(module.plan.index), _Stage(module, auxiliary=auxiliary))

    def forward(self, x: Tensor) -> tuple[object, ...]:
        """Return the predictions of the local modules, then the tensors of the primary network's output."""
        modules = self.local_modules
        values: dict[str, object] = {modules[0].inputs[0]: x}
        predictions: list[object] = []
        for module in modules:
            stage = self.get_submodule(module_key(module.plan.index))
            results, logits = stage(*[values[name] for name in module.inputs])
            values.update(zip(module.outputs, results, strict=True))
            predictions += [] if logits is None else [logits]
        last = [values[name] for name in modules[-1].outputs[: modules[-1].reads]]
        return (*predictions, *(last if self.kept is None else [last[i] for i in self.kept]))


def chain_of(local: LocalGraphModule, x: Tensor, *, auxiliary: bool) -> ModuleChain | None:
    """Return a chain with the same outputs as the primary network in eval mode; None if there is none.

    There is none if the model's forward pass branches on its mode and the outputs for ``x`` show it: local modules hold
    what the forward pass does in train mode.

    Args:
        local: The localized model.
        x: A batch of inputs, compared by value.
        auxiliary: Whether the auxiliary networks run too.
    """
    with in_eval_mode(local):
        wanted = tensors(local.primary(x))
        given = ModuleChain(local, auxiliary=False)(x)
    # Outputs of a forward pass may be some of the values that leave the last module, in another order.
    kept = [next((i for i, one in enumerate(given) if _same(one, value)), None) for value in wanted]
    if None in kept:
        return None
    return ModuleChain(local, auxiliary=auxiliary, kept=[i for i in kept if i is not None])


def _same(one: object, other: Tensor) -> bool:
    if not isinstance(one, Tensor) or one.shape != other.shape or one.dtype != other.dtype:
        return False
    return torch.equal(one, other) or torch.allclose(one, other, rtol=1e-3, atol=1e-4)


@contextmanager
def returning(model: nn.Module, form: Callable[[Any], Any]) -> Iterator[None]:
    """Apply ``form`` to what a model returns, for the time of the context."""
    hook = model.register_forward_hook(lambda module, args, result: form(result))
    try:
        yield
    finally:
        hook.remove()


def plainly(value: Any) -> Any:
    """Rebuild a value in containers that torch.export knows; dataclasses become dicts, and their None are left out."""
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


def tensors(value: object) -> list[Tensor]:
    """Return the tensors in what a model returned, in order."""
    return [leaf for leaf in tree_leaves(plainly(value)) if isinstance(leaf, Tensor)]


def tensor_names(value: object, base: str) -> list[str]:
    """Name each tensor in what a model returned by its key or attribute; ``base`` comes before an index.

    >>> tensor_names((torch.zeros(1), torch.zeros(1)), "output")
    ['output.0', 'output.1']
    """
    names = []
    for path, leaf in tree_flatten_with_path(plainly(value))[0]:
        if isinstance(leaf, Tensor):
            words = [str(k.idx) if isinstance(k, SequenceKey) else _key(k) for k in path]
            indexed = not path or isinstance(path[0], SequenceKey) or base != "output"
            names.append(".".join([base, *words] if indexed else words))
    return names


def _key(step: object) -> str:
    return str(step.key) if isinstance(step, MappingKey) else str(getattr(step, "name", step))
