"""Leaf policy: the modules that the tracer does not look into.

A leaf that holds several weighted layers may hide cuts. So such a module is traced into whatever a library says of it,
and closed again if tracing it fails.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from passes.common.layer_kinds import DENSE, NORMS, WEIGHTED
from passes.layers.grouped import Gathered

_ATOMS = (*DENSE, *NORMS, nn.Embedding, nn.MultiheadAttention, Gathered)


@dataclass(frozen=True, slots=True)
class LeafPolicy:
    """Names what the tracer must not look into.

    Layers of torch.nn, and modules without parameters and children (activations, stochastic depth, custom pooling), are
    always leaves: nothing inside them could be cut, and as leaves they keep their train/eval behaviour. A larger module
    of torch.nn, such as a transformer's encoder layer, is traced into if it holds several weighted layers.

    >>> LeafPolicy().is_leaf(nn.Conv2d(3, 8, 3), "stem"), LeafPolicy().is_leaf(nn.Sequential(nn.ReLU()), "head")
    (True, False)
    """

    classes: frozenset[type[nn.Module]] = frozenset()
    """Classes of modules that stay one node."""
    functions: tuple[Callable[..., object], ...] = ()
    """Functions that stay one node."""
    paths: frozenset[str] = frozenset()
    """Names of modules that stay one node."""
    doubtful: frozenset[type[nn.Module]] = frozenset()
    """Classes that may not be traceable. A module of them is traced into if it holds two or more weighted layers; all
    modules of a class are closed as soon as one fails."""

    def is_leaf(self, module: nn.Module, path: str, several: bool = False) -> bool:
        """Return whether a module stays one node.

        Args:
            module: The module.
            path: Its name in the model.
            several: Whether the module is given containers of tensors. A module without parameters is then traced into:
                it may return such containers (the FPN's ``LastLevelMaxPool``), and one node is one value.
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
    """Return the number of weighted layers in ``module``, itself included; an attention counts as one."""
    if isinstance(module, WEIGHTED):
        return 1
    return sum(weighted_layers(child) for child in module.children())
