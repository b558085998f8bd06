"""What it costs to run a network as K local modules, auxiliary networks aside, over one step of backpropagation.

python benchmarks/overhead.py --output benchmarks/results/overhead.md

Every auxiliary network is replaced by the cheapest loss that reaches the module's parameters, the mean of its output.
The yardstick is the plain model with cross-entropy, without anything of ours around it; both take turns in one run.
"""

from __future__ import annotations

import argparse
import copy
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import nn

from localize import LocalGraphModule, localize
from localize.bench.flops import step_macs
from localize.bench.report import environment
from localize.bench.timing import take_turns
from localize.memory.peak import train_step
from localize.methods.networks.local_loss import Batch
from localize.models import cifar_resnet
from localize.text import markdown_table

HEADER = (
    "model", "K", "batch", "threads", "BP, ms", "modules, ms", "IQR, ms", "time/BP", "MACs/BP",
)  # fmt: skip


class Case(NamedTuple):
    """A model, and what it is fed with."""

    build: Callable[[], nn.Module]
    size: int
    options: dict[str, Any]


def _vit() -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=64, patch_size=8, num_classes=10)


CASES = {
    "ResNet-32, 3x32x32": Case(lambda: cifar_resnet(32), 32, {}),
    "ResNet-110, 3x32x32": Case(lambda: cifar_resnet(110), 32, {}),
    "ViT-Ti/8, 3x64x64": Case(_vit, 64, {}),
    "ViT-Ti/8, 3x64x64, whole blocks": Case(_vit, 64, {"granularity": "block"}),
}


class MeanLoss(nn.Module):
    """In place of an auxiliary network: the loss is the mean of what the module gives."""

    def supervise(self, batch: Batch, *features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features as prediction; and the sum over a constant, whose gradient takes no memory, unlike mean()'s."""
        losses = [value.sum() / value.numel() for value in features]
        return features[0], losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def emptied(local: LocalGraphModule) -> LocalGraphModule:
    """Without auxiliary networks: the mean of its output is each module's loss."""
    for module in local.local_modules:
        if module.auxiliary is not None:
            module.auxiliary = MeanLoss()
    return local


def step_without_auxiliaries(local: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    """Run forward and backward of a localized model, after taking its auxiliary networks out."""
    assert isinstance(local, LocalGraphModule)
    train_step(emptied(local), images, labels)


def stepper(model: nn.Module, case: Case, batch: int) -> Callable[[], None]:
    """Return a function that runs a whole step on random images."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, case.size, case.size, generator=generator)
    labels = torch.randint(10, (batch,), generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
    model.train()

    def step() -> None:
        if isinstance(model, LocalGraphModule):
            train_step(model, images, labels)
        else:
            F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def row(name: str, case: Case, batch: int, arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return a line of the table."""
    torch.manual_seed(0)
    model = case.build()
    example = torch.empty(2, 3, case.size, case.size)
    local = localize(copy.deepcopy(model), "dgl", example_inputs=example, seed=0, **case.options)
    count, shape = len(local.plan.modules), (3, case.size, case.size)
    work = step_macs(local, image_shape=shape, step=step_without_auxiliaries) / step_macs(model, image_shape=shape)
    contenders = {"bp": stepper(model, case, batch), "modules": stepper(emptied(local), case, batch)}
    times = take_turns(contenders, arguments.steps, warmup=2)
    bp, modules = times["bp"], times["modules"]
    return (
        name,
        str(count),
        str(batch),
        str(torch.get_num_threads()),
        f"{1e3 * bp.median:.1f}",
        f"{1e3 * modules.median:.1f}",
        f"{1e3 * modules.spread:.1f}",
        f"{modules.over(bp):.3f}",
        f"{work:.3f}",
    )


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cases", nargs="+", default=list(CASES))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    found = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for name in arguments.cases:
            for batch in arguments.batch_sizes:
                found.append(row(name, CASES[name], batch, arguments))
                print(" | ".join(found[-1]), flush=True)
    facts = {"command": f"`{shlex.join(['python', *sys.argv])}`", **environment()}
    text = (
        "# Overhead of local modules, auxiliary networks aside\n\n"
        f"{markdown_table(HEADER, found)}\n\n"
        f"K modules whose loss is the mean of their output, over a plain step of backpropagation (forward, backward, "
        f"update); medians of {arguments.steps} rounds, taking turns; time/BP is the median of the rounds' ratios. "
        "Modules owe nobody the gradient of their input, so they have less to compute than backpropagation: MACs/BP is "
        "the ratio of multiply-accumulates, forward and backward.\n\n"
        + "".join(f"- {key}: {value}\n" for key, value in facts.items())
    )
    print(text)
    if arguments.output:
        arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
