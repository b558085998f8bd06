"""What the shell offers for a word that was begun. Nothing in here loads torch: a key press must not wait for it."""

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
"""From what was typed so far to words, each with its meaning."""

_BEGINNINGS = {
    "timm": "NAME, one of timm's",
    "torchvision": "NAME, one of torchvision's",
    "localize": "cifar_resnetDEPTH, this package's own",
}


def one_of(words: Mapping[str, str] | Iterable[str]) -> Completion:
    """Completes the words of a table, with their meanings if it has such."""
    meanings = dict(words) if isinstance(words, Mapping) else dict.fromkeys(words, "")

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(word, meaning) for word, meaning in meanings.items() if word.startswith(incomplete)]

    return complete


def several_of(words: Mapping[str, str]) -> Completion:
    """Completes the last of several words, separated by commas."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        before, comma, last = incomplete.rpartition(",")
        given = before.split(",")
        found = ((word, meaning) for word, meaning in words.items() if word.startswith(last) and word not in given)
        return [(f"{before}{comma}{word}", meaning) for word, meaning in found]

    return complete


def models(incomplete: str) -> list[tuple[str, str]]:
    """Completes a model: a library's name, then the names it has; or a file of Python, then its functions."""
    before, colon, name = incomplete.partition(":")
    if not colon:
        return [(f"{library}:", what) for library, what in _BEGINNINGS.items() if library.startswith(before)] + [
            (f"{path}{'/' if path.is_dir() else ':'}", "") for path in _python_files(before)
        ]
    if before == "localize":
        found: Iterable[str] = (f"cifar_resnet{depth}" for depth in _names.SIZES)
    elif before in _BEGINNINGS:
        found = _registered(before)
    else:
        found = _functions(Path(before))
    return [(f"{before}:{each}", "") for each in found if each.startswith(name)]


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
    """Names that a file defines, read off its text: to run it for a completion would be a surprise."""
    return sorted(set(_matches(path, r"^(?:def|class) ([A-Za-z]\w*)|^([A-Za-z]\w*) *=(?!=)")))


def _registered(library: str) -> list[str]:
    """Names of a library's models, read off the text of its files: importing it takes seconds."""
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
    """In bash, puts together again what it takes apart at colons and equals signs, while completion answers."""
    text, place = os.environ.get("COMP_WORDS", ""), os.environ.get("COMP_CWORD", "")
    if os.environ.get("_LOCALIZE_CLI_COMPLETE") != "complete_bash" or not place.isdecimal():
        yield
        return
    given = (text.split("\n") if "\n" in text else text.split())[: int(place) + 1]
    words = joined(given)
    os.environ |= {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    value = words[-1].partition("=")[2] if words[-1].startswith("-") else words[-1]
    # Bash replaces what stands behind the last colon, unless COMP_WORDBREAKS has none and it left the word whole.
    kept = 0 if ":" in given[-1].strip(":=") else value.rfind(":") + 1
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        sys.stdout.writelines(f"{line[kept:]}\n" for line in answer.getvalue().splitlines())


def joined(words: Iterable[str]) -> list[str]:
    """Words as they were typed, of those that bash gives: ``timm``, ``:``, ``res`` is ``timm:res``."""
    found: list[str] = []
    open_ended = False
    for word in words:
        parting = bool(word) and not word.strip(":=")
        if found[1:] and (parting or open_ended):
            found[-1] += word
        else:
            found.append(word)
        open_ended = parting
    return found
