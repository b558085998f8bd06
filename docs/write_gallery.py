"""Write docs/gallery.md and its pictures with ``localize-cli export``: ``python docs/write_gallery.py``.

Needs Graphviz, and Chromium for pictures of the page.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

from localize.cli.main import main

FOLDER = Path(__file__).parent / "gallery"
INTRODUCTION = """# Gallery

Pictures that `localize-cli export` draws of a few networks; in Python, `local.export("file.svg")` draws the same. The
suffix of the file chooses the format: see [Exports](guide/exports.md).

The primary network is blue and runs from top to bottom. Auxiliary networks are yellow and lead from the output of a
local module to its loss, in red. A dashed arrow is a cut: the value passes, the gradient does not.
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the gallery."""

    file: str
    """Name of the picture's file; pages are photographed as ``.png``."""
    title: str
    words: str
    command: str
    """Arguments of ``localize-cli export``, without the file."""
    window: tuple[int, int] | None = None
    """Width and height of the browser window, for a page; None for a picture by Graphviz."""
    flags: tuple[str, ...] = ()
    """Further flags of the browser."""


PICTURES = (
    Picture(
        "resnet20.svg",
        "ResNet-20 by AugLocal",
        "Each local module's auxiliary network copies later layers of the network itself, spread evenly.",
        "localize:cifar_resnet20 -d 3",
    ),
    Picture(
        "resnet110.svg",
        "ResNet-110, folded",
        "Fifty local modules, eleven of them different: `--fold` draws those that are alike once, with their number.",
        "localize:cifar_resnet110 -d 6 --fold",
    ),
    Picture(
        "page.png",
        "The page",
        "`html` is one file that needs no network. Zoom, search and fold; hover over a loss to see which layers its "
        "gradient reaches; click for figures and generated code. Below is memory over one training step, next to "
        "backpropagation.",
        "localize:cifar_resnet32 -d 4",
        (1400, 900),
    ),
    Picture(
        "page-dark.png",
        "The page, dark",
        "ResNet-110, folded.",
        "localize:cifar_resnet110 -d 6 --fold",
        (1400, 900),
        ("--force-dark-mode", "--blink-settings=preferredColorScheme=0"),
    ),
    Picture(
        "vit.svg",
        "A vision transformer, folded",
        "The attention and the MLP of a block are separate local layers. Heads read the mean of all tokens.",
        "timm:vit_tiny_patch16_224 --method predsim --fold",
    ),
    Picture(
        "mlaan.svg",
        "Cascades: MLAAN",
        "Losses have several parts and also train earlier modules.",
        "localize:cifar_resnet20 --method infopro+mlaan --fold",
    ),
    Picture(
        "module.svg",
        "Inside one module",
        "`--module 3` shows the operations of that module.",
        "localize:cifar_resnet20 -d 3 --module 3",
    ),
    Picture(
        "densenet.svg",
        "Only the cuts",
        "`--view local` draws one box for each local module, here of DenseNet-121.",
        "timm:densenet121 --method dgl --view local",
    ),
)


def draw(picture: Picture) -> None:
    """Draw one picture."""
    target = FOLDER / picture.file
    if picture.window is None:
        _export(picture, target)
        return
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        _export(picture, page)
        _photograph(page, target, picture.window, picture.flags, folder)


def _export(picture: Picture, target: Path) -> None:
    try:
        main(["export", *shlex.split(picture.command), "-o", str(target), "--force"])
    except SystemExit as done:
        if done.code:
            raise


def _photograph(page: Path, target: Path, window: tuple[int, int], flags: tuple[str, ...], profile: str) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    assert browser is not None, "the pictures of pages need Chromium"
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    size = f"--window-size={window[0]},{window[1]}"
    command = [browser, *quiet, "--disable-sync", "--hide-scrollbars", f"--user-data-dir={profile}/profile", size]
    done = [f"--screenshot={target}", "--virtual-time-budget=6000", page.as_uri()]
    subprocess.run([*command, *flags, *done], check=True, capture_output=True)


def text() -> str:
    """Return the text of docs/gallery.md."""
    parts = [INTRODUCTION]
    for picture in PICTURES:
        file = picture.file if picture.window is None else "page.html"
        command = f"```console\nlocalize-cli export {picture.command} -o {file}\n```\n"
        image = f"![{picture.title}](gallery/{picture.file})\n"
        parts.append(f"## {picture.title}\n\n{_wrapped(picture.words)}\n\n{command}\n{image}")
    return "\n".join(parts)


def _wrapped(words: str) -> str:
    return textwrap.fill(words, 120, break_long_words=False, break_on_hyphens=False)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for each in PICTURES:
        draw(each)
    (FOLDER.parent / "gallery.md").write_text(text(), encoding="utf-8")
