"""Peak memory of a training step, counted without running it: on fake tensors, which have a shape but no content."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from localize.compiler.emit import emit
from localize.runtime.local_graph import LocalGraphModule
from passes.common.fake_tensors import fake_mode

Step = Callable[[nn.Module, Tensor, Tensor], None]
"""Forward and backward of one batch: leaves the gradients on the parameters."""

WARMUP_STEPS = 1
"""Steps before the measured one: the first makes the optimizer's state, which lives through every later step."""


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors alive, at every operation.

    A storage counts from the operation that returns it until its last user lets go of it; views count nothing. What an
    operation allocates and frees inside itself (workspaces of a convolution) is not seen, nor is fragmentation.

    Attributes:
        live: Bytes alive now.
        peak: The most bytes alive so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def track(self, *values: Any) -> None:
        """Counts tensors that were there before."""
        for leaf in tree_leaves(values):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.live)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.track(result)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        # _cdata names the storage itself; Python objects for one storage may come and go with equal id().
        key = storage._cdata
        size = storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key)
        self.live += size - self._sizes.get(key, 0)  # a storage may have been resized since it was counted
        self._sizes[key] = size

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def peak_step_bytes(
    module: nn.Module,
    batch: int,
    *,
    image_shape: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    step: Step | None = None,
) -> int:
    """Peak bytes of live tensors in one training step: forward, backward and optimizer update, momentum included.

    Nothing is computed and no GPU is needed: the step runs on fake tensors, over a fake copy of the module, in training
    mode. The user's module is left alone. The figure is exact for tensors, the same on every machine, and leaves out
    the workspaces of kernels and what an allocator wastes.

    Args:
        module: A localized model, or a plain one (trained by backpropagation of the cross-entropy).
        batch: Images in the batch.
        image_shape: Shape of one image, C x H x W.
        classes: Number of classes.
        optimizer: Makes the optimizer; by default SGD with Nesterov momentum, as AugLocal (ICLR 2024), appendix A.2.
        step: Another forward and backward, for a loop of one's own.

    Returns:
        Bytes. Parameters, buffers, gradients, optimizer state and the batch count too.
    """
    with fake_copy(module) as replica, torch.enable_grad():
        replica.train()
        images = torch.empty(batch, *image_shape)
        plan: Any = getattr(module, "plan", None)
        # One label an image, or one a pixel.
        labels = torch.zeros((batch, *(plan.prediction.size if plan else ())), dtype=torch.int64)
        parameters = [p for p in replica.parameters() if p.requires_grad]
        updates = (optimizer or _nesterov)(parameters)
        run = step or train_step
        counter = LiveBytes()
        counter.track(list(replica.parameters()), list(replica.buffers()), images, labels)
        with counter:
            for index in range(WARMUP_STEPS + 1):
                if index == WARMUP_STEPS:
                    counter.peak = counter.live
                run(replica, images, labels)
                updates.step()
                updates.zero_grad(set_to_none=True)
        return counter.peak


def train_step(module: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Forward and backward of one batch: local module by local module if there are any, else backpropagation."""
    steps: Any = getattr(module, "steps", None)
    if steps is not None:
        for output in steps(images, labels):
            output.loss.backward()
    else:
        F.cross_entropy(module(images), labels).backward()


@contextmanager
def fake_copy(module: nn.Module) -> Iterator[nn.Module]:
    """A copy of a module whose parameters and buffers are fake CPU tensors, inside a mode where all new tensors are.

    CPU, because fake GPU tensors cannot run backward on a machine without a GPU. Tied parameters stay tied.
    """
    replica = meta_copy(module)
    # Constants that a forward makes or holds as plain attributes stay real; the mode takes them as they are.
    with fake_mode():
        fill_with_fakes(replica)
        yield replica


def meta_copy(module: nn.Module) -> nn.Module:
    """A copy of a module whose parameters and buffers are on the meta device: it takes no memory for them.

    A localized model is compiled anew over the copy of the primary network, its auxiliary networks on that device too.
    """
    memo = on_meta(module)
    with torch.random.fork_rng(devices=[]):  # a copy may build layers anew, and draw weights for them
        return _remade(module, memo) if isinstance(module, LocalGraphModule) else copy.deepcopy(module, memo)


def on_meta(*parts: Any) -> dict[int, Any]:
    """What ``copy.deepcopy`` is to put in place of the parameters and buffers of modules: tensors on the meta device.

    Args:
        parts: Modules; whatever else is among them is left out.
    """
    modules = [part for part in parts if isinstance(part, nn.Module)]
    memo: dict[int, Any] = {}
    for tensor in (t for module in modules for t in (*module.parameters(), *module.buffers())):
        if not is_lazy(tensor):
            like = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
            parameter = isinstance(tensor, nn.Parameter)
            memo[id(tensor)] = nn.Parameter(like, tensor.requires_grad) if parameter else like
    return memo


def _remade(local: LocalGraphModule, memo: dict[int, Any]) -> LocalGraphModule:
    model, output = copy.deepcopy(local.primary, memo), copy.deepcopy(local.output_criterion, memo)
    twin = emit(local.plan, local.compiled.over(model, output))
    twin.criterion = copy.deepcopy(local.criterion, memo)
    for old, new in zip(local.parameters(), twin.parameters(), strict=True):
        new.requires_grad_(old.requires_grad)
    twin.train(local.training)
    return twin


def fill_with_fakes(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Puts fake CPU tensors in place of a module's parameters and buffers; to be called inside a fake mode.

    Args:
        module: Changed in place.
        dtype: Of what is of floating point; by default as it is.
    """
    fill(module.modules(), dtype)


def fill(owners: Iterable[nn.Module], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The same for what some modules have of their own, without their submodules; returns the fakes."""
    fakes: dict[int, Any] = {}
    for owner in owners:
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                fakes.setdefault(id(parameter), nn.Parameter(_fake(parameter, dtype), parameter.requires_grad))
                owner._parameters[name] = fakes[id(parameter)]
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                owner._buffers[name] = fakes.setdefault(id(buffer), _fake(buffer, dtype))
    return list(fakes.values())


def _fake(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=kind, device="cpu")


def _nesterov(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
