"""Which modules the tracer looks into."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from passes.common.layer_kinds import DENSE, NORMS, WEIGHTED
from passes.layers.grouped import Gathered

_ATOMS = (*DENSE, *NORMS, nn.Embedding, nn.MultiheadAttention, Gathered)


@dataclass(frozen=True, slots=True)
class LeafPolicy:
    """What the tracer must not look into.

    Layers of torch.nn, and modules that hold neither parameters nor children (activations, stochastic depth, custom
    pooling), are always leaves: nothing inside them could be cut, and as leaves they keep their train/eval behaviour.
    Whatever else torch.nn has, a transformer's encoder layer say, is opened where it holds several weighted layers.
    """

    classes: frozenset[type[nn.Module]] = frozenset()
    """Stay whole."""
    functions: tuple[Callable[..., Any], ...] = ()
    """Functions that stay one node."""
    paths: frozenset[str] = frozenset()
    """Modules, by name, that stay whole."""
    doubtful: frozenset[type[nn.Module]] = frozenset()
    """Classes that may not be traceable: looked into where they hold two or more weighted layers, and all of a class
    closed as soon as one of it fails."""

    def is_leaf(self, module: nn.Module, path: str, several: bool = False) -> bool:
        """Whether ``module``, reached at ``path``, stays one node.

        Args:
            module: The module.
            path: Its name in the model.
            several: Whether it is given containers of tensors. If it computes on them without parameters, it is looked
                into: it may return such containers, and one node is one value.
        """
        if path in self.paths or type(module) in self.classes:
            return True
        if isinstance(module, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        if isinstance(module, _ATOMS):
            return True
        if type(module) in self.doubtful or type(module).__module__.startswith(("torch.nn.", "torch.ao.nn.")):
            return weighted_layers(module) < 2
        bare = next(module.children(), None) is None
        return bare and not several and not module._parameters and not module._buffers


def weighted_layers(module: nn.Module) -> int:
    """Convolutions, linear layers and attentions in ``module``, itself included; those inside an attention are its."""
    if isinstance(module, WEIGHTED):
        return 1
    return sum(weighted_layers(child) for child in module.children())
