"""The page as a file: it loads nothing, names are text in it, and it holds what was asked."""

from __future__ import annotations

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from localize import LocalGraphModule, localize
from localize.export import View, export
from localize.export.page import page as module
from localize.export.page.page import embedded, write_page
from localize.export.page.page_data import FOLD_FROM
from localize.export.request import Request
from localize.models import cifar_resnet
from localize.runtime.exporting import VIEWS
from passes.errors import PlanError
from tests.models.hostile import CLASS, LAYERS, hostile_loss, hostile_model

VENDOR = Path(module.__file__).parent / "assets" / "vendor"
EXAMPLE = torch.zeros(2, 3, 16, 16)


class Parts(HTMLParser):
    """What a file is made of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.loads: list[str | None] = []
        self.policy = ""
        self.tags: list[str] = []
        self.title = ""
        self._inside = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self._inside = tag
        self.loads += [given[name] for name in ("src", "href", "srcset", "action", "data", "poster") if name in given]
        if tag == "script":
            self.scripts.append((given, ""))
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            given, text = self.scripts.pop()
            self.scripts.append((given, text + data))
        elif self._inside == "style":
            self.styles.append(data)
        elif self._inside == "title":
            self.title += data

    def data(self) -> Any:
        (found,) = [text for given, text in self.scripts if given.get("type") == "application/json"]
        return json.loads(found)


@pytest.fixture(scope="module")
def local() -> LocalGraphModule:
    return localize(cifar_resnet(8, width=4), d=2, example_inputs=EXAMPLE, max_cut=1, seed=0)


def parts(local: LocalGraphModule, **view: Any) -> Parts:
    return Parts(write_page(Request(local, View(**view))).decode("utf-8"))


def test_one_file_that_loads_nothing(local: LocalGraphModule) -> None:
    found = parts(local)
    assert found.loads == ["data:,"]
    assert "default-src 'none'" in found.policy
    assert "unsafe" not in found.policy
    for text in (*found.styles, *(text for _, text in found.scripts)):
        assert "sourceMappingURL" not in text
        assert "@import" not in text
        assert "http:" not in text.replace("http://www.w3.org", "")
        assert "https:" not in text


def test_policy_names_the_scripts_and_styles(local: LocalGraphModule) -> None:
    found = parts(local)
    run = [text for given, text in found.scripts if given.get("type") != "application/json"]
    assert len(run) == 2
    for text in (*run, *found.styles):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in found.policy


def test_holds_the_plan(local: LocalGraphModule) -> None:
    data, plan = parts(local).data(), local.plan
    assert data["params"] == plan.params
    assert [module["name"] for module in data["modules"]] == [module.name for module in plan.modules]
    assert [module["auxMacs"] for module in data["modules"]] == [sum(n.macs for n in m.networks) for m in plan.modules]
    assert [module["code"] for module in data["modules"]] == [module.code.strip() for module in local.local_modules]
    memory = plan.memory(data["memory"]["batch"])
    assert data["memory"]["own"]["peak"] == memory.peak
    assert data["memory"]["bp"]["peak"] == memory.rivals[0].peak
    assert [module["memory"]["peak"] for module in data["modules"]] == [module.peak for module in memory.modules]


@pytest.mark.parametrize("kind", VIEWS)
def test_views(local: LocalGraphModule, kind: Any) -> None:
    assert parts(local, kind=kind, fold=True).data()["view"]["kind"] == kind


def test_a_single_module(local: LocalGraphModule) -> None:
    assert parts(local, module=1).data()["view"]["module"] == 1


def test_many_modules_are_folded_unasked(local: LocalGraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not parts(local).data()["view"]["fold"]
    monkeypatch.setattr("localize.export.page.page_data.FOLD_FROM", len(local.plan.modules))
    view = parts(local).data()["view"]
    assert view["fold"]
    assert not view["asked"]
    assert FOLD_FROM == 41


def test_names_are_text() -> None:
    local = localize(hostile_model(), d=2, example_inputs=EXAMPLE, criterion=hostile_loss, seed=0)
    content = write_page(Request(local, View()))
    found = Parts(content.decode("utf-8"))
    assert len(found.scripts) == 3
    assert "img" not in found.tags
    assert "\n" not in found.title
    data = found.data()
    assert data["model"] == CLASS
    assert data["criterion"] == hostile_loss.__name__
    assert [layer["name"] for layer in data["layers"]] == list(LAYERS)


def test_embedded_json_has_no_markup() -> None:
    data = {"</script>": ["<!--", "]]>", "&amp;", "\u2028\u2029", "\ud800", 1.5, None]}
    text = embedded(data)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == data


def test_says_why_there_is_no_memory(local: LocalGraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PlanError("it depends on <values>")

    monkeypatch.setattr("localize.export.page.page_data.step_memory", refuse)
    memory = parts(local).data()["memory"]
    assert memory["why"] == "it depends on <values>"


def test_export_by_suffix(local: LocalGraphModule, tmp_path: Path) -> None:
    path = export(local, tmp_path / "model.html", view="local", fold=True)
    assert path.read_bytes().startswith(b"<!doctype html>")


def test_the_vendored_library_is_what_it_says() -> None:
    (about,) = json.loads((VENDOR / "VERSIONS.json").read_text(encoding="utf-8"))
    assert about["name"] == "@dagrejs/dagre"
    assert "://" not in json.dumps(about)
    for name, digest in about["sha256"].items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
    assert {path.name for path in VENDOR.iterdir()} == {*about["sha256"], "VERSIONS.json"}
    assert "Permission is hereby granted" in (VENDOR / "dagre.LICENSE").read_text(encoding="utf-8")
