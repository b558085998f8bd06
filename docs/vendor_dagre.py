"""Fetch the graph layout library of exported pages: ``python docs/vendor_dagre.py [VERSION]``. Needs npm.

Its files go to ``localize/export/page/assets/vendor`` unchanged, with their licence. VERSIONS.json names the version.
Nothing is fetched when a page is written or opened.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGE = "@dagrejs/dagre"
VERSION = "3.1.3"
FILES = {
    "package/dist/dagre.min.js": "dagre.min.js",
    "package/dist/dagre.min.js.LEGAL.txt": "dagre.min.js.LEGAL.txt",
    "package/LICENSE": "dagre.LICENSE",
}
TARGET = Path(__file__).parent.parent / "localize" / "export" / "page" / "assets" / "vendor"


def main(version: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "--silent", f"{PACKAGE}@{version}", "--pack-destination", folder], check=True)
        (archive,) = Path(folder).glob("*.tgz")
        with tarfile.open(archive) as packed:
            contents = {name: packed.extractfile(path).read() for path, name in FILES.items()}  # type: ignore[union-attr]
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    about = {"name": PACKAGE, "version": version, "licence": "MIT", "sha256": files}
    TARGET.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (TARGET / name).write_bytes(content)
    (TARGET / "VERSIONS.json").write_text(json.dumps([about], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*(sys.argv[1:] or [VERSION]))
