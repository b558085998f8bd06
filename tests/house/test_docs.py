"""README and docs tell the truth about the code."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
from torchvision.models.segmentation import fcn_resnet50

from docs import write_gallery
from localize import localize
from localize.cli.main import main
from localize.export import plan_schema
from localize.memory.live_bytes import peak_step_bytes
from localize.models import cifar_resnet
from tests.tools.paths import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def _block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def test_readme_code_runs_and_prints_the_plan_it_shows() -> None:
    names: dict[str, Any] = {"loader": [(torch.randn(2, 3, 64, 64), torch.tensor([1, 2]))]}
    exec(_block("python"), names)
    assert str(names["local"].plan) == _block("text").rstrip("\n")


def test_readme_shows_what_the_command_line_says_of_memory(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(
        r"^localize-cli (memory localize:.*)\n```\n\n```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE
    )
    assert found is not None
    with pytest.raises(SystemExit):
        main(found[1].split())
    assert capsys.readouterr().out == found[2]


def test_readme_on_memory_of_a_shallow_network() -> None:
    local, plain = (peak_step_bytes(localize(cifar_resnet(8), rule, **d), 256) for rule, d in RULES)
    assert local > plain


@pytest.mark.parametrize(("rule", "peak"), [("auglocal", "3.24 GB"), ("bp", "9.20 GB")])
def test_readme_on_memory_of_a_segmentation_network(rule: str, peak: str) -> None:
    with torch.device("meta"):
        model = fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    local = localize(model, rule, d=2, example_inputs=torch.empty(2, 3, 512, 512))
    assert f"{peak_step_bytes(local, 8, image_shape=(3, 512, 512)) / 1e9:.2f} GB" == peak
    assert f"| {len(local.plan.modules)} | not trained | {peak}, batch 8 |" in README


RULES: list[tuple[str, dict[str, Any]]] = [("auglocal", {"d": 2, "max_cut": 1}), ("bp", {})]


def test_links_of_the_readme_lead_somewhere() -> None:
    targets = [*re.findall(r"\]\(([^)#]+)\)", README), *re.findall(r'(?:src|srcset)="([^"]+)"', README)]
    assert targets
    assert [target for target in targets if not target.startswith("http") and not (ROOT / target).exists()] == []


def test_the_published_schema_is_the_codes() -> None:
    found = json.loads((ROOT / "docs" / "plan.schema.json").read_text(encoding="utf-8"))
    assert found == plan_schema(), "run python docs/write_schema.py"


def test_the_gallery_is_what_its_script_writes() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert text == write_gallery.text(), "run python docs/write_gallery.py"
    pictures = {path.name for path in (ROOT / "docs" / "gallery").iterdir()}
    assert pictures == {picture.file for picture in write_gallery.PICTURES}
