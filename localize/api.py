"""The front door: localize() and check()."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from localize import methods
from localize.emit import Wires, emit, known, parameters_of, wire
from localize.local_module import LocalGraphModule
from localize.losses import cross_entropy
from localize.merge import adapter_cost, describe_adapter
from localize.methods import Context
from localize.plan import LocalModulePlan, Plan
from passes import verify as spec
from passes.adapt import Adapter
from passes.errors import CaptureError, InputError, LocalizeError, MethodError
from passes.fidelity import capture_verified
from passes.granularity import Granularity
from passes.group import group_evenly
from passes.ir import Network, Opaque, TensorSpec
from passes.leaves import LeafPolicy
from passes.outputs import Output
from passes.partition import partition
from passes.pipeline import analyse, expect
from passes.shapes import infer_shapes

_DEFAULT_SHAPE = (3, 224, 224)


def localize(
    model: nn.Module,
    method: str = "auglocal",
    *,
    d: int = 4,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    modules: int | None = None,
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
    output: Output | None = None,
    verify: bool = True,
    criterion: Callable[[torch.Tensor, Any], torch.Tensor] | None = None,
    seed: int | None = None,
    **options: Any,
) -> LocalGraphModule:
    """Compiles a model for supervised local learning.

    The model is cut into gradient-isolated local modules; each gets an auxiliary network and a loss of its own. The
    model itself is not changed: training the result trains it.

    Args:
        model: The primary network: any vision model that torch.fx can trace, taking one tensor and returning one.
        method: The learning rule: ``"auglocal"`` (Ma et al., ICLR 2024) or ``"bp"`` (plain backpropagation).
        d: Depth of auxiliary networks: trainable layers, the classifier included. For methods that have a depth.
        example_inputs: A tensor of the input's shape, batch first; its values are never used. By default the input size
            of the model's own configuration (timm's ``pretrained_cfg``), else (2, 3, 224, 224).
        modules: K: groups the L local layers into K local modules of equal length. By default the method decides.
        max_cut: How many live tensors may cross from one local module to the next. By default one where that gives at
            least 8 layers, none of more than half of the MACs; else the smallest number up to 16 that does. Densely
            connected networks need several: all are detached and handed on.
        granularity: What a local layer is: ``"minimal"``, the smallest units; ``"block"``, which keeps the blocks that
            a network lists whole, such as transformer blocks; a module class, or several, whose modules stay whole; or
            the list of the modules (by name) after which to cut.
        output: Which of several values that the model returns in train mode is its primary output: a key or attribute,
            an index, or several of them from the outside in. By default the only one, or, where the model returns one
            in eval mode, the one that corresponds to it. Others of its shape (auxiliary classifiers) are trained with
            the last local module, by the same criterion.
        verify: Whether the captured graph is held against the model, bit for bit, by running both in train mode on
            random input of the example's shape. Skipped where parameters have no values (meta, fake).
        criterion: Loss from (logits, target) to a scalar; cross-entropy by default.
        seed: Seed of the auxiliary networks' weights; torch's global generator is then neither read nor moved.
        **options: The method's further options; AugLocal's: ``tau``, ``last``, ``head_norm``, ``selection``, ``width``,
            ``downsampling``, ``max_aux_macs`` and ``aux_init``, see :class:`localize.methods.auglocal.Options`.

    Returns:
        A ``torch.fx.GraphModule`` that shares its parameters with ``model``.

    Raises:
        LocalizeError: One of its subclasses: :class:`CaptureError` (no graph), :class:`PartitionError` (no layers, or
            ``modules``, ``max_cut`` or ``granularity`` cannot be met), :class:`MethodError` (unknown method or option,
            or one that does not fit).
    """
    _require_module(model)
    rule = methods.get_method(method)
    depth = {"d": d} if "d" in {field.name for field in dataclasses.fields(rule.Options)} else {}
    chosen = methods.read_options(method, rule.Options, {**depth, **options})
    network = analyse(
        model,
        *input_of(model, example_inputs),
        leaf_policy(),
        max_cut=max_cut,
        granularity=granularity,
        output=output,
        verify=verify,
    )
    groups = None if modules is None else group_evenly(len(network.layers), modules)
    context = Context(network, Adapter(network), _outputs(network, method), groups, partial(_merging, network))
    plan = _plan(context, method, chosen)
    local = emit(plan, context, chosen, criterion or cross_entropy, seed)
    expect("codegen", spec.generated(local.graph, len(plan.modules)))
    return local


def _plan(context: Context, method: str, options: Any) -> Plan:
    network = context.network
    planned = methods.get_method(method).plan(context, options)
    wiring = wire(network, [module.layers for module in planned])
    planned = tuple(_with_merged(network, module, wires) for module, wires in zip(planned, wiring, strict=True))
    owned = parameters_of(network, wiring)
    expect("plan", spec.ownership(network, owned))
    return Plan(
        model=type(network.captured.model).__name__,
        method=method,
        options=dataclasses.asdict(options),
        input=network.shapes.input,
        output=network.shapes.output,
        layers=network.layers,
        classifier_params=network.partition.classifier_params,
        classifier_macs=network.partition.classifier_macs,
        modules=tuple(dataclasses.replace(m, parameters=names) for m, names in zip(planned, owned, strict=True)),
        opaque=tuple(leaf.path for leaf in network.captured.opaque),
    )


def _with_merged(network: Network, module: LocalModulePlan, wires: Wires) -> LocalModulePlan:
    """Adds to an auxiliary network what it needs to read more than the newest tensor of a cut."""
    if module.auxiliary is None or len(wires.reads) == 1:
        return module
    like, *others = (known(network.shapes.specs[name]) for name in wires.reads)
    costs = [adapter_cost(other, like) for other in others]
    auxiliary = dataclasses.replace(
        module.auxiliary,
        params=module.auxiliary.params + sum(params for params, _ in costs),
        macs=module.auxiliary.macs + sum(macs for _, macs in costs),
        merged=tuple(describe_adapter(other, like) for other in others),
    )
    return dataclasses.replace(module, auxiliary=auxiliary)


def _merging(network: Network, groups: Sequence[Sequence[int]]) -> list[int]:
    """Multiply-accumulates of :mod:`localize.merge` for each group of layers but the last of the network."""
    if not groups:
        return []
    rest = range(groups[-1][-1] + 1, len(network.layers))
    wiring = wire(network, [*groups, rest])[: len(groups)]
    reads = [[known(network.shapes.specs[name]) for name in wires.reads] for wires in wiring]
    return [sum(adapter_cost(other, like)[1] for other in others) for like, *others in reads]


@dataclasses.dataclass(frozen=True, slots=True)
class Obstacle:
    """Something that keeps a model, or a part of it, from being localized."""

    path: str
    """Module path in the model; its class name for the model as a whole."""
    source: str | None
    """Source line, ``file.py:12``."""
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}{f' ({self.source})' if self.source else ''}: {self.what}. {self.remedy}"


def check(
    model: nn.Module,
    *,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
    output: Output | None = None,
    verify: bool = True,
) -> list[Obstacle]:
    """Every obstacle to localizing ``model``, at once; empty when all is well. Nothing is changed.

    Args:
        model: Any module.
        example_inputs: As in :func:`localize`.
        max_cut: As in :func:`localize`.
        granularity: As in :func:`localize`.
        output: As in :func:`localize`.
        verify: As in :func:`localize`.

    Returns:
        Obstacles, each with module path, source line and remedy. Submodules that cannot be traced are listed although
        the model can be localized with them kept whole.

    Raises:
        LocalizeError: ``model`` is no ``nn.Module``, or ``example_inputs`` no tensor.
    """
    _require_module(model)
    shape, dtype = input_of(model, example_inputs)
    found: list[Obstacle] = []
    trainable = any(p.requires_grad for p in model.parameters())
    if not trainable:
        found.append(
            Obstacle(
                type(model).__name__, None, "it has no trainable parameter", "Set requires_grad where it should learn"
            )
        )
    try:
        captured = capture_verified(model, leaf_policy(), output, TensorSpec(shape, dtype), verify)
        found += [_kept_whole(leaf) for leaf in captured.opaque]
        shapes = infer_shapes(captured, shape, dtype)
        if trainable:
            partition(captured, shapes, max_cut, granularity)
    except LocalizeError as error:
        found += [_kept_whole(leaf) for leaf in getattr(error, "opaque", ())]
        found.append(Obstacle(error.where or type(model).__name__, error.source, _reason(error), error.remedy or ""))
    return found


def _kept_whole(leaf: Opaque) -> Obstacle:
    return Obstacle(
        leaf.path,
        leaf.source,
        f"its forward cannot be traced ({leaf.reason}), so it is kept whole and never cut inside",
        "Move that code into a submodule of its own, if the rest should be cut",
    )


def _reason(error: LocalizeError) -> str:
    return f"{error.what}: {error.why}" if error.why else error.what


def leaf_policy() -> LeafPolicy:
    """The tracing policy: timm's own leaf modules and wrapped functions, where timm is in use."""
    if "timm" not in sys.modules:
        return LeafPolicy()
    from timm.layers import get_notrace_functions, get_notrace_modules

    functions = tuple(function for function in get_notrace_functions() if callable(function))
    return LeafPolicy(doubtful=frozenset(get_notrace_modules()), functions=functions)


def input_of(
    model: nn.Module, example_inputs: torch.Tensor | Sequence[torch.Tensor] | None
) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype to analyse with: the example's, else the model's configuration's, else (2, 3, 224, 224).

    Raises:
        InputError: The example is no tensor, or not one tensor, or has no batch dimension.
    """
    if example_inputs is None:
        config = getattr(model, "pretrained_cfg", None) or {}
        size = config.get("input_size") if hasattr(config, "get") else getattr(config, "input_size", None)
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        return (2, *(size or _DEFAULT_SHAPE)), dtype
    if isinstance(example_inputs, (tuple, list)) and len(example_inputs) == 1:
        example_inputs = example_inputs[0]
    if not isinstance(example_inputs, torch.Tensor) or example_inputs.ndim < 2:
        raise InputError(
            f"example_inputs must be one tensor with a batch dimension; it is {_kind(example_inputs)}",
            remedy="Give, say, torch.empty(2, 3, 224, 224)",
        )
    # Two samples at least: batch norm in train mode refuses one value a channel.
    return (max(2, example_inputs.shape[0]), *example_inputs.shape[1:]), example_inputs.dtype


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return (
        f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else f"a {type(value).__name__}"
    )


def _require_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"localize() takes an nn.Module, and got a {type(model).__name__}",
            remedy="Call the class to make a model" if isinstance(model, type) else "Give the model object itself",
        )
    if isinstance(model, (torch.jit.ScriptModule, LocalGraphModule)):
        kind = "ScriptModule" if isinstance(model, torch.jit.ScriptModule) else "LocalGraphModule"
        raise CaptureError(
            f"a {kind} cannot be localized",
            why="it is compiled code already",
            remedy="Give the model it was made from",
        )


def _outputs(network: Network, method: str) -> int:
    output = network.shapes.output
    if len(output.shape) != 2 and method != "bp":
        raise MethodError(
            f"the model returns {output} a sample, and method {method!r} needs one vector of logits",
            remedy="Use method='bp', or a model that classifies",
        )
    return output.shape[-1]
