"""Peak memory of a training step on the paper's networks, beside the paper's and its released code's figures.

python benchmarks/memory_table.py
python benchmarks/memory_table.py --networks resnet34 --columns bp 'auglocal d=2'   # these cells alone, anew

Live tensors counted on fake tensors (SGD with Nesterov momentum): the same on every machine, and no GPU is needed.
Cells that the JSON file has already are kept, unless they are named. A further column is an entry of COLUMNS.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from localize import LocalGraphModule, localize
from localize.memory.peak import Step, peak_step_bytes
from localize.models import cifar_resnet
from localize.runtime.optimizers import ModuleOptimizers, per_module
from localize.text import markdown_table

RESULTS = Path(__file__).parent / "results"


class Network(NamedTuple):
    """One of the paper's networks, on the meta device, and what its figures are taken with."""

    title: str
    build: Callable[[], nn.Module]
    shape: tuple[int, int, int]
    batch: int
    classes: int
    auglocal: dict[str, Any]
    """Options of the released code for this data set."""


# The released ImageNet code: no pyramid, only the last layer with the classifier, no batch norm in the head.
IMAGENET: dict[str, Any] = {"tau": 0, "last": "single", "head_norm": False}
# Appendix A.2: auxiliary networks end in VGG's classifier, with 512 hidden units in place of 4096.
VGG: dict[str, Any] = {**IMAGENET, "head": "classifier", "head_width": 512}
LARGE, SMALL = (3, 224, 224), (3, 32, 32)

NETWORKS = {
    "cifar_resnet32": Network("ResNet-32, 3x32x32, batch 1024", lambda: cifar_resnet(32), SMALL, 1024, 10, {}),
    "cifar_resnet110": Network("ResNet-110, 3x32x32, batch 1024", lambda: cifar_resnet(110), SMALL, 1024, 10, {}),
    "resnet34": Network("ResNet-34, 3x224x224, batch 256", torchvision.models.resnet34, LARGE, 256, 1000, IMAGENET),
    "resnet101": Network("ResNet-101, 3x224x224, batch 256", torchvision.models.resnet101, LARGE, 256, 1000, IMAGENET),
    "resnet152": Network("ResNet-152, 3x224x224, batch 256", torchvision.models.resnet152, LARGE, 256, 1000, IMAGENET),
    "vgg13": Network("VGG-13, 3x224x224, batch 256", torchvision.models.vgg13, LARGE, 256, 1000, VGG),
}

Localized = Callable[[nn.Module, Network], nn.Module]


def _auglocal(d: int, *recompute: str) -> Localized:
    return lambda model, network: localize(
        model, "auglocal", d=d, recompute=recompute, **_input(network), **network.auglocal
    )


def _rule(method: str) -> Localized:
    return lambda model, network: localize(model, method, **_input(network))


def _by_hand(model: nn.Module, network: Network) -> nn.Module:
    """Backpropagation with ``torch.utils.checkpoint`` round each block, as users write it."""
    blocks = [m for m in model.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    for block in blocks:
        block.__class__ = _checkpointed(type(block))
    return model


def _checkpointed(kind: type[nn.Module]) -> type[nn.Module]:
    class Checkpointed(kind):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> Any:
            return checkpoint(kind.forward, self, x, use_reentrant=False)

    return Checkpointed


def _input(network: Network) -> dict[str, Any]:
    return {"example_inputs": torch.empty(2, *network.shape, device="meta")}


class Column(NamedTuple):
    """What is put beside the others."""

    localized: Localized
    """From a model on the meta device to a localized one."""
    step: Callable[[], Step] | None = None
    """Makes forward and backward of a batch, where they are not the usual ones."""


def _module_by_module() -> Step:
    """Each module updated right after its own backward, as ``localize-cli train --step module`` does."""
    optimizers: list[ModuleOptimizers] = []

    def step(local: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
        assert isinstance(local, LocalGraphModule)
        if not optimizers:
            optimizers.append(per_module(local, _nesterov))
        for out in local.steps(images, labels):
            out.loss.backward()
            optimizers[0].step(out.name)

    return step


def _nesterov(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)


RULES = {
    "bp": _rule("bp"),
    "checkpoint": _rule("checkpoint"),
    **{f"auglocal d={d}": _auglocal(d) for d in range(2, 7)},
    **{method: _rule(method) for method in ("dgl", "predsim", "infopro")},
}
BY_HAND = "bp, torch's checkpoint a block"
COLUMNS = {
    **{name: Column(localized) for name, localized in RULES.items()},
    "auglocal d=6, step=module": Column(_auglocal(6), _module_by_module),
    "auglocal d=2, recompute layers, norms": Column(_auglocal(2, "layers", "norms")),
    **{f"auglocal d={d}, recompute layers, blocks": Column(_auglocal(d, "layers", "blocks")) for d in (4, 6)},
    BY_HAND: Column(_by_hand),
}

CIFAR_ONLY = ("dgl", "predsim", "infopro")
"""The paper has them on CIFAR alone; on 56x56 features and more some take hundreds of gigabytes."""

AUTHORS = {
    "cifar_resnet32": dict(zip(RULES, (2.58, 0.82, 0.83, 0.65, 0.78, 0.99, 1.12, 0.49, 0.62, 0.77), strict=True)),
    "cifar_resnet110": dict(zip(RULES, (8.70, 2.36, 0.86, 0.70, 0.84, 1.06, 1.21, 0.52, 0.64, 0.79), strict=True)),
}
"""GB that the authors' released code takes, counted by MemTracker under fake tensors; checkpointing by blocks."""

PAPER = {
    "cifar_resnet32": {"bp": 3.15, "auglocal": 1.67},
    "cifar_resnet110": {
        "bp": 9.27, "checkpoint": 3.03, "auglocal d=2": 1.71, "auglocal d=3": 1.62, "auglocal d=4": 1.70,
        "auglocal d=5": 1.71, "auglocal d=6": 1.72, "predsim": 1.54, "dgl": 1.61, "infopro": 3.98,
    },
    "resnet34": {"bp": 42.95, "auglocal": 29.04},
    "resnet101": {"bp": 157.12, "auglocal": 97.65},
}  # fmt: skip
"""GB on GPUs that the paper prints (tables 4 and 7), all at batch 1024. ``auglocal`` without a depth: that of the best
accuracy, which it does not name there."""


def cell(network: Network, column: Column) -> dict[str, Any]:
    """Figures of one network under one method."""
    began = time.perf_counter()
    with torch.device("meta"):
        model = network.build()
    local: Any = column.localized(model, network)
    step = column.step() if column.step else None
    peak = peak_step_bytes(local, network.batch, image_shape=network.shape, classes=network.classes, step=step)
    seconds = round(time.perf_counter() - began, 1)
    if not isinstance(local, LocalGraphModule):
        with torch.device("meta"):
            local = RULES["bp"](network.build(), network)
    plan = local.plan
    macs = plan.macs + plan.auxiliary_macs + plan.repeated_macs
    return {"peak_bytes": peak, "modules": len(plan.modules), "macs": macs, "seconds": seconds}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    header = (
        "network",
        "method",
        "K",
        "peak, GB",
        "of BP",
        "of checkpointing",
        "MACs/BP",
        "authors' code, GB",
        "paper, GB",
    )
    lines = []
    for name, cells in found.items():
        for column in [column for column in COLUMNS if column in cells] + [c for c in cells if c not in COLUMNS]:
            its = cells[column]
            rule, printed = column.partition(",")[0], PAPER.get(name, {})
            theirs = None if rule != column else printed.get(column, printed.get(column.partition(" ")[0]))
            lines.append(
                (
                    NETWORKS[name].title,
                    column,
                    str(its["modules"]),
                    f"{its['peak_bytes'] / 1e9:.3f}",
                    *(_share(its, cells.get(rival), "peak_bytes", 100) for rival in ("bp", "checkpoint")),
                    _share(its, cells.get("bp"), "macs", 1),
                    _gigabytes(AUTHORS.get(name, {}).get(column)),
                    _gigabytes(theirs),
                )
            )
    return markdown_table(header, lines)


def _share(its: dict[str, Any], rival: dict[str, Any] | None, key: str, factor: int) -> str:
    if rival is None:
        return "-"
    return f"{factor * its[key] / rival[key]:.0f} %" if factor > 1 else f"{its[key] / rival[key]:.2f}"


def _gigabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def missing(arguments: argparse.Namespace, found: dict[str, dict[str, Any]]) -> Sequence[tuple[str, str]]:
    """Cells to fill in."""
    named = arguments.columns is not None
    cells = [
        (name, column)
        for name in arguments.networks
        for column in arguments.columns or COLUMNS
        if named or column not in CIFAR_ONLY or name.startswith("cifar")
        if named or column != BY_HAND or "resnet" in name
    ]
    return [(name, column) for name, column in cells if named or column not in found.get(name, {})]


def main() -> None:
    """Compute the missing cells, saving each, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--columns", nargs="+", choices=list(COLUMNS))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    target = arguments.results / "memory.json"
    found: dict[str, dict[str, Any]] = json.loads(target.read_text())["networks"] if target.exists() else {}
    for name, column in missing(arguments, found):
        found.setdefault(name, {})[column] = cell(NETWORKS[name], COLUMNS[column])
        print(name, column, found[name][column], flush=True)
        found = {known: found[known] for known in NETWORKS if known in found}
        report = {"date": str(datetime.date.today()), "torch": torch.__version__, "networks": found}
        target.write_text(json.dumps(report, indent=2) + "\n")
    text = (
        f"# Peak memory of a training step\n\n{page(found)}\n\n"
        "Live tensors of a step in float32 (weights, gradients, momentum, buffers and the batch too), counted on fake "
        "tensors: `localize.memory.peak.peak_step_bytes`. Checkpointing: activations recomputed local layer by "
        "local layer. AugLocal on ImageNet's networks as in the released code for them: `last='single'`, `tau=0`, "
        "`head_norm=False`, on VGG-13 with the hidden layers of its classifier, 512 wide. Authors' code: what was "
        "released, counted in the same way. Paper: tables 4 and 7, on GPUs, batch 1024 throughout.\n\n"
        f"Command: `python benchmarks/memory_table.py`; {datetime.date.today()}, torch {torch.__version__}\n"
    )
    (arguments.results / "memory.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
