"""The group of neurons that each channel belongs to, inside local modules whose width is split in groups.

Inside a module a channel is *open* if it is computed from the module's input without dense weights; otherwise it is
owned by the group whose weights computed it. The first convolutions and linear layers that read open channels hand
their output channels out to the groups, in equal blocks. Everything after them may read open channels and those of its
own group. A layer that reads channels of several groups is to be split (:class:`Change`); what cannot be split is
refused. What comes before the first dense layers of a module (a norm, as in networks with pre-activation) works on all
channels, and all groups' losses train it.

To see where channels go, the graph is run once for each group with NaN in the channels that the group owns
(:mod:`passes.split.nan_probe`). Convolutions and linear layers are not run, since it is known which of their outputs
read which inputs; so tracing is cheap.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx, nn

from passes.common.inplace import mutates_input
from passes.common.interpreter import arguments_of, call_target
from passes.common.layer_kinds import DENSE, Convolution, TransposedConvolution, normalizes_last
from passes.common.parameters import own_tensors
from passes.common.restore import same_randomness, set_mode, untouched
from passes.errors import LocalizeError, SplitError, first_line
from passes.ir import Network, TensorSpec
from passes.layers.grouped import Gathered, GroupedLayerNorm
from passes.split.channel_owners import OPEN, Change, ChangeKind, Owners, Ownership, blocks, kept_apart, sizes_of
from passes.split.nan_probe import (
    Worlds,
    copied,
    dependence,
    fresh,
    holders_of,
    in_world,
    marked,
    opened,
    runnable,
    values_of,
)


def trace_groups(
    network: Network, modules: Sequence[Sequence[int]], counts: Sequence[int], *, split: bool
) -> Ownership:
    """Follow channels through local modules.

    Args:
        network: The network.
        modules: Indices of the layers of each local module, in order.
        counts: Number of groups of each local module; 1 leaves the module whole.
        split: Whether layers that read channels of several groups are to be split; else they are refused.

    Raises:
        SplitError: Something mixes channels of several groups and cannot be split, or channels do not divide.
    """
    model = network.captured.model
    with untouched(model), same_randomness(0), torch.no_grad():
        set_mode(model, True)
        return _Tracer(network, modules, counts, split).run()


class _Tracer:
    def __init__(self, network: Network, modules: Sequence[Sequence[int]], counts: Sequence[int], split: bool) -> None:
        part = network.partition
        self.network, self.captured, self.specs = network, network.captured, network.shapes.specs
        self.counts, self.split = counts, split
        # What depends on sizes alone has its place in the graph elsewhere than in the layer it belongs to.
        own = ((name, k) for k, layers in enumerate(modules) for i in layers for name in part.nodes[i])
        self.home = {name: k for name, k in own if name not in part.portable}
        self.read = [part.cuts[layers[-1]] for layers in modules]
        self.free = frozenset((*part.shared, *part.portable))
        self.env: dict[str, Worlds] = {}
        self.groups = 1
        self.changes: dict[str, Change] = {}
        self.owners: list[Owners] = []
        self.shared: list[dict[str, None]] = [{} for _ in modules]
        self.names = {id(p): name for name, p in self.captured.model.named_parameters()}

    def run(self) -> Ownership:
        current = -1
        self.env[self.captured.input] = [fresh(_known(self.specs[self.captured.input]))]
        for node in self.captured.nodes[1:-1]:
            home = self.home.get(node.name)
            if home is None and node.name not in self.free:
                continue
            if any(parent.name not in self.env for parent in node.all_input_nodes):
                continue
            if home is not None and home != current:
                self._close(current)
                current, self.groups = home, self.counts[home]
            self.env[node.name] = self._run(node)
            if home is not None and self.groups > 1:
                self._note_shared(node, self.shared[home])
        self._close(current)
        shared = tuple(tuple(names) for names in self.shared)
        return Ownership(tuple(self.owners), tuple(self.changes.values()), shared)

    def _close(self, index: int) -> None:
        """End a module: note the owners of the channels that leave it, and open all channels for the next one."""
        if index < 0:
            return
        name = self.read[index]
        spec = self.specs[name]
        assert spec is not None and self.home.get(name) == index, f"{name} leaves a module and is not computed in it"
        self.owners.append(self._owners_of(self.captured.by_name[name], spec.channel_dim))
        self.env = {name: [opened(worlds[0])] if len(worlds) > 1 else worlds for name, worlds in self.env.items()}

    def _run(self, node: fx.Node) -> Worlds:
        """Return the value of a node in the run of each group."""
        module = self.captured.module(node)
        if self.groups > 1 and node.name in self.home:
            if isinstance(module, (*DENSE, Gathered)):
                return self._layer(node, module)
            self._require_weights_of_its_own(node, module)
            if self.split and isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and self._owned(node):
                value = self._norm(node, module)
                if value is not None:
                    return value
        elif self.network.shapes.costs[node.name].mixing and self.specs[node.name] is not None:
            # Outside of split modules the values do not matter, so what costs most is not run.
            return [fresh(_known(self.specs[node.name]))]
        return self._other(node, module)

    def _owned(self, node: fx.Node) -> bool:
        return any(len(self.env[parent.name]) > 1 for parent in node.all_input_nodes)

    def _owners_of(self, node: fx.Node, dim: int) -> Owners:
        """Return the owner of each channel of a node's value.

        Raises:
            SplitError: A channel belongs to several groups.
        """
        holders = holders_of(self.env[node.name], dim)
        if any(len(groups) > 1 for groups in holders):
            raise self._refusal(node, "a channel of its value holds features of several groups")
        return tuple(groups[0] if groups else OPEN for groups in holders)

    def _layer(self, node: fx.Node, module: nn.Module) -> Worlds:
        """Return the value of a convolution or linear layer.

        It hands its outputs out to the groups, or is to be split, or keeps groups apart already.
        """
        layer = module.layer if isinstance(module, Gathered) else module
        assert isinstance(layer, DENSE)
        source = node.all_input_nodes[0]
        ndim = self.env[source.name][0].ndim
        dim = ndim - 1 if isinstance(layer, nn.Linear) else ndim - 1 - len(layer.kernel_size)
        owners = self._owners_of(source, dim)
        if isinstance(module, Gathered):
            owners = tuple(owners[i] for i in module.channels)
        inputs, outputs, own = sizes_of(layer)
        depthwise = own > 1 and own == inputs
        if not depthwise and all(owner == OPEN for owner in owners):
            given = self._handed_out(node, outputs)
        elif self.split and not depthwise:
            given = self._split(node, layer, owners, dim)
        else:
            given = self._as_is(node, owners, outputs, own)
        return self._worlds(node, given, dim)

    def _handed_out(self, node: fx.Node, outputs: int) -> Owners:
        """Return the owners of outputs that are handed out to the groups in equal blocks."""
        if outputs % self.groups:
            raise self._refusal(node, f"its {outputs} output channels cannot be divided among {self.groups} groups")
        return blocks(outputs, self.groups)

    def _as_is(self, node: fx.Node, owners: Owners, outputs: int, own: int) -> Owners:
        """Return the owners of the outputs of a layer that stays as it is."""
        given = kept_apart(owners, outputs, own)
        if given is None:
            raise self._refusal(node, "one of its outputs reads channels of several groups")
        return given

    def _split(self, node: fx.Node, layer: Convolution | nn.Linear, owners: Owners, dim: int) -> Owners:
        """Split a layer that reads owned channels, and return the owners of its outputs."""
        inputs, outputs, own = sizes_of(layer)
        groups = self.groups
        regular = owners == blocks(inputs, groups)
        if own > 1:
            if regular and inputs % (own * groups) == 0 and outputs % (own * groups) == 0:
                return self._change(node, "layer", own * groups, owners, dim, blocks(outputs, groups))
            return self._as_is(node, owners, outputs, own)
        given = self._handed_out(node, outputs)
        shares = [owners.count(group) for group in range(groups)]
        if len(set(shares)) > 1 or (not regular and isinstance(layer, TransposedConvolution)):
            raise self._refusal(
                node,
                f"of its {inputs} input channels the groups own {', '.join(map(str, shares))}, which must be equal",
            )
        return self._change(node, "layer", groups, owners, dim, given)

    def _norm(self, node: fx.Node, module: nn.LayerNorm | nn.GroupNorm) -> Worlds | None:
        """Split a norm over all channels of a position or sample, and return its value; None for other norms."""
        source = node.all_input_nodes[0]
        value = self.env[source.name][0]
        if isinstance(module, nn.GroupNorm):
            if module.num_groups > 1:
                return None
            kind: ChangeKind = "group_norm"
            dim, channels = 1, module.num_channels
        else:
            if isinstance(module, GroupedLayerNorm) or len(module.normalized_shape) != 1:
                return None
            kind, channels = "layer_norm", module.normalized_shape[0]
            # Subclasses with a forward of their own (timm's LayerNorm2d) are for images with their channels first.
            plain = normalizes_last(module) or value.ndim != 4
            dim = value.ndim - 1 if plain or value.shape[1] != channels else 1
        owners = self._owners_of(source, dim)
        if owners != blocks(channels, self.groups):
            raise self._refusal(node, "it normalizes over channels of all groups, which do not lie side by side")
        return self._worlds(node, self._change(node, kind, self.groups, owners, dim, owners), dim)

    def _change(self, node: fx.Node, kind: ChangeKind, groups: int, owners: Owners, dim: int, given: Owners) -> Owners:
        """Note that a layer is to be split, and return the owners of its outputs."""
        change = Change(str(node.target), kind, groups, owners, dim)
        known = self.changes.setdefault(change.path, change)
        if known != change:
            raise self._refusal(node, "it is called several times, on channels that are grouped differently")
        return given

    def _worlds(self, node: fx.Node, owners: Owners, dim: int) -> Worlds:
        """Return a value of the node's shape in the run of each group, its channels owned as given."""
        groups = self.groups if any(owner != OPEN for owner in owners) else 1
        return [marked(_known(self.specs[node.name]), owners, dim, group) for group in range(groups)]

    def _other(self, node: fx.Node, module: nn.Module | None) -> Worlds:
        """Run any other node once for each group."""
        parents = node.all_input_nodes
        first = parents[0].name if parents else ""
        owned = self._owned(node)
        if owned and len(self.env[first]) == 1 and mutates_input(self.captured, node):
            self.env[first] = [copied(self.env[first][0]) for _ in range(self.groups)]
        called = None if module is None else runnable(module)
        worlds = []
        for group in range(self.groups if owned else 1):
            args, kwargs = arguments_of(node, partial(self._value, group))
            try:
                worlds.append(self._call(node, called, args, kwargs))
            except LocalizeError:
                raise
            except Exception as error:  # whatever the user's code raises
                raise self._refusal(node, f"it cannot be run on random values: {first_line(error)}") from error
        if len(worlds) == 1:
            return worlds
        return self._told_apart(node, worlds)

    def _value(self, group: int, node: fx.Node) -> Any:
        return in_world(self.env[node.name], group)

    def _call(self, node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
        if module is not None:
            return module(*args, **kwargs)
        if node.op == "get_attr":
            value = self.captured.attribute(str(node.target))
            return values_of(value) if isinstance(value, torch.Tensor) else value
        return call_target(node, args, kwargs)

    def _told_apart(self, node: fx.Node, worlds: Worlds) -> Worlds:
        """Return the values, if no entry depends on several groups; one of them, if none depends on any."""
        most = dependence(worlds)
        if most is None:
            raise self._refusal(node, "it cannot be told whether its value depends on several groups")
        if most > 1:
            raise self._refusal(node, "each of its outputs depends on channels of several groups")
        return worlds if most else worlds[:1]

    def _require_weights_of_its_own(self, node: fx.Node, module: nn.Module | None) -> None:
        """Refuse weights that mix channels and do not belong to a layer that could be split."""
        if not self.network.shapes.costs[node.name].mixing:
            return
        among = frozenset(self.network.partition.shared)
        feeding = (self.captured.by_name[name] for name in self.captured.feeding((node.name,), among))
        if module is not None or any(own_tensors(self.captured, parent) for parent in feeding):
            raise self._refusal(node, "it multiplies by weights that are not those of a convolution or linear layer")

    def _note_shared(self, node: fx.Node, names: dict[str, None]) -> None:
        """Note the parameters of a node that gives open channels, which all groups train."""
        spec = self.specs[node.name]
        read = [node, *(parent for parent in node.all_input_nodes if parent.op == "get_attr")]
        tensors = [t for n in read for t in own_tensors(self.captured, n) if id(t) in self.names and t.requires_grad]
        if tensors and spec is not None and () in holders_of(self.env[node.name], spec.channel_dim):
            names.update((self.names[id(t)], None) for t in tensors)

    def _refusal(self, node: fx.Node, why: str) -> SplitError:
        module = self.captured.module(node)
        path = str(node.target) if module is not None else self.captured.scope_path(node.name)
        if module is not None:
            what = type(module).__name__
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        inside = "" if module is not None or not path else f" of {type(self._at(path)).__name__}"
        return SplitError(
            f"{what}{inside} cannot be split in {self.groups} groups of channels",
            where=path or type(self.captured.model).__name__,
            source=self.captured.sources.get(node.name),
            why=why,
            remedy="Give another number of groups, or 1 for the local module that holds it (groups=[...])",
        )

    def _at(self, path: str) -> nn.Module:
        return self.captured.model.get_submodule(path)


def _known(spec: TensorSpec | None) -> TensorSpec:
    assert spec is not None
    return spec
