"""Write docs/cli.md, the manual of the command line, from the commands themselves: ``python docs/write_cli.py``."""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the commands of this checkout, whatever is installed

from typer.models import ArgumentInfo  # noqa: E402

from localize.cli import names as _names  # noqa: E402
from localize.cli.help import EXAMPLES, PROGRAM, described  # noqa: E402
from localize.cli.main import app  # noqa: E402
from localize.cli.method_flags import flags, summary  # noqa: E402

PAGE = ROOT / "docs" / "cli.md"
WIDTH = 120
WORDS: dict[Any, str] = {int: "N", float: "X", str: "TEXT", Path: "PATH"}
"""The word that stands for a value of each type."""

DESCRIPTION = """
Cuts a vision model that was written for backpropagation into local modules, each trained by its own loss through an
auxiliary network. Then trains it, shows it, measures it, or exports it for other programs.

MODEL is `timm:NAME`, `torchvision:NAME`, `localize:cifar_resnetDEPTH`, or `path.py:callable`. The last one runs that
file as your own code and calls the function, with `num_classes=...` if it takes it. It may also name a model object.

`train`, `memory`, `inspect` and `export` take every option of the chosen method as a flag: see METHODS. A value that is
not a Python literal is text. `--NAME` alone means true, `--no-NAME` false.

Every command has `--help`. `localize-cli --install-completion` makes the shell complete commands, options, methods,
models and formats; `--show-completion` prints the script for it.
"""
FILES = {
    "runs/MODEL-METHOD-dD/": (
        "Files of `train`, unless `--out` names another folder: `metrics.jsonl` and `metrics.csv` (figures of every "
        "epoch), `curves.png`, `plan.json` (what was decided), `model.safetensors` (the trained weights, for the "
        "plain model) and `checkpoint.pt`, from which `--resume` goes on and which `export --weights` reads."
    ),
    "runs/sweep.jsonl": "Records of `sweep`, one line for each model. The same command goes on where it was stopped.",
    "runs/bench/MODEL/": "Files of `bench`: `bench.json`, `bench.md` and `bench.png`.",
    "runs/demo/": "Files of `demo`: a folder like that of `train` for each method.",
}
STATUS = {
    "0": "Success.",
    "1": "`check` or `inspect` found a model that does not localize, and printed the reasons.",
    "2": "An error, printed as one line on standard error.",
    "130": "Ctrl-C. The results so far are kept, and the message says how to go on.",
}
ENVIRONMENT = {
    "COLUMNS": "Width of tables and help. Without it they are as wide as the terminal, and 80 columns in a pipe.",
    "NO_COLOR": "If set, output has no styles. In a pipe it never has.",
    "OMP_NUM_THREADS": "Threads of the CPU, as torch takes it.",
    "CUDA_VISIBLE_DEVICES": "The GPUs to choose from, as torch takes it.",
}


def page() -> str:
    """Return the text of the manual."""
    commands = [command.callback for command in app.registered_commands if command.callback]
    named = {command.__name__: command for command in commands}
    parts = [
        f"# {PROGRAM}",
        "<!-- Written by docs/write_cli.py; do not edit. -->",
        "## NAME",
        f"{PROGRAM} - train neural networks by supervised local learning",
        "## SYNOPSIS",
        _block(f"{PROGRAM} COMMAND [OPTIONS] ...", *(_usage(name, command) for name, command in named.items())),
        "## DESCRIPTION",
        *(_filled(paragraph) for paragraph in DESCRIPTION.strip().split("\n\n")),
        "## COMMANDS",
        *(part for name, command in named.items() for part in _command(name, command)),
        "## METHODS",
        *(part for name in _names.METHODS for part in _method(name)),
        *(part for title, of in _SECTIONS.items() for part in (f"## {title}", _items(of))),
    ]
    return "\n\n".join(parts) + "\n"


_SECTIONS = {"FILES": FILES, "EXIT STATUS": STATUS, "ENVIRONMENT": ENVIRONMENT}


def _command(name: str, command: Callable[..., Any]) -> Iterator[str]:
    yield f"### {PROGRAM} {name}"
    yield _block(_usage(name, command))
    for paragraph in described(command).split("\n\n"):
        yield _filled(paragraph)
    yield "\n".join(_item(*_parameter(*each)) for each in _parameters(command))
    yield _block(*(f"{PROGRAM} {example}" for example in EXAMPLES[name]))


def _method(name: str) -> Iterator[str]:
    yield f"### --method {name}"
    yield _filled(summary(name))
    own = flags(name)
    items = []
    for part in name.split("+") if "+" in name else ():
        shared = [option for option in flags(part) if option in own]
        own = [option for option in own if option not in shared]
        items.append(_item(f"as of `{part}`", ", ".join(f"`{flag}`" for flag, _, _ in shared)))
    items += [_item(f"`{flag}` (default {default})", meaning.replace("``", "`")) for flag, default, meaning in own]
    if items:
        yield "\n".join(items)


def _parameters(command: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield name, type, typer's record and default of each argument and option."""
    hints = get_type_hints(command, include_extras=True)
    for name, parameter in inspect.signature(command).parameters.items():
        if name != "context":
            kind, info = get_args(hints[name])
            yield name, kind, info, parameter.default


def _usage(name: str, command: Callable[..., Any]) -> str:
    words = [PROGRAM, name]
    for own, kind, info, default in _parameters(command):
        needed = default is inspect.Parameter.empty
        if isinstance(info, ArgumentInfo):
            words.append(f"{info.metavar}" if needed else f"[{info.metavar}]")
        elif needed:
            words.append(f"{_flags(own, info)[0]} {_word(own, kind, info)}")
    return " ".join([*words, "[OPTIONS]"]) if any(True for _ in _options(command)) else " ".join(words)


def _options(command: Callable[..., Any]) -> Iterator[str]:
    return (name for name, _, info, _ in _parameters(command) if not isinstance(info, ArgumentInfo))


def _parameter(name: str, kind: Any, info: Any, default: Any) -> tuple[str, str]:
    """Return term and meaning of an argument or option."""
    if isinstance(info, ArgumentInfo):
        return f"`{info.metavar}`", str(info.help)
    flags = ", ".join(sorted(_flags(name, info), key=len))
    word = _word(name, kind, info)
    usual = info.show_default if isinstance(info.show_default, str) else default
    shown = "" if any(usual is each for each in (None, False, inspect.Parameter.empty)) else f" (default {usual})"
    needed = " (required)" if default is inspect.Parameter.empty else ""
    return f"`{flags}{f' {word}' if word else ''}`{shown}{needed}", str(info.help)


def _flags(name: str, info: Any) -> list[str]:
    """Return the forms of an option. Typer keeps the first form where other declarations have a default."""
    first = info.default if isinstance(info.default, str) else None
    return [each for each in (first, *(info.param_decls or ())) if each] or [f"--{name.replace('_', '-')}"]


def _word(name: str, kind: Any, info: Any) -> str:
    """Return the word that stands for an option's value, empty for a switch."""
    kinds = [each for each in (kind, *get_args(kind)) if each is bool or each in WORDS]
    if kinds[:1] == [bool]:
        return ""
    return str(info.metavar or {"method": "METHOD", "model": "MODEL"}.get(name) or WORDS[kinds[0] if kinds else str])


def _items(of: dict[str, str]) -> str:
    return "\n".join(_item(f"`{term}`", text) for term, text in of.items())


def _item(term: str, text: str) -> str:
    return _filled(f"{term}: {text}", "- ", "  ")


def _filled(text: str, first: str = "", rest: str = "") -> str:
    words = "".join(
        part if part.startswith("`") else part.replace("*", r"\*")
        for part in re.split(r"(`[^`]*`)", " ".join(text.split()))
    )
    return textwrap.fill(
        words, WIDTH, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def _block(*lines: str) -> str:
    return "\n".join(["```console", *lines, "```"])


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
