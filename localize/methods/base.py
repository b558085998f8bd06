"""Define what a learning rule is: a :class:`Method`, which is options and a few functions.

A rule plans (pure data, :class:`localize.LocalModulePlan`) and builds (``nn.Module``). The compiler does the rest.
docs/guide/writing-a-method.md builds one from nothing.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import fx, nn

from localize.methods.networks.losses import Criteria, Criterion
from localize.plan.plan import LocalModulePlan, Plan
from localize.plan.prediction import Prediction
from passes.adapt.adapter import Adapter
from passes.common.initializer import Initializer
from passes.common.parameters import own_tensors
from passes.errors import MethodError, first_line
from passes.ir import Network

OptionsT = TypeVar("OptionsT")
"""The options of one method: a frozen dataclass."""


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """All that a method plans and builds from."""

    network: Network
    """The analysed primary network: ``network.layers`` are its local layers, with their output specs."""
    adapter: Adapter
    """Places copies of layers elsewhere, and knows the output layer, whose initializer classifiers imitate."""
    prediction: Prediction
    """What the heads of auxiliary networks must return: the form of the primary network's output."""
    groups: tuple[tuple[int, ...], ...] | None
    """The user's grouping of layers; None where the method decides."""
    merging: Callable[[Sequence[Sequence[int]]], Sequence[int]]
    """Returns, for groups of layers from the first one on, the multiply-accumulates of merging the tensors that leave
    each group (0 where one tensor leaves it). They are added to what the method plans."""


Builder = Callable[[Context, LocalModulePlan, OptionsT, Initializer], nn.Module]
"""Builds an auxiliary network of a planned module; called for modules that are planned with one."""


class Localized(Protocol):
    """The part of :class:`localize.LocalGraphModule` that :attr:`Method.attach` works on."""

    @property
    def primary(self) -> nn.Module:
        """The network that is trained."""

    @property
    def local_modules(self) -> Sequence[nn.Module]:
        """The local modules, from input to output."""


def _no_network(context: Context, module: LocalModulePlan, options: object, draw: Initializer) -> nn.Module:
    """Refuse to build what the method has no function for.

    Raises:
        MethodError: Always.
    """
    raise MethodError(
        f"the method plans an auxiliary network for module {module.index} ({module.name}), and has no function for it",
        remedy="Give the Method build=, or build_cascaded= for the auxiliary networks of cascades",
    )


def _no_model(context: Context, options: object, draw: Initializer) -> None:
    """Build nothing: the rule trains the model as it is."""


def _nothing(local: Localized, context: Context, options: object) -> None:
    """Do nothing: the rule consists of its losses."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Method(Generic[OptionsT]):
    """A learning rule: ``localize(model, method=rule)`` takes one from any file; those inside are in ``METHODS``.

    Raises:
        MethodError: ``name`` is empty, or ``Options`` is not a dataclass.
    """

    name: str
    """Name in plans, exports and errors."""
    Options: type[OptionsT]
    """Frozen dataclass of the method's options; each has a default (the paper's)."""
    plan: Callable[[Context, OptionsT], tuple[LocalModulePlan, ...]]
    """Plans the local modules in order, the last without auxiliary network. The compiler fills in ``parameters``."""
    build: Builder[OptionsT] = _no_network
    """Builds the auxiliary network of a planned module, from the module's output to the prediction. It is a
    :class:`localize.methods.Supervising` network where the local loss is more than the criterion of its output."""
    local: bool = True
    """Whether the method has local losses; backpropagation has none."""
    build_cascaded: Builder[OptionsT] = _no_network
    """Builds the auxiliary network of the cascaded loss, for modules planned with a cascade."""
    attach: Callable[[Localized, Context, OptionsT], None] = _nothing
    """Is called once with the finished ``LocalGraphModule``, for what the method does besides losses."""
    prepare: Callable[[Context, OptionsT, Initializer], nn.Module | None] = _no_model
    """Returns the primary network to train in place of the user's, or None to train the user's. The compiler analyses
    it again; if its graph is the same, it has the same layers in the same groups."""
    about: str = ""
    """One line of help; empty for the first line of the docstring of the file that defines ``plan``."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise MethodError(f"the name of a method must be a non-empty string, got {self.name!r}")
        if not (isinstance(self.Options, type) and dataclasses.is_dataclass(self.Options)):
            raise MethodError(f"Options of method {self.name!r} must be a dataclass, got {self.Options!r}")

    @property
    def summary(self) -> str:
        """One line of help on the method."""
        module = inspect.getmodule(self.plan)
        return self.about or (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ")

    def choose(self, d: int, given: Mapping[str, object], trial: bool = False) -> ChosenMethod:
        """Choose options for the method.

        Args:
            d: Depth of auxiliary networks; ignored by methods without an option ``d``.
            given: Further options by name.
            trial: See :attr:`ChosenMethod.trial`.

        Raises:
            MethodError: An option is unknown, or ``Options`` refuses its value.
        """
        options = read_options(self.name, self.Options, with_depth(self.Options, d, given))
        return ChosenMethod(self, options, trial)


@dataclasses.dataclass(frozen=True, slots=True)
class ChosenMethod:
    """A method with its options: what the compiler plans and builds by. It checks what the method returns."""

    method: Method[Any]
    options: object
    trial: bool = False
    """Whether auxiliary networks are tried out when they are built: those of methods from outside this package are."""

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.method.name

    @property
    def values(self) -> dict[str, object]:
        """Values of the options by name."""
        assert dataclasses.is_dataclass(self.options) and not isinstance(self.options, type)
        return dataclasses.asdict(self.options)

    @property
    def depth(self) -> int:
        """Depth of auxiliary networks, the option ``d``; 1 for methods that have none."""
        return getattr(self.options, "d", 1)

    def at_depth(self, d: int) -> ChosenMethod:
        """Return the same method with another depth; for methods that have an option ``d``."""
        assert dataclasses.is_dataclass(self.options) and not isinstance(self.options, type)
        return dataclasses.replace(self, options=dataclasses.replace(self.options, d=d))

    @property
    def local(self) -> bool:
        """True if the method has local losses; backpropagation has none."""
        return self.method.local

    def prepare(self, context: Context, draw: Initializer) -> nn.Module | None:
        """Return the primary network to train in place of the user's; None to train the user's.

        Raises:
            MethodError: The method returns something other than an ``nn.Module`` or None.
        """
        primary = self.method.prepare(context, self.options, draw)
        if not isinstance(primary, (nn.Module, type(None))):
            raise MethodError(
                f"prepare() of method {self.name!r} must return an nn.Module or None, got {type(primary).__name__}"
            )
        return primary

    def plan(self, context: Context) -> tuple[LocalModulePlan, ...]:
        """Plan the local modules.

        Raises:
            MethodError: The method refuses the network or the options; or its ``plan`` returns something other than
                consecutive modules that hold all local layers, the last without auxiliary network.
        """
        planned = self.method.plan(context, self.options)
        why = _fault(planned, len(context.network.layers))
        if why:
            raise MethodError(
                f"plan() of method {self.name!r} must return consecutive local modules that hold all local layers",
                why=why,
                remedy="localize.methods.plan_modules plans such modules; mend the method, or report this",
            )
        return tuple(planned)

    def build(self, context: Context, module: LocalModulePlan, draw: Initializer) -> nn.Module | None:
        """Build the auxiliary network of a planned module; None for a module planned without.

        Raises:
            MethodError: The method returns something other than an ``nn.Module``, or one that does not fit.
        """
        if module.auxiliary is None:
            return None
        return self._checked(self.method.build(context, module, self.options, draw), context, module)

    def build_cascaded(self, context: Context, module: LocalModulePlan, draw: Initializer) -> nn.Module | None:
        """Build the auxiliary network of a module's cascaded loss; None for a module planned without.

        Raises:
            MethodError: The method returns something other than an ``nn.Module``, or one that does not fit.
        """
        if module.cascade is None or module.cascade.auxiliary is None:
            return None
        return self._checked(self.method.build_cascaded(context, module, self.options, draw), context, module)

    def attach(self, local: Localized, context: Context) -> None:
        """Let the method work on the finished ``LocalGraphModule``."""
        self.method.attach(local, context, self.options)

    def _checked(self, network: object, context: Context, module: LocalModulePlan) -> nn.Module:
        """Return the auxiliary network; if ``trial`` is set, after running a copy of it on meta tensors.

        Raises:
            MethodError: The network is not an ``nn.Module``, cannot be run on the output of the module, or returns
                another shape than the prediction's.
        """
        where = f"the auxiliary network that method {self.name!r} builds for module {module.index} ({module.name})"
        if not isinstance(network, nn.Module):
            raise MethodError(f"{where} must be an nn.Module, got {type(network).__name__}")
        if not self.trial:
            return network
        spec = context.network.layers[module.layers[-1]].output
        expected = context.prediction.shape(spec.shape[0])
        try:
            with torch.no_grad():
                returned = copy.deepcopy(network).to("meta")(torch.empty(spec.shape, dtype=spec.dtype, device="meta"))
        except Exception as error:  # the network is the user's, and may raise anything
            raise MethodError(
                f"{where} must run on the module's output {spec}", why=f"{type(error).__name__}: {first_line(error)}"
            ) from error
        got = tuple(returned.shape) if isinstance(returned, torch.Tensor) else type(returned).__name__
        if got != expected:
            raise MethodError(
                f"{where} must return {context.prediction}, a tensor of shape {expected}, got {got}",
                remedy="localize.methods.build_head builds the end of such a network",
            )
        return network


def _fault(planned: object, layers: int) -> str:
    """Return what is wrong with planned modules; an empty string if nothing is."""
    if not isinstance(planned, Sequence) or not all(isinstance(module, LocalModulePlan) for module in planned):
        return f"it returned {planned!r}, not a tuple of LocalModulePlan"
    if [module.index for module in planned] != list(range(len(planned))) or not planned:
        return f"the indices of its {len(planned)} modules are {[module.index for module in planned]}"
    held = [layer for module in planned for layer in module.layers]
    if held != list(range(layers)):
        return f"the network has local layers 0 to {layers - 1}, and the modules hold {[m.layers for m in planned]}"
    if empty := [module.index for module in planned[:-1] if not module.layers]:
        return f"module {empty[0]} holds no layers; only the last one may hold the classifier alone"
    if planned[-1].auxiliary is not None:
        return "the last module has an auxiliary network, and is trained by the output loss"
    if lacking := [module.index for module in planned[:-1] if module.auxiliary is None]:
        return f"module {lacking[0]} has no auxiliary network, and is not the last"
    return ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Compiled:
    """The source of a localized model: everything that its plan and its code were made of."""

    method: ChosenMethod
    """The learning rule and its options."""
    context: Context
    """What the rule planned on: the network that is trained, its layers, and their grouping."""
    criteria: Criteria
    """The user's losses."""
    original: Network | None
    """The network of the user's model, where the rule trains another one made of it."""
    emit: Callable[[Plan, Compiled], fx.GraphModule]
    """The compiler's last stage, which makes a localized model of a plan and this record; copies are made by it."""

    @property
    def network(self) -> Network:
        """The network that is trained."""
        return self.context.network

    def on(self, network: Network) -> Compiled:
        """Return the same record for another network of the same layers."""
        return dataclasses.replace(
            self, context=dataclasses.replace(self.context, network=network, adapter=Adapter(network))
        )

    def over(self, model: nn.Module, output: Criterion | None) -> Compiled:
        """Return the same record over a copy of the primary network.

        Args:
            model: A copy of the primary network.
            output: The loss of the last local module, or a copy of it.
        """
        moved = self.on(
            dataclasses.replace(self.network, captured=dataclasses.replace(self.network.captured, model=model))
        )
        return dataclasses.replace(moved, criteria=dataclasses.replace(self.criteria, output=output))


def read_options(name: str, kind: type[OptionsT], given: Mapping[str, object]) -> OptionsT:
    """Make a method's options from the given values.

    Raises:
        MethodError: An option is unknown (the message lists the known ones), or ``kind`` refuses its value.
    """
    known = option_names(kind)
    unknown = [key for key in given if key not in known]
    if unknown:
        options = ", ".join(known) if known else "none"
        raise MethodError(
            f"method {name!r} has no option {', '.join(map(repr, unknown))}", remedy=f"Its options: {options}"
        )
    return kind(**given)


def option_names(kind: type[object]) -> list[str]:
    """Return the names of a method's options, in order."""
    assert dataclasses.is_dataclass(kind), f"{kind} holds no options"
    return [field.name for field in dataclasses.fields(kind)]


def with_depth(kind: type[object], d: int, given: Mapping[str, object]) -> dict[str, object]:
    """Return the given options, preceded by the depth ``d`` if the method has one."""
    return {**({"d": d} if "d" in option_names(kind) else {}), **given}


def group_name(network: Network, layers: Sequence[int]) -> str:
    """Return the name of a local module: its layer's, or ``first..last``; ``classifier`` if it holds no layers."""
    if not layers:
        return "classifier"
    first, last = network.layers[layers[0]].name, network.layers[layers[-1]].name
    return first if len(layers) == 1 else f"{first}..{last}"


def trained_layers(network: Network) -> list[bool]:
    """Return for each local layer whether it has trainable parameters, those it shares with other layers included."""
    captured, part = network.captured, network.partition
    trained = []
    for names in part.nodes:
        nodes = {*names, *captured.feeding(names, part.shared)}
        tensors = (t for name in nodes for t in own_tensors(captured, captured.by_name[name]))
        trained.append(any(t.requires_grad for t in tensors))
    return trained
