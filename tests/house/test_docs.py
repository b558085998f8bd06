"""README and docs tell the truth about the code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50

from docs import write_gallery
from localize import localize
from localize.export import plan_schema
from localize.memory.peak import peak_step_bytes
from localize.models import cifar_resnet
from tests.tools.documents import assert_page_runs
from tests.tools.paths import ROOT

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
WITH_CODE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", DOCS / "index.md", *sorted((DOCS / "guide").glob("*.md"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]
RULES: list[tuple[str, dict[str, Any]]] = [("auglocal", {"d": 2, "max_cut": 1}), ("bp", {})]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", WITH_CODE, ids=_name)
def test_code_blocks_run_and_show_their_output(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)  # what a page writes is gone afterwards
    assert_page_runs(path)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    targets = [*re.findall(r"\]\(([^)#\s]+)", text), *re.findall(r'(?:src|srcset|href)="([^"#]+)"', text)]
    relative = [target for target in targets if not re.match(r"https?://", target)]
    assert [target for target in relative if not (path.parent / target).exists()] == []


@pytest.mark.parametrize(("path", "most"), [(ROOT / "README.md", 200), (DOCS / "architecture.md", 150)])
def test_first_pages_are_short(path: Path, most: int) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    pages = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert [page for page in pages if f'"{page}"' not in navigation] == []


def test_memory_of_a_shallow_network() -> None:
    local, plain = (peak_step_bytes(localize(cifar_resnet(8), rule, **d), 256) for rule, d in RULES)
    assert local > plain


@pytest.mark.parametrize(("rule", "peak"), [("auglocal", "3.24 GB"), ("bp", "9.20 GB")])
def test_readme_on_memory_of_a_segmentation_network(rule: str, peak: str) -> None:
    with torch.device("meta"):
        model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    local = localize(model, rule, d=2, example_inputs=torch.empty(2, 3, 512, 512))
    assert f"{peak_step_bytes(local, 8, image_shape=(3, 512, 512)) / 1e9:.2f} GB" == peak
    assert re.search(rf"^\| FCN-ResNet-50.*\| {len(local.plan.modules)} \|.*{re.escape(peak)}", README, re.MULTILINE)


def test_the_published_schema_is_the_codes() -> None:
    published = json.loads((DOCS / "plan.schema.json").read_text(encoding="utf-8"))
    assert published == plan_schema(), "run python docs/write_schema.py"


def test_the_gallery_is_what_its_script_writes() -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert text == write_gallery.text(), "run python docs/write_gallery.py"
    pictures = {path.name for path in (DOCS / "gallery").iterdir()}
    assert pictures == {picture.file for picture in write_gallery.PICTURES}
