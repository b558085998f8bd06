"""Records that pass between stages: frozen, slotted, keyed by node name.

Terms: a *value* is what an fx node computes. A *segment* is the part of the graph between two consecutive values that
every path from input to output goes through. A *cut* is such a value, chosen as the border of two local layers. A
*call* is one invocation of a module whose inside was traced.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.fx.node import Argument

from passes.structure import Structure

Layout = Literal["NCHW", "NHWC", "NCDHW", "NLC", "NC", "other"]
"""Order of dimensions: images with channels first or last, volumes or clips, tokens, plain features, or unknown."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Shape (batch first), dtype and layout of a value.

    >>> spec = TensorSpec((2, 64, 8, 8), layout="NCHW")
    >>> spec.channels, spec.spatial, spec.bytes_per_sample
    (64, (8, 8), 16384)
    """

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    layout: Layout = "other"

    @property
    def channel_dim(self) -> int:
        """Index of the channel dimension."""
        return 1 if self.layout in ("NCHW", "NCDHW", "NC") or (self.layout == "other" and len(self.shape) > 1) else -1

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.shape[self.channel_dim]

    @property
    def spatial(self) -> tuple[int, ...]:
        """Height and width of images, depth before them for volumes; the number of tokens; empty for features."""
        if self.layout in ("NCHW", "NCDHW"):
            return self.shape[2:]
        if self.layout in ("NHWC", "NLC"):
            return self.shape[1:-1]
        return ()

    @property
    def bytes_per_sample(self) -> int:
        """Bytes that one sample of the value takes."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count * self.dtype.itemsize

    def __str__(self) -> str:
        return "x".join(str(size) for size in self.shape[1:]) or "scalar"


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a node at batch 1, counted at the level of ATen operators."""

    macs: int = 0
    """Multiply-accumulates of convolutions and linear layers."""
    mixing: bool = False
    """Whether the node mixes all channels: a convolution that is not depthwise, a linear layer, an attention."""
    depthwise: bool = False
    """Whether the node contains a depthwise convolution."""


@dataclass(frozen=True, slots=True)
class Call:
    """One invocation of a module whose inside was traced; ``first`` and ``last`` are node positions in the graph."""

    path: str
    type_name: str
    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    result: Argument
    first: int
    last: int
    parent: int
    """Index of the enclosing call in :attr:`Captured.calls`; -1 for the root."""

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the nodes among the call's arguments."""
        names: list[str] = []

        def note(node: fx.Node) -> fx.Node:
            names.append(node.name)
            return node

        fx.map_arg((self.args, self.kwargs), note)
        return tuple(names)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A submodule that stays one node because its forward could not be traced. It still runs its own code."""

    path: str
    source: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Captured:
    """The user's model as a graph of one forward pass in training; a leaf module is one node."""

    model: nn.Module
    graph: fx.Graph
    calls: tuple[Call, ...]
    """Calls of modules that were traced into, in the order in which they start."""
    scopes: Mapping[str, int]
    """Node name -> index of the innermost call that the node belongs to; -1 for the root's own forward."""
    sources: Mapping[str, str]
    """Node name -> source line of the user's code, ``file.py:12``."""
    constants: Mapping[str, torch.Tensor]
    """Tensors created in the forward itself, by the name under which the graph reads them."""
    in_place: Mapping[str, Callable[..., object]] = field(default_factory=dict)
    """Node name -> the function that the user's code calls there, where it changes in place what the graph copies."""
    opaque: tuple[Opaque, ...] = ()
    structure: Structure = Structure()  # noqa: RUF009 - frozen
    """Containers that the model returns in train mode; its slots are :attr:`result` and :attr:`heads`, in order."""
    primary: int = 0
    """Index of the primary output among the values that the graph's output node returns."""
    joint: bool = False
    """Whether all values that the model returns go into one loss, so that none of them is the output by itself."""
    nodes: tuple[fx.Node, ...] = field(init=False)
    """All nodes in execution order: first the input, last the output node."""
    by_name: Mapping[str, fx.Node] = field(init=False)
    """Node name -> node."""
    positions: Mapping[str, int] = field(init=False)
    """Node name -> index in :attr:`nodes`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.graph.nodes))
        object.__setattr__(self, "by_name", {node.name: node for node in self.nodes})
        object.__setattr__(self, "positions", {node.name: i for i, node in enumerate(self.nodes)})

    @property
    def input(self) -> str:
        """Name of the node that is the model's input."""
        return self.nodes[0].name

    @property
    def result(self) -> fx.Node:
        """The node of the primary output."""
        return self._returned[0]

    @property
    def heads(self) -> tuple[fx.Node, ...]:
        """Nodes of the further values that the model returns: auxiliary logits and the like."""
        return self._returned[1:]

    @property
    def _returned(self) -> tuple[fx.Node, ...]:
        return self.primary_first(self.nodes[-1].args[0])

    def primary_first(self, returned: Any) -> tuple[Any, ...]:
        """Return the values that the graph returns, the primary output first.

        Args:
            returned: What running the graph gave: a tuple where the output node names several values.
        """
        values = returned if isinstance(self.nodes[-1].args[0], tuple) else (returned,)
        return values[self.primary], *values[: self.primary], *values[self.primary + 1 :]

    def module(self, node: fx.Node) -> nn.Module | None:
        """Return the leaf module that a node calls; None for other nodes."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def attribute(self, path: str) -> Any:
        """Return the parameter, buffer or constant that a ``get_attr`` node with this target reads."""
        return self.constants[path] if path in self.constants else operator.attrgetter(path)(self.model)

    def feeding(self, names: Collection[str], among: Collection[str]) -> set[str]:
        """Return the nodes of ``among`` that the nodes ``names`` need, directly or through others of ``among``."""
        needed: set[str] = set()
        pending = [self.by_name[name] for name in names]
        while pending:
            for parent in pending.pop().all_input_nodes:
                if parent.name in among and parent.name not in needed:
                    needed.add(parent.name)
                    pending.append(parent)
        return needed

    def scope_path(self, name: str) -> str:
        """Return the path of the module in whose forward a node was recorded; empty for the root."""
        index = self.scopes[name]
        return "" if index < 0 else self.calls[index].path


@dataclass(frozen=True, slots=True)
class Shapes:
    """Shape and cost of every node, inferred on fake tensors."""

    specs: Mapping[str, TensorSpec | None]
    """Node name -> spec of its value; None where the value is not a tensor."""
    costs: Mapping[str, Cost]
    """Node name -> cost."""
    numbers: frozenset[str]
    """Names of nodes whose value contains no tensor: sizes and the like."""
    input: TensorSpec
    output: TensorSpec


@dataclass(frozen=True, slots=True)
class Layer:
    """A local layer: a minimal indivisible unit of the primary network."""

    index: int
    name: str
    params: int
    """Number of parameter elements."""
    macs: int
    """Multiply-accumulates of convolutions and linear layers at batch 1."""
    activation_bytes: int
    """Bytes of all values that the layer computes, for one sample."""
    input: TensorSpec
    """The newest tensor that the layer reads."""
    output: TensorSpec
    """The tensor that the layer's auxiliary network reads."""
    width: int = 1
    """Number of tensors that cross from the layer to what follows."""


RefusalKind = Literal[
    "start",
    "classifier",
    "wide",
    "no tensor",
    "block",
    "granularity",
    "not named",
    "tied",
    "depthwise",
    "unreadable",
    "unreached",
    "overwritten",
    "another",
]
"""Reasons for not cutting at a border.

``start`` and ``classifier``: no mixing operation before it, or none after it that is not the classifier's. ``wide`` and
``no tensor``: too much crosses it, or something that cannot be handed on. ``block`` and ``granularity``: it lies in a
building block that stays whole, by its kind or by the user's wish; ``not named``: the user named other borders.
``tied``: a parameter is used on both sides. ``depthwise``: it lies after a depthwise convolution, which belongs to the
mixing operation that follows. ``unreadable`` and ``unreached``: no auxiliary network could be trained there, or it
would miss a parameter. ``overwritten`` and ``another``: another border between the same two mixing operations is
better, since what crosses this one is overwritten in place, or for the reason given.
"""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a network is not cut at a border."""

    kind: RefusalKind
    reason: str
    """A clause to be read after "not cut here:"."""
    option: str = ""
    """The argument of ``localize()`` that lifts this reason, such as ``max_cut=2``; empty where none does.

    Another reason may then remain: a border that is no longer too wide may still not be the best one.
    """


@dataclass(frozen=True, slots=True)
class CutCandidate:
    """A border, which is a point between two operations, and the decision whether to cut the network there."""

    after: str
    """Name of the last node before the border."""
    before: str
    """Name of the first node after the border."""
    place: str
    """Node ``after`` in words: the leaf module it calls, or its own name and the module in whose forward it stands."""
    path: str
    """Path of that module; empty for the network's own forward."""
    next_place: str
    """Node ``before`` in words."""
    next_path: str
    """Path of the module that node ``before`` calls or stands in."""
    source: str | None
    """Source line of node ``after``, ``file.py:12``."""
    width: int
    """Number of tensors that cross the border."""
    layer: int | None = None
    """Index of the local layer that ends here; None where the network is not cut."""
    refusal: Refusal | None = None
    """The reason why the network is not cut here; None where it is cut."""

    def __str__(self) -> str:
        text = f"after {self.place} ({self.width} tensor{'s' if self.width > 1 else ''}): "
        if self.refusal is None:
            return f"{text}cut, layer {self.layer} ends here"
        option = f" ({self.refusal.option} lifts this)" if self.refusal.option else ""
        return f"{text}not cut: {self.refusal.reason}{option}"


@dataclass(frozen=True, slots=True)
class Partition:
    """Assignment of nodes to layers and classifier, and the values that pass between these."""

    layers: tuple[Layer, ...]
    nodes: tuple[tuple[str, ...], ...]
    """Node names of each layer, in execution order."""
    live: tuple[tuple[str, ...], ...]
    """``live[i]``: the tensors that cross from layer i to what follows; its auxiliary network reads the first."""
    entries: tuple[str, ...]
    """``entries[i]``: the newest tensor computed before layer i that the layer reads."""
    classifier: tuple[str, ...]
    """Node names of the classifier."""
    classifier_params: int
    classifier_macs: int
    shared: tuple[str, ...]
    """Names of nodes that do not depend on the input: each local module computes those it needs itself."""
    portable: frozenset[str]
    """Names of nodes that depend on the input's shape alone; their values may cross any border."""
    candidates: tuple[CutCandidate, ...] = ()
    """Every border of the network, in order: each is a cut, or has the reason why it is not."""

    @property
    def cuts(self) -> tuple[str, ...]:
        """``cuts[i]``: the tensor that leaves layer i and that its auxiliary network reads."""
        return tuple(names[0] for names in self.live)


@dataclass(frozen=True, slots=True)
class Network:
    """A captured and partitioned model with its shapes: the input of every learning rule."""

    captured: Captured
    shapes: Shapes
    partition: Partition

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The L local layers."""
        return self.partition.layers
