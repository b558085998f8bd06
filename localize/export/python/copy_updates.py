"""Copies that follow their layers, in a generated file: a method to be called after each step of the optimizer."""

from __future__ import annotations

from localize.export.python.values import quoted
from localize.methods.mlaan.leaps import Leaps
from localize.methods.mlaan.options import mlaan_options
from localize.runtime.local_graph import LocalGraphModule


def pulls_of(local: LocalGraphModule) -> list[tuple[str, str, str]]:
    """Names of parameters that are pulled, of those that tell whether they are, and of what they are pulled to."""
    found = []
    for path, module in local.named_modules():
        if isinstance(module, Leaps):
            found += [(f"{path}.{copy}", f"{path}.{told}", f"primary.{live}") for copy, told, live in module.pulls]
    return found


def pull_lines(local: LocalGraphModule) -> list[str]:
    """The method, where there is anything to pull."""
    pulls = pulls_of(local)
    if not pulls:
        return []
    weight = 1 - mlaan_options(local.compiled.method.options).momentum
    entries = [f"({', '.join(map(quoted, dict.fromkeys((copy, live, told))))})," for copy, told, live in pulls]
    return [
        "",
        "@torch.no_grad()",
        "def pull(self):",
        '    """Pulls copies of layers towards these layers; to be called after each step of the optimizer."""',
        "    copies, lives = [], []",
        "    for copy, live, *trained in self.PULLED:",
        "        if self.get_parameter(trained[0] if trained else copy).requires_grad:",
        "            copies.append(self.get_parameter(copy))",
        "            lives.append(self.get_parameter(live))",
        f"    torch._foreach_lerp_(copies, lives, {weight!r})",
        "",
        "# Copies, what they are pulled to, and what is trained in the place of a copy that is not.",
        "PULLED = (",
        *[f"    {entry}" for entry in entries],
        ")",
    ]
