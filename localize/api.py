"""The front door: localize()."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from localize.compiler.emit import emit
from localize.compiler.inputs import input_of, leaf_policy, require_module
from localize.compiler.planning import check_recompute, make_plan, merging, with_recompute
from localize.memory.forecast import Forecaster, forecast_of
from localize.memory.planner import Candidate, fit
from localize.methods import get_method
from localize.methods.base import ChosenMethod, Compiled, Context, Method
from localize.methods.networks.losses import Criteria, Criterion, cross_entropy, cross_entropy_of_last
from localize.plan.grouping import Balance, check_balance, groups_of
from localize.plan.memory_budget import MemoryBudget, read_budget
from localize.plan.memory_forecast import MemoryForecast, Schedule
from localize.plan.prediction import Prediction, prediction_of, require_logits
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.options import Runtime, read_runtime
from passes import verify as spec
from passes.adapt.adapter import Adapter
from passes.common.initializer import Initializer
from passes.errors import MethodError
from passes.ir import Network
from passes.partition.granularity import Granularity
from passes.pipeline import analyse, expect
from passes.structure import Output, choices


def localize(
    model: nn.Module,
    method: str | Method[Any] = "auglocal",
    *,
    d: int = 4,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    modules: int | Sequence[int] | None = None,
    balance: Balance = "layers",
    max_cut: int | None = None,
    granularity: Granularity = "minimal",
    output: Output | None = None,
    verify: bool = True,
    criterion: Criterion | None = None,
    outputs: int | None = None,
    output_criterion: Criterion | None = None,
    seed: int | None = None,
    recompute: bool | str | Sequence[str] = False,
    memory_budget: int | str | MemoryBudget | None = None,
    batch_size: int | None = None,
    runtime: str | Runtime = "plain",
    **options: Any,
) -> LocalGraphModule:
    """Compile a model for supervised local learning.

    The model is cut into gradient-isolated local modules. Each module gets an auxiliary network and a loss of its own.
    The model itself is not changed, and it is what is trained; "gn-dgl" alone trains a smaller network made of it.

    >>> import torch
    >>> from localize.models import cifar_resnet
    >>> model = cifar_resnet(20)
    >>> local = localize(model, "auglocal", d=2, example_inputs=torch.empty(2, 3, 32, 32))
    >>> len(local.plan.layers), len(local.plan.modules)
    (10, 9)
    >>> images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    >>> for out in local.steps(images, labels):  # one local module after the other
    ...     out.loss.backward()  # frees the module's activations before the next module runs
    >>> all(p.grad is not None for p in model.parameters())
    True

    Args:
        model: The primary network: a vision model that torch.fx can trace and that takes one tensor. Local losses are
            computed from what the model returns: logits (N, classes), or a map of logits (N, classes, H, W).
        method: The learning rule: ``"auglocal"`` (Ma et al., ICLR 2024), ``"dgl"`` (Belilovsky et al., ICML 2020),
            ``"predsim"`` (Nokland and Eidnes, ICML 2019), ``"infopro"`` (Wang et al., ICLR 2021),
            ``"auglocal+infopro"`` (AugLocal with InfoPro's reconstruction loss), ``"mlaan"``, ``"dgl+mlaan"`` and
            ``"infopro+mlaan"`` (Zhang et al., AAAI 2025), ``"gn-dgl"`` (Patel et al., 2023; trains
            ``local.primary``), ``"bp"`` (plain backpropagation), or ``"checkpoint"`` (backpropagation that recomputes
            activations layer by layer); or a :class:`localize.methods.Method`, a rule of your own.
        d: Depth of auxiliary networks in trainable layers, the classifier included; for methods that have a depth.
        example_inputs: A tensor of the input's shape, batch first; only its shape and dtype are used. By default the
            input size of the model's own configuration (timm's ``pretrained_cfg``), else (2, 3, 224, 224).
        modules: K, to group the L local layers into K local modules; or the number of layers of each module. By default
            the method decides.
        balance: What the K modules share evenly: ``"layers"``, ``"macs"``, or ``"activations"`` (bytes of outputs).
        max_cut: How many tensors may cross from one local module to the next. By default one, if that gives at least 8
            layers and none with more than half of the MACs; else the smallest number up to 16 that does. All tensors
            that cross are detached. Densely connected networks need several.
        granularity: What a local layer is: ``"minimal"``, the smallest units; ``"block"``, which keeps the blocks that
            a network lists whole, such as transformer blocks; a module class, or several, whose modules stay whole; or
            the list of the modules (by name) after which to cut.
        output: The primary output, where the model returns several values in train mode: a key or attribute, an index,
            or several of them from the outside in. By default the only value, or the one that corresponds to the only
            value in eval mode. Other values of its shape (auxiliary classifiers) are trained with the last local
            module, by the same criterion.
        verify: Whether the captured graph is compared with the model, bit for bit, by running both in train mode on
            random input of the example's shape. Skipped where parameters have no values (meta or fake tensors).
        criterion: Loss from (logits, target) to a scalar; by default cross-entropy.
        outputs: Number of logits of the local losses, where the model itself returns no logits, such as the backbone of
            a detector. ``criterion`` is then the loss of these logits alone.
        output_criterion: Loss of the last local module, from (what the model returns, target) to a scalar, in the
            model's own containers; by default ``criterion`` of the primary output. If it is an ``nn.Module``, its
            parameters are trained by this loss, and are among ``local.parameters()``.
        seed: Seed of the auxiliary networks' weights; torch's global generator is then neither read nor advanced.
        recompute: Activations that the backward pass computes again instead of keeping them, which takes less memory
            and more time: inside of local layers (``"layers"``), inside of auxiliary networks' blocks (``"blocks"``),
            or in these only after norms and activation functions (``"norms"``, which costs no convolution); True for
            the first two. Losses, gradients and statistics stay bit-identical.
        memory_budget: Most memory that a training step may take, such as ``"8GB"``, counted in tensors; workspaces of
            kernels come on top. Local modules over the budget recompute activations, as ``recompute`` does, and no more
            than needed; :class:`MemoryBudget` allows further means. The plan says what was done and what it costs.
        batch_size: Number of samples in a step, for ``memory_budget``.
        runtime: How steps run: ``"plain"``, one PyTorch operation after the other; ``"compile"``, equal blocks compiled
            once; ``"auto"``, what is faster on the device (``print(local.runtime)`` says what that is); or a
            :class:`localize.Runtime`. It is not part of the plan: set ``local.runtime`` at any time.
        **options: Further options of the method: fields of its ``Options``, such as those of
            :class:`localize.methods.auglocal.options.Options`. ``localize-cli methods NAME`` lists them.

    Returns:
        A ``torch.fx.GraphModule`` that shares its parameters with ``model``.

    Raises:
        CaptureError: The model cannot be captured as a graph, or ``verify`` finds that the graph is not the model.
        PartitionError: The network has no local layers, or ``modules``, ``max_cut`` or ``granularity`` do not fit it.
        SplitError: The method splits the width of layers ("gn-dgl"), and a layer cannot be split.
        MethodError: The method or an option is unknown, or does not fit the model, ``criterion`` or ``outputs``.
        InputError: ``example_inputs`` is not one tensor with a batch dimension.
        BudgetError: The means that ``memory_budget`` allows do not suffice.
        OptionError: ``runtime`` is not a known name or a :class:`localize.Runtime`.
    """
    require_module(model)
    how = read_runtime(runtime)
    rule = chosen_method(method, d, options)
    check_balance(balance, modules)
    anew = check_recompute(recompute)
    budget = read_budget(memory_budget, batch_size)

    def analysed(primary: nn.Module, like: Network | None = None) -> Network:
        return analyse(
            primary,
            *input_of(model, example_inputs),
            leaf_policy(),
            max_cut=max_cut,
            granularity=granularity,
            output=output,
            joint=output_criterion is not None,
            verify=verify,
            like=like,
        )

    network = analysed(model)
    last = outputs is None and network.shapes.output.layout == "NHWC"
    criteria = Criteria(criterion or (cross_entropy_of_last if last else cross_entropy), output_criterion)
    prediction = _prediction(network, rule, output, outputs, criteria)
    context = _context(network, prediction, modules, balance)
    draw = Initializer(None if seed is None else torch.Generator().manual_seed(seed))
    changed = rule.prepare(context, draw)
    if changed is not None:
        # The groups are those that the change was made for; costs, which they may have been balanced by, are others.
        sizes = None if context.groups is None else [len(layers) for layers in context.groups]
        context = _context(analysed(changed, network), prediction, sizes, "layers")
    original = None if changed is None else network

    def planned(settings: ChosenMethod, sizes: Sequence[int] | None) -> Candidate:
        like = context if sizes is None else _context(context.network, prediction, sizes, "layers")
        plan = make_plan(like, settings, original)
        compiled = Compiled(method=settings, context=like, criteria=criteria, original=original, emit=emit)
        return Candidate(compiled, with_recompute(plan, [anew] * len(plan.modules)) if anew else plan)

    chosen = planned(rule, None)
    if budget is not None:

        def forecasts(candidate: Candidate, step: Schedule) -> MemoryForecast:
            return forecast_of(candidate.compiled, candidate.plan, step, budget=budget)

        chosen = fit(chosen, budget, forecasts, planned if original is None else None)
    borders = chosen.compiled.network.partition.candidates
    plan = dataclasses.replace(chosen.plan, forecaster=Forecaster(chosen.compiled), borders=borders)
    local = emit(plan, chosen.compiled, draw)
    expect("codegen", spec.generated(local.graph, len(plan.modules)))
    local.runtime = how
    return local


def chosen_method(method: str | Method[Any], d: int, options: Mapping[str, object]) -> ChosenMethod:
    """Return a method with its options.

    Args:
        method: Name of a rule of this package, or a rule from outside; the latter's auxiliary networks are tried out.
        d: Depth, for methods that have one.
        options: Further options by name.

    Raises:
        MethodError: The method or an option is unknown, or the method refuses an option's value.
    """
    if not isinstance(method, (str, Method)):
        raise MethodError(f"method must be a name or a localize.methods.Method, got {type(method).__name__}")
    rule = get_method(method) if isinstance(method, str) else method
    return rule.choose(d, options, trial=isinstance(method, Method))


def _context(
    network: Network, prediction: Prediction, modules: int | Sequence[int] | None, balance: Balance
) -> Context:
    """Collect what a method plans on.

    Raises:
        PartitionError: ``modules`` does not fit the number of local layers.
    """
    groups = groups_of(network.layers, modules, balance)
    return Context(network, Adapter(network), prediction, groups, partial(merging, network))


def _prediction(
    network: Network, method: ChosenMethod, output: Output | None, outputs: int | None, criteria: Criteria
) -> Prediction:
    """Decide what local losses are computed from.

    Raises:
        MethodError: The model returns several values and none is chosen, or the criteria do not fit the prediction.
    """
    local = method.local
    returned = prediction_of(network.shapes.output)
    if isinstance(criteria.local, nn.Module) and any(p.requires_grad for p in criteria.local.parameters()):
        raise MethodError(
            "criterion has trainable parameters",
            why="every local module has its own copy of that loss, and none of them owns the parameters",
            remedy="Make them buffers, or move them into output_criterion, the loss of the last module",
        )
    if outputs is None:
        if local and criteria.output is not None and output is None and network.captured.heads:
            raise MethodError(
                f"ambiguous output: the model returns {1 + len(network.captured.heads)} values",
                why="local losses are computed from one of them",
                remedy="Give outputs=, the number of logits of local losses, with criterion=; or output=, the value "
                f"that holds logits. {choices(network.captured.structure)}",
            )
        if local:
            require_logits(returned, network.shapes.output, method.name)
        return returned
    wanted = prediction_of(network.shapes.output, outputs)
    if criteria.output is None and (wanted != returned or network.captured.heads):
        raise MethodError(
            f"outputs={outputs} is for local losses, and the model returns {network.shapes.output}",
            why="criterion, a loss of the former, does not fit the latter",
            remedy="Give output_criterion=, the loss of what the model returns",
        )
    return wanted
