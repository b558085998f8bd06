"""Write the method that pulls copies of layers towards these layers, to be called after each step of the optimizer."""

from __future__ import annotations

from localize.export.python.values import quoted
from localize.methods.mlaan.leaps import Leaps
from localize.methods.mlaan.options import mlaan_options
from localize.runtime.local_graph import LocalGraphModule


def pulls_of(local: LocalGraphModule) -> list[tuple[str, str, str]]:
    """List the pulled copies of parameters, as triples of names.

    A triple names the copy, the parameter whose ``requires_grad`` says whether the copy is pulled, and the parameter
    that it is pulled towards.
    """
    pulls = []
    for path, module in local.named_modules():
        if isinstance(module, Leaps):
            pulls += [(f"{path}.{copy}", f"{path}.{told}", f"primary.{live}") for copy, told, live in module.pulls]
    return pulls


def pull_lines(local: LocalGraphModule) -> list[str]:
    """Write the lines of the method; empty if the model has no copies to pull."""
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
