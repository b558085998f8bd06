"""``localize-cli inspect --why [NAME]``: where the network is cut, and why it is not cut anywhere else."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Sequence
from itertools import groupby

from localize.cli.terminal import Page
from localize.runtime.local_graph import LocalGraphModule
from localize.text import shown
from passes.errors import LocalizeError
from passes.ir import CutCandidate, Refusal, RefusalKind

KINDS: dict[RefusalKind, str] = {
    "start": "no mixing operation before it",
    "classifier": "belongs to the classifier",
    "wide": "too many tensors cross",
    "no tensor": "something other than tensors crosses",
    "block": "inside a block whose kind cannot be cut",
    "granularity": "inside a module that granularity keeps whole",
    "not named": "not among the cuts that granularity names",
    "tied": "between two uses of a parameter",
    "depthwise": "after a depthwise convolution",
    "unreadable": "nothing there for an auxiliary network to read",
    "unreached": "a parameter would not be trained",
    "overwritten": "overwritten in place, and there is a better cut",
    "another": "a better cut between the same operations",
}
"""The reasons, in a few words each."""
LISTED_OPTIONS = 3
"""Most values of an option that the summary lists."""


def take_name(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Take the NAME of ``--why NAME`` out of the words that the command line has left over.

    Returns:
        The first word that is no flag and does not follow one, or "" where there is none; and the other words.
    """
    for i, word in enumerate(arguments):
        follows = i > 0 and arguments[i - 1].startswith("--") and "=" not in arguments[i - 1]
        if not word.startswith("--") and not follows:
            return word, [*arguments[:i], *arguments[i + 1 :]]
    return "", list(arguments)


def borders_of(local: LocalGraphModule, name: str = "") -> tuple[CutCandidate, ...]:
    """Return the borders of a localized network; given a name, those in or next to what it names.

    Args:
        local: The network.
        name: Path of a module, or the name of a value in the graph.

    Raises:
        LocalizeError: No border lies in or next to it.
    """
    borders = local.plan.borders
    if not name:
        return borders
    chosen = tuple(border for border in borders if _touches(border, name))
    if not chosen:
        known = {path for border in borders for path in (*_paths(border.path), *_paths(border.next_path))}
        close = difflib.get_close_matches(name, sorted(known), n=3)
        raise LocalizeError(
            f"the network has no border in or next to {name!r}",
            remedy=f"Did you mean {', '.join(close)}?" if close else "inspect --why alone lists all borders",
        )
    return chosen


def _touches(border: CutCandidate, name: str) -> bool:
    return name in (border.after, border.before, *_paths(border.path), *_paths(border.next_path))


def _paths(path: str) -> list[str]:
    """Return a path and those of all modules around it."""
    parts = path.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))] if path else []


def why_record(local: LocalGraphModule, name: str = "") -> list[dict[str, object]]:
    """Return the borders as plain values."""
    return [dataclasses.asdict(border) for border in borders_of(local, name)]


def print_why(page: Page, local: LocalGraphModule, name: str = "") -> None:
    """Print all borders of a network, or each one in full that lies in or next to a module."""
    borders = borders_of(local, name)
    names = [layer.name for layer in local.plan.layers]
    if name:
        page.title(f"borders in or next to {shown(name)}")
        for border in borders:
            _print_border(page, border, names)
        return
    _print_table(page, borders, names)
    _print_summary(page, borders)


def _print_border(page: Page, border: CutCandidate, layers: Sequence[str]) -> None:
    source = f" ({border.source})" if border.source else ""
    page.text(f"after {shown(border.place)}, before {shown(border.next_place)}{source}", hang=4)
    page.text(_decision(border, layers), indent=2, hang=4)
    if border.refusal is not None and border.refusal.option:
        page.text(f"{flag(border.refusal.option)} lifts this reason.", indent=2, hang=4)


def _decision(border: CutCandidate, layers: Sequence[str]) -> str:
    if border.layer is not None:
        crossing = "1 tensor crosses" if border.width == 1 else f"{border.width} tensors cross"
        return f"Cut: layer {border.layer}, {shown(layers[border.layer])}, ends here; {crossing}."
    assert border.refusal is not None
    return f"Not cut: {shown(border.refusal.reason)}."


def _print_table(page: Page, borders: Sequence[CutCandidate], layers: Sequence[str]) -> None:
    """Print a row for each cut, and one for all neighbours that are refused for the same reason."""
    page.title("borders between operations, and why each is a cut or not")
    rows = []
    for reason, group in groupby(borders, key=lambda border: border.refusal and border.refusal.reason):
        alike = list(group)
        if reason is None:
            for border in alike:
                assert border.layer is not None
                decision = f"cut: layer {border.layer}, {shown(layers[border.layer])}, ends here"
                rows.append((str(border.layer), shown(border.place), str(border.width), decision))
            continue
        place = shown(alike[0].place)
        if len(alike) > 1:
            place += f"\n.. {shown(alike[-1].place)} ({len(alike)})"
        widths = sorted({border.width for border in alike})
        width = str(widths[0]) if len(widths) == 1 else f"{widths[0]}-{widths[-1]}"
        options = {border.refusal.option for border in alike if border.refusal is not None}
        option = options.pop() if len(options) == 1 else ""
        rows.append(("", place, width, shown(reason) + (f": {flag(option)}" if option else "")))
    page.table(("layer", "after", "tensors", "decision"), rows, (1, 3))


def _print_summary(page: Page, borders: Sequence[CutCandidate]) -> None:
    """Print how many borders each reason keeps from being cuts, and the options that lift it."""
    refusals = [border.refusal for border in borders if border.refusal is not None]
    page.title(f"{len(borders)} borders, {len(borders) - len(refusals)} of them cuts; the others by reason")
    rows = []
    for kind, words in KINDS.items():
        alike = [refusal for refusal in refusals if refusal.kind == kind]
        if alike:
            rows.append((words, str(len(alike)), _lifted_by(alike)))
    page.table(("reason", "borders", "lifted by"), rows, (0, 2))


def _lifted_by(refusals: Sequence[Refusal]) -> str:
    options = list(dict.fromkeys(refusal.option for refusal in refusals if refusal.option))
    if any("..." in option for option in options):
        return "--granularity NAME,NAME,..."
    flags = [flag(option) for option in sorted(options, key=lambda option: (len(option), option))]
    return ", ".join(flags[:LISTED_OPTIONS]) + (", ..." if len(flags) > LISTED_OPTIONS else "")


def flag(option: str) -> str:
    """Return an argument of ``localize()`` as a flag of the command line: ``max_cut=2`` is ``--max-cut 2``."""
    name, _, value = option.partition("=")
    value = re.sub(r"[\[\]' ]", "", value)
    return f"--{name.replace('_', '-')} {value}"
