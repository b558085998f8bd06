"""The records that a plan is made of: local modules, their auxiliary networks and losses. No tensors in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["layers", "blocks", "norms"]
"""Activations that the backward pass computes again; see :attr:`LocalModulePlan.recompute`."""


@dataclass(frozen=True, slots=True)
class AuxiliaryBlock:
    """One hidden layer of an auxiliary network: a copy of a layer's architecture on another input, or a plain block."""

    source: int | None
    """Index of the local layer whose architecture it copies; None for a plain block."""
    in_channels: int
    out_channels: int
    stride: int
    """Factor by which the block lowers resolution: 1, 2, or a higher power of two."""
    projection: bool
    """Whether the block's shortcut has a projection (1x1 convolution + norm)."""
    adapter: str | None
    """Layers in front of an unchanged copy that could not be made to fit its input; None where none are needed."""
    kind: str = "copy"
    """``"copy"``; ``"leap"``, a copy that is pulled to its layer; ``"twin"``, a copy added to a pulled one; ``"free"``,
    a copy in front of the network that is not pulled; or the kind of a plain block (with norm and ReLU): ``"conv1x1"``,
    ``"conv3x3"`` or ``"linear"``."""


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A further term of a local loss, with the network that computes it."""

    name: str
    weight: float
    params: int
    macs: int
    network: str
    """Layers of the term's network in words."""


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The auxiliary network of a local module: hidden layers, then a head."""

    selected: tuple[int, ...]
    """Indices of the copied layers, in order; empty where hidden layers are plain blocks."""
    depth: int
    """Trainable layers, the head included (d in the paper)."""
    params: int
    """Number of parameter elements, the head's included."""
    macs: int
    """Convolution and linear multiply-accumulates at batch 1, the head's included."""
    blocks: tuple[AuxiliaryBlock, ...]
    head: str
    """The head's layers in words, such as ``pool > batch_norm > linear(64, 10)``."""
    merged: tuple[str, ...] = ()
    """Adapters, in words, through which the network reads further tensors of a cut that is several tensors wide."""
    weight: float = 1.0
    """Weight of the criterion in the local loss."""
    terms: tuple[LossTerm, ...] = ()
    """Further terms of the local loss. Their networks are counted in ``params`` and ``macs``."""
    groups: tuple[tuple[tuple[int, int], ...], ...] = ()
    """For a module whose width is split: the channels of each group, as ranges of first and one past the last. Each
    group has a network of this form and a loss; ``params`` and ``macs`` are the sums over groups."""


@dataclass(frozen=True, slots=True)
class Original:
    """Costs of the user's model, where the method trains another network made of it."""

    params: int
    """Parameter elements of the model's layers and classifier."""
    macs: int
    """Multiply-accumulates of the model's layers and classifier at batch 1."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A second loss of a local module, whose gradient goes on into modules before it."""

    reaches: tuple[int, ...]
    """Indices of the earlier modules that the loss reaches, consecutive, up to the one before; empty in the first
    module, where both losses are computed from one run."""
    independent: float
    """Weight of the loss that reaches this module alone."""
    cascaded: float
    """Weight of the loss that reaches earlier modules too."""
    auxiliary: Auxiliary | None
    """The auxiliary network of the cascaded loss; None in the last module, whose output loss it is."""
    parameters: tuple[str, ...] = ()
    """Names of the primary network's parameters in earlier modules that the loss reaches. In a wide cut the
    tensors that the loss is computed from may not depend on all of a module's parameters. Filled in by the compiler."""


@dataclass(frozen=True, slots=True)
class LocalModulePlan:
    """One local module: consecutive local layers trained by one local loss."""

    index: int
    name: str
    layers: tuple[int, ...]
    """Indices of the module's local layers; empty for a last module that holds the classifier alone."""
    auxiliary: Auxiliary | None = None
    """The auxiliary network; None for the last module, which is trained by the output loss."""
    parameters: tuple[str, ...] = ()
    """Names of the primary network's parameters that this module's loss reaches. Filled in by the compiler."""
    note: str = ""
    """Deviations of the method from what was asked for, and why; empty if there are none."""
    cascade: Cascade | None = None
    """The module's second loss, which reaches earlier modules too; None if there is none."""
    recompute: tuple[Recompute, ...] = ()
    """Activations that the backward pass computes again instead of keeping them; results are the same, bit for bit.
    ``"layers"``: those inside local layers. ``"blocks"``: those inside the blocks of auxiliary networks. ``"norms"``:
    only the outputs of norms and activation functions in these blocks, which costs no convolution."""

    @property
    def networks(self) -> tuple[Auxiliary, ...]:
        """Auxiliary networks of the module's own loss and of the cascaded one."""
        cascaded = self.cascade.auxiliary if self.cascade else None
        return tuple(network for network in (self.auxiliary, cascaded) if network)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleTotals:
    """Sums over the layers and auxiliary networks of one local module; MACs and bytes are those of one sample."""

    params: int
    """Parameter elements of its layers, and of the classifier for the last module."""
    macs: int
    """Multiply-accumulates of its layers, and of the classifier for the last module."""
    activation_bytes: int
    """Bytes of all values that its layers compute."""
    auxiliary_params: int
    """Parameter elements of its auxiliary networks."""
    auxiliary_macs: int
    """Multiply-accumulates of its auxiliary networks."""


@dataclass(frozen=True, slots=True)
class Budgeted:
    """Changes that keep a plan within a memory budget, in bytes of live tensors in a forecast training step."""

    size: int
    """The budget in bytes."""
    batch_size: int
    optimizer: str
    amp: str | None
    step: Literal["batch", "module"]
    """Update that the training loop must do: of all parameters at the end of the step (``"batch"``), or of each local
    module right after its backward, freeing its gradients (``"module"``)."""
    before: int
    """Peak, in bytes, of the plan as it was asked for."""
    peak: int
    """Peak, in bytes, of this plan."""
    choices: tuple[str, ...]
    """Changes and their costs in words."""
