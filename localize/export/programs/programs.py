"""Export a localized model as a program of ``torch.export``: the primary network alone, or with all predictions.

Nearly all of the time goes into tracing again for decomposition with the batch size as a symbol: 10 s for MobileNetV2
on one core, against 2 s for ``torch.export`` itself.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from localize.compiler.emit import emit
from localize.export.programs.module_chain import chain_of, module_key, plainly, returning, tensor_names, tensors
from localize.runtime.exporting import ExportError, ViewKind
from localize.runtime.local_graph import LocalGraphModule
from localize.runtime.predictions import in_eval_mode
from passes.codegen.generate import fits_code
from passes.common.fake_tensors import has_values
from passes.common.restore import same_randomness, untouched
from passes.errors import first_line

Form = Callable[[Any], Any]
"""Function that is applied to what a model returns."""
OTHER_BATCH = 5
"""Size of the batch by which a program is tested for other batch sizes."""
_LOUD = ("torch.onnx", "torch.export", "torch._dynamo", "torch.fx", "onnxscript", "onnx_ir")
"""Loggers of the exporters, which are kept silent: the errors raised here tell what failed."""


@dataclass(frozen=True, slots=True)
class Program:
    """An exported program, in eval mode."""

    exported: ExportedProgram
    """The program itself."""
    outputs: tuple[str, ...]
    """Name of each tensor that the program returns."""
    chain: ExportedProgram | None
    """Program that runs one local module after the other. It is ``exported`` itself, or another program with the same
    outputs up to rounding, or None if no such program exists."""
    why_static: str | None
    """Reason why the program takes batches of one size alone; None if it takes any size."""


def export_program(local: LocalGraphModule, view: ViewKind, *, tensors_alone: bool = False) -> Program:
    """Export a localized model in eval mode, for any batch size if torch can; else warn, and export for one size.

    The model keeps its modes, values and hooks, and torch its state of random numbers.

    Args:
        local: The localized model.
        view: ``"primary"``, the primary network's own forward; or ``"local"``, all predictions
            (:meth:`LocalGraphModule.predictions`).
        tensors_alone: Whether the program returns its tensors alone, without containers and numbers.

    Raises:
        ExportError: The weights have no values, or torch cannot export the model.
        LocalizeError: The model has no predictions; see :meth:`LocalGraphModule.predictions`.
    """
    require_values(local)
    require_names(local)
    with silent(), same_randomness():
        here = on_cpu(local)
        with untouched(here, hooks=True):
            x = example(here, 2)
            made = _all_predictions(here, x) if view == "local" else _primary_alone(here, x, tensors_alone)
    if made.why_static is not None:
        warnings.warn(
            f"exported for batches of {_batch(local)} images alone, as the example inputs have: with a batch of any "
            f"size torch.export says: {made.why_static}",
            stacklevel=2,
        )
    return made


def _primary_alone(local: LocalGraphModule, x: Tensor, tensors_alone: bool) -> Program:
    with in_eval_mode(local.primary):
        names = tensor_names(local.primary(x), "output")
    whole, why = _exported(local, local.primary, x, tensors if tensors_alone else plainly)
    return Program(whole, tuple(names), _chained(local, x, dynamic=why is None), why)


def _chained(local: LocalGraphModule, x: Tensor, *, dynamic: bool) -> ExportedProgram | None:
    """Export the primary network as a chain of local modules, which only serves to assign operations to modules."""
    try:
        chain = chain_of(local, x, auxiliary=False)
        x = x if dynamic else example(local, _batch(local))
        return None if chain is None else _export(chain, x, dynamic=dynamic)
    except Exception:
        # Operations are then assigned to local modules by their names and order.
        return None


def _all_predictions(local: LocalGraphModule, x: Tensor) -> Program:
    *early, output = local.predictions(x)
    names = [name for k, logits in enumerate(early) for name in tensor_names(logits, f"{module_key(k)}.logits")]
    chain = chain_of(local, x, auxiliary=True)
    if chain is None:
        raise ExportError(
            "the predictions of local modules cannot be written as one graph",
            why=f"in eval mode {local.plan.model} returns values that it does not compute in train mode",
            remedy='Write the primary network alone: view="primary"',
        )
    whole, why = _exported(local, chain, x)
    return Program(whole, (*names, *tensor_names(output, "output")), whole, why)


def _exported(
    local: LocalGraphModule, module: nn.Module, x: Tensor, form: Form = plainly
) -> tuple[ExportedProgram, str | None]:
    """Export a module for any batch size; else for one, and return the reason too.

    Raises:
        ExportError: Torch cannot export the module for the batch size of the example inputs either.
    """
    try:
        whole = _export(module, x, form, dynamic=True)
        if _gives_the_same(whole, module, example(local, OTHER_BATCH)):
            return whole, None
        why = f"with {OTHER_BATCH} images the program gives other values than the model"
    except Exception as error:
        why = _said(error)
    try:
        return _export(module, example(local, _batch(local)), form, dynamic=False), why
    except Exception as error:
        raise failed(local, "torch.export", error) from error


def _gives_the_same(whole: ExportedProgram, module: nn.Module, x: Tensor) -> bool:
    """Return whether a program gives the same outputs as the module for a batch of another size, up to rounding.

    A forward pass that asks for the type of a size (``type(n) is int``) exports without an error to a program that is
    wrong for other sizes.
    """
    with in_eval_mode(module):
        pairs = zip(tensors(whole.module()(x)), tensors(module(x)), strict=True)
        return all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True) for a, b in pairs)


def _export(module: nn.Module, x: Tensor, form: Form = plainly, *, dynamic: bool) -> ExportedProgram:
    with in_eval_mode(module), returning(module, form):
        return torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch")},) if dynamic else None)


def example(local: LocalGraphModule, batch: int) -> Tensor:
    """Return a batch of random inputs of the planned size and dtype, the same every time."""
    spec = local.plan.input
    shape = (batch, *spec.shape[1:])
    generator = torch.Generator().manual_seed(0)
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)


def _batch(local: LocalGraphModule) -> int:
    return local.plan.input.shape[0]


def require_names(local: LocalGraphModule) -> None:
    """Check that torch can export the names of the model; files with other names cannot be read again.

    Raises:
        ExportError: A module, parameter or buffer has a name with quotes, backslashes, control characters or keywords.
    """
    modules = (name for name, _ in local.primary.named_modules())
    tensors_held = (
        name for kind in (nn.Module.named_parameters, nn.Module.named_buffers) for name, _ in kind(local.primary)
    )
    for name in (*modules, *tensors_held):
        if not fits_code(name):
            raise ExportError(
                f"a name of the model is {name!r}",
                why="torch.export writes names into Python code as they are",
                remedy="Give it a name without quotes, backslashes, control characters and keywords of Python",
            )


def require_values(local: LocalGraphModule) -> None:
    """Check that all weights have values.

    Raises:
        ExportError: A parameter or buffer is on the meta device, fake, or not initialized.
    """
    named = (*local.named_parameters(), *local.named_buffers())
    missing = next((name for name, tensor in named if not has_values(tensor)), None)
    if missing is not None:
        raise ExportError(
            "the model has no weights that could be written",
            where=missing,
            why="it was built on the meta device, where tensors have shapes and no values",
            remedy="Build it on the CPU, load its weights, and localize that",
        )


def on_cpu(local: LocalGraphModule) -> LocalGraphModule:
    """Return the localized model if it is on the CPU, else a copy there, compiled again from the same plan."""
    if all(tensor.device.type == "cpu" for tensor in (*local.parameters(), *local.buffers())):
        return local
    return copy_on_cpu(local)


def copy_on_cpu(local: LocalGraphModule) -> LocalGraphModule:
    """Copy a localized model to the CPU, with the constants of its graph."""
    held = (*local.primary.parameters(), *local.primary.buffers())
    memo: dict[int, Any] = {}
    for tensor in held:
        moved = tensor.detach().cpu().clone()
        memo[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    compiled = local.compiled
    constants = {name: value.cpu() for name, value in compiled.network.captured.constants.items()}
    captured = replace(compiled.network.captured, constants=constants)
    on_cpu = compiled.on(replace(compiled.network, captured=captured))
    twin = emit(local.plan, on_cpu.over(copy.deepcopy(local.primary, memo), None))
    for old, new in zip(local.local_modules, twin.local_modules, strict=True):
        new.load_state_dict(old.state_dict())
        new.train(old.training)
    return twin


def failed(local: LocalGraphModule, tool: str, error: BaseException) -> ExportError:
    """Return the error for a tool of torch that cannot take the model."""
    return ExportError(
        f"{tool} cannot take the model",
        where=local.plan.model,
        why=_said(error),
        remedy='Formats that show the network, such as "html" and "svg", take every model that was localized',
    )


def _said(error: BaseException) -> str:
    """Shorten an error to one line: the first of the reasons that it lists, or else its first line."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines()]
    listed = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
    # The rest is advice on the arguments of torch.export, which users of localize do not set.
    return listed[0].partition(". ")[0] if listed else f"{type(cause).__name__}: {first_line(cause)}"


@contextmanager
def silent() -> Iterator[None]:
    """Keep torch's exporters from warning and logging, for the time of the context."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
