"""One method of a benchmark: a localized model that takes training steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from localize.bench.setup import Setup
from localize.memory.live_bytes import Step
from localize.runtime.local_graph import LocalGraphModule

LEARNING_RATE = 1e-3
"""Low, so that weights stay finite however many steps are timed."""


class Contender:
    """One method on its own copy of the model, on the device of the benchmark.

    Args:
        local: The model, localized; it is moved.
        setup: Batch and device.
    """

    def __init__(self, local: LocalGraphModule, setup: Setup) -> None:
        prediction, shape = local.plan.prediction, local.plan.input.shape[1:]
        generator = torch.Generator().manual_seed(setup.seed)
        images = torch.rand(setup.batch_size, *shape, generator=generator).to(setup.device)
        size = (setup.batch_size, *prediction.size)
        labels = torch.randint(prediction.outputs, size, generator=generator).to(setup.device)
        self.local = local.to(setup.device).train()
        if setup.channels_last:
            local.to(memory_format=torch.channels_last)
            images = images.contiguous(memory_format=torch.channels_last)
        self._batch = images, labels
        self._step = step_of(setup)
        parameters = [p for p in local.parameters() if p.requires_grad]
        self._optimizer = torch.optim.SGD(parameters, lr=LEARNING_RATE, momentum=0.9, nesterov=True)

    def __call__(self) -> None:
        """One training step: forward, backward, update."""
        self._step(self.local, *self._batch)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)


def step_of(setup: Setup) -> Step:
    """Forward and backward of a batch, local module by local module, autocast as the setup says."""
    dtype = getattr(torch, setup.amp) if setup.amp else torch.bfloat16

    def step(module: nn.Module, images: Tensor, labels: Tensor) -> None:
        assert isinstance(module, LocalGraphModule)
        steps = module.steps(images, labels)
        while True:
            # A region a module: gradients are computed outside, in the types that the forward pass chose.
            with torch.autocast(images.device.type, dtype, enabled=setup.amp is not None):
                output = next(steps, None)
            if output is None:
                return
            output.loss.backward()
            del output

    return step
