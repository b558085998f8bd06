"""Write the docstring at the head of a generated file."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from localize.export.python.copy_updates import pulls_of
from localize.export.python.values import words
from localize.runtime.local_graph import LocalGraphModule
from localize.version import own_version

_WIDTH = 118


def header(local: LocalGraphModule, given: str) -> str:
    """Write the docstring of the file.

    Args:
        local: The localized model.
        given: Arguments that the user of the file must pass.
    """
    lines = []
    for paragraph in _paragraphs(local, given):
        plain = paragraph.startswith(" ")
        lines += [*(paragraph.split("\n") if plain else textwrap.wrap(paragraph, _WIDTH)), ""]
    return '"""' + "\n".join(lines).rstrip() + '\n"""\n'


def _paragraphs(local: LocalGraphModule, given: str) -> Iterator[str]:
    plan = local.plan
    count = len(plan.modules)
    modules = f"{count} local modules" if count > 1 else "one local module"
    yield f"{words(plan.model)} in {modules}, trained by {words(plan.method)}; written by localize {own_version()}."
    options = ", ".join(f"{key}={value}" for key, value in plan.options.items() if value is not None)
    yield f"Options: {words(options) or 'none'}. Input: {words(str(plan.input))}, batch first."
    yield "It needs torch alone. With the localized model's weights it gives its losses and gradients, bit for bit:"
    pulls = ["    network.pull()  # copies follow the layers that they are copies of"] if pulls_of(local) else []
    yield "\n".join(
        [
            f"    network = Localized({given})",
            "    network.load_state_dict(local.state_dict())  # names are the same; so is the order of parameters",
            "    for name, loss, logits in network.steps(x, y):  # one local module after the other",
            "        loss.backward()",
            "    optimizer.step()",
            *pulls,
        ]
    )
    yield (
        "network(x) is the primary network's output. Layers, dropout and norms follow network.train() and "
        "network.eval(); where the model's own forward asks which of the two it is in, this is the way that it takes "
        "in training."
    )
    yield "Without a state_dict, layers of torch.nn start as torch draws them, and all other parameters as zeros."
    if given:
        yield f"Hand in the losses that the model was localized with: {given}."
    if any(module.recompute for module in plan.modules):
        yield "Activations that the localized model computes anew are kept here: results are the same, memory is not."
