"""Predictions of local modules in inference: the early exits of a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from localize.plan.prediction import Prediction
from localize.runtime.local_module import LocalModule
from passes.codegen.eval_mode import as_in_inference
from passes.codegen.generate import returned
from passes.errors import LocalizeError
from passes.structure import Structure


@contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Put all modules in eval mode and record no gradients inside; afterwards restore the mode of each."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def predictions(modules: Sequence[LocalModule], primary: nn.Module, x: torch.Tensor) -> tuple[Any, ...]:
    """Return the prediction of each local module, in its present mode; the last is the primary network's output."""
    early = []
    for module, results in _chain(modules[:-1], x):
        with as_in_inference(module):
            early.append(module.logits(*results[: module.reads]))
    return (*early, primary(x))


def _chain(modules: Sequence[LocalModule], x: torch.Tensor) -> Iterator[tuple[LocalModule, tuple[Any, ...]]]:
    """Run modules one after the other, as in inference; yield each with the values of its outputs."""
    values: dict[str, object] = {modules[0].inputs[0]: x} if modules else {}
    for module in modules:
        results = returned(module.outputs, module.infer(*[values[name] for name in module.inputs]))
        values.update(zip(module.outputs, results, strict=True))
        yield module, results


def ensemble(predicted: Sequence[Any], spec: Prediction) -> torch.Tensor:
    """Return the weighted mean of class probabilities; each prediction has twice the weight of the one before it.

    >>> logits = torch.tensor([[0.0, 0.0]])
    >>> ensemble([logits, logits], Prediction("vector", 2))
    tensor([[0.5000, 0.5000]])

    Args:
        predicted: Logits of each depth, from input to output.
        spec: Form of the logits.

    Returns:
        Probabilities of the logits' shape.

    Raises:
        LocalizeError: The model's output is not a tensor of logits, or predictions differ in shape.
    """
    shapes = {tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits) for logits in predicted}
    if spec.kind == "other" or len(shapes) > 1 or not isinstance(predicted[-1], torch.Tensor):
        raise LocalizeError(
            "local modules and the model do not predict the same classes",
            why=f"the model gives {_described(predicted[-1])}, and local modules {spec}",
            remedy="Use predictions(), which gives each by itself",
        )
    dim = -1 if spec.layout == "NHWC" else 1
    total: torch.Tensor = torch.zeros_like(predicted[-1])
    for depth, logits in enumerate(predicted):
        total += 2**depth * logits.softmax(dim)
    return total.div(float(2 ** len(predicted) - 1))


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"


def require_inference(modules: Sequence[LocalModule], structure: Structure, x: torch.Tensor, output: object) -> None:
    """Refuse a model whose local modules, run one after the other in eval mode, do not compute what it computes.

    Args:
        modules: All local modules.
        structure: Structure of the model's output.
        x: An input.
        output: The model's own output for ``x``.

    Raises:
        LocalizeError: The last module's output differs from ``output``.
    """
    *_, (last, results) = _chain(modules, x)
    rebuilt = structure.rebuild(results[: last.reads])
    pairs = zip(_tensors(rebuilt)[:1], _tensors(output)[:1], strict=False)
    if not all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs):
        raise LocalizeError(
            "local modules do not give in eval mode what the model gives",
            why="the graph was captured in train mode, and the model's forward takes another path in eval mode",
            remedy="Train as before, and run the model itself; it has no predictions at local modules",
        )


def _tensors(value: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
