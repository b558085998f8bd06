"""MLAAN: losses that reach several modules, and auxiliary networks made of later layers; around any other rule.

Zhang, Zhang, Wang, Zhu, Guan, Su, Liu, Cai: "MLAAN: Scaling Supervised Local Learning with Multilaminar Leap Augmented
Auxiliary Network", AAAI 2025.

**MLM** (section "Multilaminar Local Modules", equations 3 to 5). Besides its own loss, by its independent auxiliary
network, module j has a cascaded loss, by a second auxiliary network on the same output, whose gradient goes on
through the k - 1 modules before it. Windows of k modules overlap, so that a module is supervised k + 1 times.

**LAM** (section "Leap Augmented Modules", equations 6 to 8). In front of an auxiliary network stand copies of up to p
later layers, early, middle and deep ones (:func:`localize.methods.mlaan.leap_choice.leaps`), which start from the
weights of these layers, learn by gradient, and after each step are pulled to them
(:mod:`localize.methods.mlaan.leaps`). The other rule's auxiliary network follows the last copy.

Around ``dgl`` and ``infopro`` these are the paper's DGL* and InfoPro*. Alone (``mlaan``), the auxiliary network is
pooling and a linear classifier, as in the released code: what AugLocal has at d=1.

Deviations, and choices the paper leaves open:

- The paper has no weights of the two losses but learning rates, which it does not give: here they weigh alike. The
  released code has 0.001 and 0.999.
- The first windows are cut short: module 0 is a cascade by itself, with two auxiliary networks. The released code
  begins with the first whole window, so that its module 0 has no loss of its own. The last module has the output loss
  twice: on its detached input, and at the end of its cascade. In one module there is nothing to cascade: it is
  trained by the output loss alone, as by backpropagation.
- Equation 10 pulls the independent auxiliary networks; the released code has its copies in the cascaded ones
  (``leap="cascaded"``). Its weights of 0.001 and 0.999 only make sense there.
- Each run of a cascade is one more than that of the module's own: dropout draws again in it. Running statistics move
  once a step; in the released code, which runs a module up to three times, they move as often.
- A copy is a repaired one where the layer would not run on its new input as it is; on the paper's CIFAR ResNets
  none need be: the first block of each later stage brings width and resolution to those of the next. Tensors whose
  shape a repair changes, projections and adapters start fresh and are not pulled; the plan's note names these copies.
- Parameters are pulled, running statistics are not: equation 7 and the released code alike.
- ``variant="released"`` stands for what is systematic in the released code: its first copy is added to a twin that is
  not trained but pulled, and no other is. Not imitated: that its CIFAR code pulls the last module's twin only (that for
  ImageNet pulls all), and overwrites the last module's independent loss by the cascaded one.
- The released choice of copies is written down by hand for each network and K; for ResNet-32 in 8 modules this is it.
- By default local modules are those of the other rule, one local layer each; the paper's K of 16 for ResNet-32 too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from localize.methods import dgl, infopro
from localize.methods.auglocal import rule as auglocal
from localize.methods.base import Context, Localized, Method
from localize.methods.mlaan.leap_choice import leaps
from localize.methods.mlaan.leaps import Leaps, Twinned, follow
from localize.methods.mlaan.options import MlaanOptions, mlaan_options
from localize.methods.options import join_options, part_of
from localize.plan.records import Auxiliary, AuxiliaryBlock, Cascade, LocalModulePlan
from passes.adapt.copy_recipe import CopyRecipe
from passes.adapt.placement import place
from passes.adapt.rebuild import counterparts, rebuild
from passes.adapt.resolution import stage_starts
from passes.common.initializer import Initializer
from passes.ir import TensorSpec

LEAPING = ("leap", "twin", "free")
"""Kinds of copies: pulled to the copied layer; added to a pulled twin; neither."""


@dataclasses.dataclass(frozen=True, slots=True)
class MlaanMethod:
    """Functions of MLAAN around another rule, whose auxiliary networks are sized by ``Layer.output`` alone."""

    base: Method[Any]
    fixed: Mapping[str, object]
    """Options of the base rule that a user cannot choose."""

    def plan(self, context: Context, options: object) -> tuple[LocalModulePlan, ...]:
        """Plan the base rule's local modules, with cascades, and with copies in front of auxiliary networks."""
        mlaan, base_options = mlaan_options(options), self._base_options(options)
        plain = self.base.plan(context, base_options)
        if len(plain) == 1 or not (mlaan.mlm or mlaan.lam):
            return plain
        placed = {module.index: _placed(context, mlaan, module) for module in plain[:-1]} if mlaan.lam else {}
        grouped = dataclasses.replace(context, groups=tuple(module.layers for module in plain))
        planned = []
        for module in plain:
            recipes, notes = placed.get(module.index, ([], []))
            leaping = module.auxiliary
            if recipes:
                # The base rule plans all modules, with this one's output as the last copy returns it; only this
                # module's auxiliary network is taken from that plan. It will be built the same way.
                after_copies = self.base.plan(_ending(grouped, module.layers[-1], recipes[-1].output), base_options)
                leaping = _prepended(mlaan.variant, recipes, after_copies[module.index].auxiliary)
            networks = [leaping if leap else module.auxiliary for leap in mlaan.leaping]
            cascade = None
            if mlaan.mlm:
                assert mlaan.k is not None, "MlaanOptions fills in k"
                reaches = tuple(range(max(0, module.index - mlaan.k + 1), module.index))
                cascade = Cascade(reaches, *mlaan.weights, networks[1])
            note = "; ".join(filter(None, [module.note, *notes]))
            planned.append(dataclasses.replace(module, auxiliary=networks[0], cascade=cascade, note=note))
        return tuple(planned)

    def build(self, context: Context, module: LocalModulePlan, options: object, draw: Initializer) -> nn.Module:
        """Build the independent auxiliary network of a planned module."""
        assert module.auxiliary is not None, "no auxiliary network was planned"
        return self._network(context, module, module.auxiliary, options, draw)

    def build_cascaded(
        self, context: Context, module: LocalModulePlan, options: object, draw: Initializer
    ) -> nn.Module:
        """Build the cascaded auxiliary network of a planned module."""
        assert module.cascade is not None, "no cascade was planned"
        assert module.cascade.auxiliary is not None, "no auxiliary network was planned"
        return self._network(context, module, module.cascade.auxiliary, options, draw)

    def attach(self, local: Localized, context: Context, options: object) -> None:
        """Attach what the base rule does, and the pull of copies after every step of an optimizer."""
        self.base.attach(local, context, self._base_options(options))
        follow(local, local.primary, local.local_modules, mlaan_options(options).momentum)

    def prepare(self, context: Context, options: object, draw: Initializer) -> nn.Module | None:
        """Return the primary network as the base rule prepares it."""
        return self.base.prepare(context, self._base_options(options), draw)

    def _base_options(self, options: object) -> object:
        return part_of(self.base.Options, options, **self.fixed)

    def _network(
        self, context: Context, module: LocalModulePlan, planned: Auxiliary, options: object, draw: Initializer
    ) -> nn.Module:
        """Build an auxiliary network as planned: copies, if there are any, and the base rule's network after them."""
        base_module = dataclasses.replace(module, auxiliary=_rest(planned))
        base_options = self._base_options(options)
        if _rest(planned) == planned:
            return self.base.build(context, base_module, base_options, draw)
        recipes, _ = _placed(context, mlaan_options(options), module)
        copying = dataclasses.replace(draw, copies=True)
        blocks, pulls = [], []
        for i, recipe in enumerate(recipes):
            block: nn.Module = rebuild(context.adapter, recipe, copying)
            pairs = counterparts(context.adapter, recipe, block)
            kind = planned.blocks[i].kind
            if kind == "leap":
                pulls += [(f"blocks.{i}.{name}", f"blocks.{i}.{name}", live) for name, live in pairs]
            elif kind == "twin":
                block = Twinned(block, rebuild(context.adapter, recipe, copying))
                pulls += [(f"blocks.{i}.pulled.{name}", f"blocks.{i}.trained.{name}", live) for name, live in pairs]
            blocks.append(block)
        after_copies = _ending(context, module.layers[-1], recipes[-1].output)
        return Leaps(blocks, self.base.build(after_copies, base_module, base_options, draw), pulls)


def around(base: Method[Any], name: str, keep: Collection[str] | None = None, **fixed: object) -> Method[Any]:
    """Make a method that is MLAAN around another rule.

    Args:
        base: The other rule. Its auxiliary networks must be sized by ``Layer.output`` of a module's last layer alone:
            they are planned after copies of later layers by a context with another ``Layer.output``.
        name: Name of the method.
        keep: Options of the other rule that a user may choose; None for all.
        **fixed: Options of the other rule that a user cannot choose.
    """
    functions = MlaanMethod(base, fixed)
    return Method(
        name=name,
        Options=join_options(MlaanOptions, base.Options, keep=keep),
        plan=functions.plan,
        build=functions.build,
        build_cascaded=functions.build_cascaded,
        attach=functions.attach,
        prepare=functions.prepare,
    )


def _placed(context: Context, options: MlaanOptions, module: LocalModulePlan) -> tuple[list[CopyRecipe], list[str]]:
    """Return the copies that follow a module, and notes on what differs from what the options say."""
    network, layer = context.network, module.layers[-1]
    selected = leaps(layer, options.p, stage_starts(network), len(network.layers))
    recipes, notes = place(context.adapter, layer, selected, "deferred")
    changed = [str(recipe.source) for recipe in recipes if not _unchanged(recipe)]
    if changed:
        layers = f"layer{'s' if len(changed) > 1 else ''} {', '.join(changed)}"
        notes = [*notes, f"copies of {layers} are fitted: tensors of another shape are not pulled"]
    return recipes, notes


def _unchanged(recipe: CopyRecipe) -> bool:
    """Return whether each tensor of a copy has the shape of the copied layer's, and no tensor was added."""
    edits = recipe.edits
    resized = [name for change in edits.changes.values() for name in change if name not in ("stride", "padding")]
    return not (resized or edits.shapes or edits.projections or recipe.front)


def _prepended(variant: str, recipes: list[CopyRecipe], auxiliary: Auxiliary | None) -> Auxiliary | None:
    """Return the plan of an auxiliary network with copies of later layers in front of it."""
    if auxiliary is None or not recipes:
        return auxiliary
    kinds = ["leap"] * len(recipes) if variant == "paper" else ["twin", *["free"] * (len(recipes) - 1)]
    copies = [(recipe, 2 if kind == "twin" else 1) for recipe, kind in zip(recipes, kinds, strict=True)]
    blocks = [_described(recipe, kind) for recipe, kind in zip(recipes, kinds, strict=True)]
    return dataclasses.replace(
        auxiliary,
        selected=(*(recipe.source for recipe in recipes), *auxiliary.selected),
        depth=auxiliary.depth + len(recipes),
        params=auxiliary.params + sum(times * recipe.params for recipe, times in copies),
        macs=auxiliary.macs + sum(times * recipe.macs for recipe, times in copies),
        blocks=(*blocks, *auxiliary.blocks),
    )


def _described(recipe: CopyRecipe, kind: str) -> AuxiliaryBlock:
    return dataclasses.replace(auglocal.copied(recipe), kind=kind)


def _rest(auxiliary: Auxiliary | None) -> Auxiliary | None:
    """Return the plan of an auxiliary network without the copies in front of it."""
    count = sum(block.kind in LEAPING for block in auxiliary.blocks) if auxiliary else 0
    if auxiliary is None or not count:
        return auxiliary
    return dataclasses.replace(
        auxiliary,
        selected=auxiliary.selected[count:],
        depth=auxiliary.depth - count,
        blocks=auxiliary.blocks[count:],
    )


def _ending(context: Context, layer: int, output: TensorSpec) -> Context:
    """Return the context in which a layer has the output of the copies after it; it sizes auxiliary networks."""
    network = context.network
    layers = list(network.layers)
    layers[layer] = dataclasses.replace(layers[layer], output=output)
    partition = dataclasses.replace(network.partition, layers=tuple(layers))
    return dataclasses.replace(context, network=dataclasses.replace(network, partition=partition))


METHOD = around(auglocal.METHOD, "mlaan", keep=("pool",), d=1, last="single")
DGL = around(dgl.METHOD, "dgl+mlaan")
INFOPRO = around(infopro.METHOD, "infopro+mlaan")
