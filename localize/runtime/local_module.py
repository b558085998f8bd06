"""Local modules: generated code over the user's layers, with the auxiliary networks that train them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from localize.methods.networks.blocks import Recomputed
from localize.methods.networks.local_loss import Batch, supervise
from localize.plan.records import LocalModulePlan
from passes.codegen.eval_mode import for_inference
from passes.codegen.recompute import Buffer, buffers_of
from passes.common.parameters import hold


class LocalOutput(NamedTuple):
    """Result of one local module in one training step."""

    name: str
    """Name of the local module."""
    loss: torch.Tensor
    """Local loss, a scalar; its backward reaches this module's parameters and its auxiliary network's, and no other
    unless the plan says so (``cascade``)."""
    logits: Any
    """Prediction that the loss was computed from: (N, classes), or (N, classes, H, W). The last module's is what the
    model returns, if there is an ``output_criterion``."""


class LocalModule(nn.Module):
    """One local module: generated code over the user's layers, and the auxiliary network that trains them.

    The layers belong to ``LocalGraphModule.primary``; here they are only called, so every parameter has one name.

    Args:
        plan: The decisions on this module.
        stage: The generated code.
        auxiliary: The network that computes the local loss; None for the last module.
        inputs: Names of the values that it takes.
        outputs: Names of the values that it returns.
        reads: Number of the outputs, from the first on, that the local loss is computed from.
        cascaded: The auxiliary network of the cascaded loss, if there is one.
        recomputed: The same code layer by layer, if activations of layers are recomputed in the backward pass.
        overwrites: Those of the inputs that running the module changes in place.
    """

    stage: fx.GraphModule
    recomputed: Recomputed | None

    def __init__(
        self,
        plan: LocalModulePlan,
        stage: fx.GraphModule,
        auxiliary: nn.Module | None,
        inputs: Sequence[str],
        outputs: Sequence[str],
        reads: int = 1,
        cascaded: nn.Module | None = None,
        recomputed: Recomputed | None = None,
        overwrites: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        self.plan = plan
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.reads = reads
        self.auxiliary = auxiliary
        self.cascaded = cascaded
        self.overwrites = overwrites
        # Held, not registered: their submodules are the user's, and have their names in the primary network already.
        hold(self, stage=stage, recomputed=recomputed)
        self._buffers_read: tuple[Buffer, ...] | None = None

    @property
    def code(self) -> str:
        """The generated Python of this module."""
        return str(self.stage.code)

    def forward(self, *values: object) -> object:
        """Run the module's layers on detached values; return the values named in ``outputs``."""
        return self.attached(*[v.detach() if isinstance(v, torch.Tensor) else v for v in values])

    def attached(self, *values: object) -> object:
        """Run the module's layers on values with their graph: gradients pass into earlier modules."""
        return (self.recomputed or self.stage)(*values)

    def infer(self, *values: object) -> object:
        """Run the module's layers as in inference. They must be in eval mode."""
        return for_inference(self.stage)(*values)

    def running_statistics(self) -> tuple[Buffer, ...]:
        """Return the buffers that running the module's layers may change."""
        if self._buffers_read is None:
            self._buffers_read = buffers_of(self.stage)
        return self._buffers_read

    def logits(self, *cut: torch.Tensor) -> torch.Tensor:
        """Return the output of the auxiliary network; in the last module, that of the primary network."""
        if self.auxiliary is None:
            return cut[0]
        result: torch.Tensor = self.auxiliary(*cut)
        return result

    def supervise(
        self, cut: Sequence[torch.Tensor], batch: Batch, *, cascaded: bool = False
    ) -> tuple[object, torch.Tensor]:
        """Return prediction and local loss of a module that has auxiliary networks.

        Args:
            cut: The tensors that they read.
            batch: The batch.
            cascaded: Whether the loss is the one that reaches earlier modules.
        """
        network = self.cascaded if cascaded else self.auxiliary
        assert network is not None, f"{self.plan.name} has no such auxiliary network"
        return supervise(network, batch, *cut)

    def extra_repr(self) -> str:
        """Return name and layers, for ``print``."""
        return f"{self.plan.name}, layers={list(self.plan.layers)}"


def several(result: object) -> tuple[object, ...]:
    """Return a value, or a tuple of values, as a tuple."""
    return result if isinstance(result, tuple) else (result,)
