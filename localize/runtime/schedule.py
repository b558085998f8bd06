"""How the steps of a localized network run: what was asked for, what that means on its device, and the hooks for it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from localize.runtime.compiled import Artefacts, CompiledRegions
from localize.runtime.layout import channels_last_fault
from localize.runtime.local_module import LocalModule
from localize.runtime.options import PLAIN, Runtime, read_runtime
from localize.runtime.streams import Streams


@dataclass(frozen=True, slots=True)
class Choice:
    """What runs on a kind of device."""

    runtime: Runtime
    """No option is None."""
    notes: tuple[str, ...] = ()
    """What was chosen and why, and what was asked for and cannot be had."""
    missing: tuple[str, ...] = ()
    """Those of the notes that say that something cannot be had."""


def choose(asked: Runtime, device: str, fault: str | None = None) -> Choice:
    """What a runtime means on a device.

    Args:
        asked: The options.
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
        if getattr(asked, name) is None and name != "amp":
            value, why = preferred.get(name, (False, f"nothing is known of {device} devices"))
            changes[name] = value
            notes.append(f"{name} {'on' if value else 'off'}: {why}")
    chosen = replace(asked, **changes)
    for name, why in _absent(chosen, device, fault):
        changes[name] = False
        missing.append(f"{name} off: {why}")
    return Choice(replace(asked, **changes), (*notes, *missing), tuple(missing))


_PREFERRED: dict[str, dict[str, tuple[bool, str]]] = {
    "cpu": {
        "compile": (False, "convolutions take most of a step, and compiled ones are the same: no faster, measured"),
        "channels_last": (True, "0.8 of the plain schedule's time, measured on CIFAR ResNets"),
        "fused": (True, "one kernel updates all parameters"),
        "streams": (False, "for CUDA devices"),
    },
    "cuda": {
        "compile": (True, "small kernels' launches take most of a step, and compiled blocks have fewer (not measured)"),
        "channels_last": (True, "tensor cores convolve in this layout (not measured)"),
        "fused": (True, "one kernel updates all parameters"),
        "streams": (False, "holds two modules' activations at a time, and memory is what local learning saves"),
    },
}
"""For each option what to do if nothing is said, and why."""


class Schedule:
    """How steps run. ``print`` it to see what was chosen for the device, and why.

    Args:
        asked: ``"plain"``, ``"auto"``, ``"compile"``, or options.
        artefacts: Compiled code to go on with.
        fault: Why the network cannot be trained with channels last on a CPU.

    Raises:
        OptionError: There is no such runtime.
    """

    def __init__(
        self, asked: str | Runtime = PLAIN, artefacts: Artefacts | None = None, fault: str | None = None
    ) -> None:
        self.asked = read_runtime(asked)
        self._fault = fault
        self.artefacts = artefacts or Artefacts(self.asked.backend)
        self.regions = CompiledRegions(self.artefacts)
        self._choices: dict[str, Choice] = {}
        self._laid_out = False
        self._streams: Streams | None = None
        self._sides: Streams | None = None
        self._device = "cpu"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is asked for."""
        return self.asked == PLAIN

    def on(self, device: str) -> Choice:
        """What runs on a kind of device; warns the first time of what cannot be had."""
        if device not in self._choices:
            self._choices[device] = choose(self.asked, device, self._fault)
            for told in self._choices[device].missing:
                warnings.warn(f"runtime: {told}", stacklevel=2)
        return self._choices[device]

    def start(self, network: nn.Module, x: torch.Tensor, y: Any) -> torch.Tensor:
        """Called when a step begins; returns the input in the layout that is asked for."""
        self._device = x.device.type
        self._streams = None
        if self.is_plain or isinstance(x, FakeTensor):  # fake tensors take no step of their own
            return x
        runtime = self.on(self._device).runtime
        if runtime.channels_last:
            self.lay_out(network)
            if x.ndim == 4:
                x = x.contiguous(memory_format=torch.channels_last)
        if runtime.compile:
            self.regions.start(x)
        if runtime.streams:
            # The same in each step: memory that was freed belongs to the stream that it was taken on.
            self._streams = self._sides = self._sides or Streams()
            self._streams.start(x, y)
        return x

    @contextlib.contextmanager
    def running(self, modules: Sequence[LocalModule], values: Mapping[str, Any]) -> Iterator[None]:
        """Around forward pass and loss of a module.

        Args:
            modules: All that run in it.
            values: What earlier modules made, by name.
        """
        if self.is_plain:
            yield
            return
        runtime = self.on(self._device).runtime
        with contextlib.ExitStack() as stack:
            if self._streams is not None:
                stack.enter_context(self._streams.module(*values.values()))
            stack.enter_context(self.autocast())
            if runtime.compile:
                stack.enter_context(self.regions.installed(modules))
            yield

    def hand_over(self, *values: Any) -> None:
        """Called with what a module gave, before the caller sees it."""
        if self._streams is not None:
            self._streams.hand_over(*values)

    def autocast(self) -> AbstractContextManager[object]:
        """The region that forward passes run in."""
        dtype = self.dtype
        return contextlib.nullcontext() if dtype is None else torch.autocast(self._device, dtype)

    @property
    def dtype(self) -> torch.dtype | None:
        """What forward passes are cast to."""
        return None if self.asked.amp is None else getattr(torch, self.asked.amp)

    def lay_out(self, network: nn.Module) -> None:
        """Puts the weights in the layout that is asked for, once."""
        if not self._laid_out:
            network.to(memory_format=torch.channels_last)
            self._laid_out = True

    def leave(self, network: nn.Module) -> None:
        """Puts the weights back in the usual layout."""
        if self._laid_out:
            network.to(memory_format=torch.contiguous_format)
            self._laid_out = False

    def again(self) -> Schedule:
        """The same for a copy of the network, with the same compiled code."""
        twin = Schedule(self.asked, self.artefacts, self._fault)
        twin._laid_out = self._laid_out
        return twin

    def describe(self, device: str | None = None) -> str:
        """What runs, and why: one line for each thing chosen, refused or compiled.

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


class Scheduled:
    """What has a runtime: a network."""

    _schedule = Schedule()
    """The plain one serves all."""

    @property
    def runtime(self) -> Schedule:
        """How steps run, and why so: ``print(local.runtime)``. Set it to a name or a :class:`localize.Runtime`."""
        return self._schedule

    @runtime.setter
    def runtime(self, asked: str | Runtime) -> None:
        options = read_runtime(asked)
        if options != self._schedule.asked:
            assert isinstance(self, nn.Module)
            self._schedule.leave(self)
            self._schedule = Schedule(options, fault=channels_last_fault(self))


def _absent(chosen: Runtime, device: str, fault: str | None) -> Iterator[tuple[str, str]]:
    """Options that cannot be had on a device, and why."""
    if chosen.channels_last and fault is not None:
        yield "channels_last", fault
    if chosen.compile and chosen.backend == "inductor":
        why = _no_compiler(device)
        if why:
            yield "compile", why
    if chosen.streams and device != "cuda":
        yield "streams", f"for CUDA devices, and this is {device}"


def _no_compiler(device: str) -> str | None:
    """Why nothing can be compiled for a device, if so."""
    if device == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return "torch.compile needs a C++ compiler (g++ or clang++), and there is none"
        return None
    from torch.utils._triton import has_triton

    return None if has_triton() else "torch.compile needs Triton on this device, and there is none"
