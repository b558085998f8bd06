"""The text of help: docstrings without their line breaks, and examples at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import typer

from localize.cli.exit_codes import interruptible

Function = TypeVar("Function", bound=Callable[..., None])

PROGRAM = "localize-cli"

EXAMPLES: dict[str, tuple[str, ...]] = {
    "": (
        "demo",
        "inspect localize:cifar_resnet20 -d 4",
        "train --model localize:cifar_resnet20 --data digits --epochs 10",
    ),
    "train": (
        "train --model localize:cifar_resnet8 --data digits --epochs 5",
        "train --model timm:resnet18 --data DIR --method dgl --hidden 1",
        "train --model timm:resnet18 --data DIR --memory-budget 8GB",
    ),
    "methods": ("methods", "methods auglocal"),
    "check": (
        "check timm:vit_tiny_patch16_224 torchvision:resnet50",
        "check model.py:make --granularity block --json",
    ),
    "inspect": (
        "inspect timm:resnet18 -d 2 --batch-size 256",
        "inspect localize:cifar_resnet110 -d 6 --fold",
        "inspect localize:cifar_resnet20 --module 0",
        "inspect localize:cifar_resnet20 --why layer2.0",
    ),
    "export": (
        "export localize:cifar_resnet20 -o plan.svg --fold",
        "export timm:resnet18 -d 2 -o graph.dot --view local",
        "export model.py:make -o net.onnx --weights model.safetensors",
    ),
    "memory": (
        "memory torchvision:resnet50 -d 2 --batch-size 256 --budget 40GB",
        "memory localize:cifar_resnet32 --step module --amp bfloat16",
    ),
    "bench": (
        "bench localize:cifar_resnet20 --methods auglocal,bp -d 2,4",
        "bench localize:cifar_resnet8 --batch-size 16 --steps 5 --json",
    ),
    "sweep": (
        "sweep --filter 'convnext*' --out runs/convnext.jsonl",
        "sweep --source torchvision --jobs 2 --summary coverage.md",
    ),
    "demo": ("demo", "demo --epochs 3 --out runs/short"),
}
"""Examples of each command, without the program's name; the empty name has those of the program itself."""


def command(app: typer.Typer, *, free: bool = False) -> Callable[[Function], Function]:
    """Return a decorator that makes a function a command, with docstring and examples as help; Ctrl-C prints one line.

    Args:
        app: The program.
        free: Whether the command also takes the flags of a method's options, which are in its context.
    """
    settings = {"allow_extra_args": True, "ignore_unknown_options": True} if free else {}

    def register(function: Function) -> Function:
        add = app.command(help=described(function), epilog=epilog(function.__name__), context_settings=settings)
        return add(interruptible()(function))

    return register


def epilog(command: str) -> str:
    """Return the end of a command's help: its examples."""
    lines = [f"{PROGRAM} {example}" for example in EXAMPLES[command]]
    return "\n\n".join(["Examples:", *lines])  # single line breaks do not survive every version of typer


def described(command: Callable[..., Any]) -> str:
    """Return a command's docstring with one line per paragraph: help and manual wrap it where it is shown."""
    paragraphs = inspect.cleandoc(command.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
