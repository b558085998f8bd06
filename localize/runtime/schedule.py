"""How the training steps of a localized network run: the options, what they mean on its device, and their hooks."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from localize.runtime.compiled import Artefacts, CompiledRegions
from localize.runtime.local_module import LocalModule
from localize.runtime.options import PLAIN, Runtime, read_runtime


@dataclass(frozen=True, slots=True)
class RuntimeChoice:
    """The options that hold on one type of device."""

    runtime: Runtime
    """The options. None of them is left open (None)."""
    notes: tuple[str, ...] = ()
    """One line for each option that was chosen by device, then ``missing``."""
    missing: tuple[str, ...] = ()
    """One line for each option that was asked for and is not available, with the reason."""


def choose(asked: Runtime, device: str, fault: str | None = None) -> RuntimeChoice:
    """Settle the options that were left open, and turn off those that are not available.

    >>> print(choose(Runtime(channels_last=None), "cpu").runtime)
    Runtime(channels_last=True)

    Args:
        asked: The options; None leaves one to the device.
        device: Type of the device, such as ``"cuda"``.
        fault: Why the network cannot be trained with channels last on a CPU
            (:func:`localize.runtime.layout.channels_last_fault`).
    """
    notes, missing = [], []
    changes: dict[str, Any] = {}
    preferred = dict(_PREFERRED.get(device, {}))
    if device != "cpu":
        fault = None
    if fault is not None:
        preferred["channels_last"] = (False, fault)
    for name in (field.name for field in fields(asked)):
        if getattr(asked, name) is None and name != "amp":  # amp=None means no autocast
            value, why = preferred.get(name, (False, f"not measured on {device} devices"))
            changes[name] = value
            notes.append(f"{name} {'on' if value else 'off'}: {why}")
    chosen = replace(asked, **changes)
    for name, why in _unavailable(chosen, device, fault):
        changes[name] = False
        missing.append(f"{name} off: {why}")
    if fault is not None and chosen.compile and chosen.backend == "inductor":
        notes.append(f"compiled code keeps the contiguous layout: {fault}")
    return RuntimeChoice(replace(asked, **changes), (*notes, *missing), tuple(missing))


_PREFERRED: dict[str, dict[str, tuple[bool, str]]] = {
    "cpu": {
        "compile": (False, "convolutions take most of a step, and compiled ones are the same: no faster, measured"),
        "channels_last": (True, "0.8 of the plain schedule's time, measured on CIFAR ResNets"),
        "fused": (True, "one kernel updates all parameters"),
    },
    "cuda": {
        "compile": (True, "small kernels' launches take most of a step, and compiled blocks have fewer (not measured)"),
        "channels_last": (True, "tensor cores convolve in this layout (not measured)"),
        "fused": (True, "one kernel updates all parameters"),
    },
}
"""The choice for each option that is left open, and its reason, by type of device.

Measured on 2 cores of an x86-64 with torch 2.15 (2026-11-21), against the plain step: with channels last 0.79 of its
processor time for ResNet-20 at batch 64 and 128, 0.85 and 0.80 for ResNet-32; compiled 1.07 for ResNet-20 (d=4, batch
64, one thread), compiled with channels last 1.03.
"""


class Schedule:
    """How the steps of one network run. ``print`` it to see the options that hold on its device, and why.

    Args:
        asked: ``"plain"``, ``"auto"``, ``"compile"``, or options.
        artefacts: Compiled code of a copy of the network, to use further.
        fault: Why the network cannot be trained with channels last on a CPU.

    Raises:
        OptionError: ``asked`` is neither a known name nor a Runtime.
    """

    def __init__(
        self, asked: str | Runtime = PLAIN, artefacts: Artefacts | None = None, fault: str | None = None
    ) -> None:
        self.asked = read_runtime(asked)
        self._fault = fault
        self.artefacts = artefacts or Artefacts(self.asked.backend, fault)
        self.regions = CompiledRegions(self.artefacts)
        self._choices: dict[str, RuntimeChoice] = {}
        self._laid_out = False
        self._device = "cpu"

    @property
    def is_plain(self) -> bool:
        """True if all options are the default ones."""
        return self.asked == PLAIN

    def on(self, device: str) -> RuntimeChoice:
        """Return the options that hold on a type of device; warn the first time of each that is not available."""
        if device not in self._choices:
            self._choices[device] = choose(self.asked, device, self._fault)
            for note in self._choices[device].missing:
                warnings.warn(f"runtime: {note}", stacklevel=2)
        return self._choices[device]

    def start(self, network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Prepare a step on input ``x``, and return the input in the layout of the runtime."""
        self._device = x.device.type
        if self.is_plain or isinstance(x, FakeTensor):  # fake tensors take no step of their own
            return x
        runtime = self.on(self._device).runtime
        if runtime.channels_last:
            self.lay_out(network)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        if runtime.compile:
            self.regions.start(x)
        return x

    @contextlib.contextmanager
    def running(self, modules: Sequence[LocalModule]) -> Iterator[None]:
        """Apply the options to the forward pass and loss of a local module, which run inside.

        Args:
            modules: Every local module that runs: the module itself, and those that its cascaded loss reaches.
        """
        if self.is_plain:
            yield
            return
        runtime = self.on(self._device).runtime
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.autocast())
            if runtime.compile:
                stack.enter_context(self.regions.installed(modules))
            yield

    def autocast(self) -> AbstractContextManager[object]:
        """Return the autocast region that forward passes run in."""
        dtype = self.dtype
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._device, dtype)

    @property
    def dtype(self) -> torch.dtype | None:
        """Type that forward passes are autocast to; None for none."""
        return None if self.asked.amp is None else getattr(torch, self.asked.amp)

    def lay_out(self, network: nn.Module) -> None:
        """Put the weights in memory with channels last, once."""
        if not self._laid_out:
            network.to(memory_format=torch.channels_last)
            self._laid_out = True

    def leave(self, network: nn.Module) -> None:
        """Put the weights back in the contiguous layout, if they were laid out otherwise."""
        if self._laid_out:
            network.to(memory_format=torch.contiguous_format)
            self._laid_out = False

    def copied(self) -> Schedule:
        """Return the schedule of a copy of the network. Both use the same compiled code."""
        twin = Schedule(self.asked, self.artefacts, self._fault)
        twin._laid_out = self._laid_out
        return twin

    def describe(self, device: str | None = None) -> str:
        """Return the options that hold, with one line for each that was chosen, is not available, or compiles.

        Args:
            device: Type of the device; by default that of the last step.
        """
        choice = self.on(device or self._device)
        lines = [f"{choice.runtime} on {device or self._device}", *(f"  {note}" for note in choice.notes)]
        if choice.runtime.compile:
            regions, structures = self.regions.count()
            lines.append(f"  {regions} regions of {structures} structures, {self.artefacts.count} compiled artefacts")
            lines += [f"  {name} runs uncompiled: {why}" for name, why in self.artefacts.eager.items()]
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.describe()


def _unavailable(chosen: Runtime, device: str, fault: str | None) -> Iterator[tuple[str, str]]:
    """Yield each option that is on and not available on a device, with the reason."""
    if chosen.channels_last and fault is not None:
        yield "channels_last", fault
    if chosen.compile and chosen.backend == "inductor":
        why = _no_compiler(device)
        if why:
            yield "compile", why


def _no_compiler(device: str) -> str | None:
    """Return why ``torch.compile`` cannot compile for a device; None if it can."""
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "torch.compile needs a C++ compiler (g++ or clang++), and none was found"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else "torch.compile needs Triton on this device, and it was not found"
