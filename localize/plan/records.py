"""The records that a plan is made of: local modules, their auxiliary networks and losses. No tensors in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Recompute = Literal["layers", "blocks", "norms"]
"""What is computed anew in the backward pass; see :attr:`LocalModulePlan.recompute`."""


@dataclass(frozen=True, slots=True)
class AuxiliaryBlock:
    """One hidden layer of an auxiliary network: a layer's architecture behind another input, or a plain block."""

    source: int | None
    """Index of the local layer whose architecture it copies; None for a plain block."""
    in_channels: int
    out_channels: int
    stride: int
    """Downsampling it performs: 1, 2, or a higher power of two."""
    projection: bool
    """Whether its shortcut has a projection (1x1 convolution + norm)."""
    adapter: str | None
    """What stands in front of an unchanged copy where the copy itself could not be made to fit; None where it could."""
    kind: str = "copy"
    """``"copy"``; ``"leap"``, a copy that follows its layer, ``"twin"``, one beside another that does, or ``"free"``,
    one without such; or what a plain block (with norm and ReLU) is: ``"conv1x1"``, ``"conv3x3"`` or ``"linear"``."""


@dataclass(frozen=True, slots=True)
class LossTerm:
    """A further term of a local loss, with the network it is computed by."""

    name: str
    weight: float
    params: int
    macs: int
    network: str
    """Its layers in words."""


@dataclass(frozen=True, slots=True)
class Auxiliary:
    """The auxiliary network of a local module: hidden layers, then a head."""

    selected: tuple[int, ...]
    """Indices of the layers it copies, in order; empty where its hidden layers are plain blocks."""
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
    """Where a cut is several tensors wide: the adapters through which it reads tensors beside the newest, in words."""
    weight: float = 1.0
    """Of the criterion in the local loss."""
    terms: tuple[LossTerm, ...] = ()
    """Further terms of the local loss. Their networks are counted in ``params`` and ``macs``."""
    groups: tuple[tuple[tuple[int, int], ...], ...] = ()
    """Where the module's width is split: for each group the ranges of channels, first and one past the last, that are
    its own. Each group then has a network of this form and a loss; ``params`` and ``macs`` are of all of them."""


@dataclass(frozen=True, slots=True)
class Original:
    """The user's model, where the method trains another one that it made of it."""

    params: int
    """Parameter elements of its layers and classifier."""
    macs: int
    """Their multiply-accumulates at batch 1."""


@dataclass(frozen=True, slots=True)
class Cascade:
    """A second loss of a local module, whose gradient goes on into modules before it."""

    reaches: tuple[int, ...]
    """Indices of those modules, consecutive, up to the one before; none in the first module, where both losses are
    computed from one run."""
    independent: float
    """Weight of the loss that reaches this module alone."""
    cascaded: float
    """Weight of the loss that reaches all."""
    auxiliary: Auxiliary | None
    """The auxiliary network of the cascaded loss; None in the last module, whose output loss it is."""
    parameters: tuple[str, ...] = ()
    """Names of the primary network's parameters in those modules that the loss reaches: all that what it is computed
    from depends on. Filled in by the caller of a method's ``plan``."""


@dataclass(frozen=True, slots=True)
class LocalModulePlan:
    """One local module: consecutive local layers trained by one local loss."""

    index: int
    name: str
    layers: tuple[int, ...]
    """Indices of its local layers; none for a last module that holds the classifier alone."""
    auxiliary: Auxiliary | None
    """None for the last module, which is trained through the classifier."""
    parameters: tuple[str, ...]
    """Names of the primary network's parameters that this module's loss reaches."""
    note: str = ""
    """What the method had to do otherwise than asked, and why."""
    cascade: Cascade | None = None
    """Its second loss, where it has one that reaches earlier modules too."""
    recompute: tuple[Recompute, ...] = ()
    """Which activations the backward pass computes anew instead of keeping them; results are the same, bit for bit.
    ``"layers"``: those inside of local layers. ``"blocks"``: those inside of its auxiliary networks' blocks;
    ``"norms"``: of these only what norms and activation functions give, which costs no convolution."""

    @property
    def networks(self) -> tuple[Auxiliary, ...]:
        """Its auxiliary networks: of its own loss, and of the cascaded one."""
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
    """How a plan keeps to a memory budget: bytes of live tensors in a training step, as forecast."""

    size: int
    """The budget."""
    batch_size: int
    optimizer: str
    amp: str | None
    step: Literal["batch", "module"]
    """What the training loop must do: update all parameters at the end of the step, or those of each local module right
    after its backward, and free their gradients."""
    before: int
    """Peak of the plan as it was asked for."""
    peak: int
    """Peak of this plan."""
    choices: tuple[str, ...]
    """What was done, and what it costs, in words."""
