"""Completions of words that the user has begun to type. Loads no torch: a key press must not wait for it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from localize.cli import names as _names

Completion = Callable[[str], list[tuple[str, str]]]
"""A function from the text typed so far to words, each with its meaning."""

_BEGINNINGS = {
    "timm": "NAME, one of timm's",
    "torchvision": "NAME, one of torchvision's",
    "localize": "cifar_resnetDEPTH, this package's own",
}


def one_of(words: Mapping[str, str] | Iterable[str]) -> Completion:
    """Return a completion of the given words, with their meanings if there are any."""
    meanings = dict(words) if isinstance(words, Mapping) else dict.fromkeys(words, "")

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(word, meaning) for word, meaning in meanings.items() if word.startswith(incomplete)]

    return complete


def several_of(words: Mapping[str, str]) -> Completion:
    """Return a completion of the last of several words that are separated by commas."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        fitting = ((word, meaning) for word, meaning in words.items() if word.startswith(last) and word not in given)
        return [(f"{before}{comma}{word}", meaning) for word, meaning in fitting]

    return complete


def models(incomplete: str) -> list[tuple[str, str]]:
    """Complete a model: the name of a library, then its models; or a Python file, then its functions."""
    before, colon, name = incomplete.partition(":")
    if not colon:
        return [(f"{library}:", what) for library, what in _BEGINNINGS.items() if library.startswith(before)] + [
            (f"{path}{'/' if path.is_dir() else ':'}", "") for path in _python_files(before)
        ]
    if before == "localize":
        names: Iterable[str] = (f"cifar_resnet{depth}" for depth in _names.SIZES)
    elif before in _BEGINNINGS:
        names = _registered(before)
    else:
        names = _functions(Path(before))
    return [(f"{before}:{each}", "") for each in names if each.startswith(name)]


def _python_files(beginning: str) -> list[Path]:
    folder = Path(beginning) if beginning.endswith("/") else Path(beginning).parent
    start = "" if beginning.endswith("/") else Path(beginning).name
    with contextlib.suppress(OSError):
        return sorted(
            path
            for path in folder.iterdir()
            if path.name.startswith(start)
            and (start or path.name[0] not in "._")
            and (path.suffix == ".py" or path.is_dir())
        )
    return []


def _functions(path: Path) -> list[str]:
    """Return the names that a file defines, read from its text: a completion must not run a user's file."""
    return sorted(set(_matches(path, r"^(?:def|class) ([A-Za-z]\w*)|^([A-Za-z]\w*) *=(?!=)")))


def _registered(library: str) -> list[str]:
    """Return the names of a library's models, read from its files in 0.1 s: importing the library takes seconds."""
    spec = importlib.util.find_spec(library)
    folders = spec.submodule_search_locations if spec else None
    files = (path for folder in folders or () for path in (Path(folder) / "models").glob("*.py"))
    pattern = r"^@register_model\b[^\n]*\n(?:@[^\n]*\n|[ )][^\n]*\n)*def (\w+)"
    return sorted({name for path in files for name in _matches(path, pattern)})


def _matches(path: Path, pattern: str) -> Iterator[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for match in re.finditer(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
            yield next(group for group in match.groups() if group)


@contextlib.contextmanager
def whole_words() -> Iterator[None]:
    """Join the words that bash splits at colons and equals signs, inside the ``with`` block.

    ``timm:resnet18`` arrives from bash as three words, and bash replaces only the part after the last colon.
    """
    text, place = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    if os.environ.get("_LOCALIZE_CLI_COMPLETE") != "complete_bash" or not place.isdecimal():
        yield
        return
    given = (text.split("\n") if "\n" in text else text.split())[: int(place) + 1]
    words = joined(given)
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    value = words[-1].partition("=")[2] if words[-1].startswith("-") else words[-1]
    # Where COMP_WORDBREAKS has no colon, bash leaves the word whole, and replaces all of it.
    kept = 0 if ":" in given[-1].strip(":=") else value.rfind(":") + 1
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        sys.stdout.writelines(f"{line[kept:]}\n" for line in answer.getvalue().splitlines())


def joined(words: Iterable[str]) -> list[str]:
    """Return the words as they were typed, from those that bash passes on.

    >>> joined(["check", "timm", ":", "res"])
    ['check', 'timm:res']
    """
    whole: list[str] = []
    open_ended = False
    for word in words:
        parting = bool(word) and not word.strip(":=")
        if whole[1:] and (parting or open_ended):
            whole[-1] += word
        else:
            whole.append(word)
        open_ended = parting
    return whole
