"""Pictures, graphs, plans and pages of thirty models by six methods, each read by a program that is not ours."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import jsonschema
import networkx as nx
import pytest

from localize import Plan
from localize.export import FORMATS, Request, View, plan_schema
from tests.models.thirty import allowed, pairs
from tests.tools.chromium import OVERLAPS, Chromium
from tests.tools.outside import laid_out, lines_of, needs_dot, unfit


@needs_dot
@pytest.mark.registry
@pytest.mark.parametrize(("name", "method"), pairs())
def test_every_drawn_format(name: str, method: str, browser: Chromium, tmp_path: Path) -> None:
    local = allowed(name, method)
    if local is None:
        return
    views = [View(kind=kind, fold=fold) for kind in FORMATS["dot"].views for fold in (False, True)]
    for view in (*views, View(module=1)):
        layout = laid_out(FORMATS["dot"].write(Request(local, view)))
        assert unfit(layout) == []
        assert lines_of(layout)
    ET.fromstring(FORMATS["svg"].write(Request(local, View())))
    assert nx.read_graphml(local.export(tmp_path / "g.graphml"), force_multigraph=True).nodes
    text = local.export(tmp_path / "plan.json").read_text(encoding="utf-8")
    jsonschema.validate(json.loads(text), plan_schema(), jsonschema.Draft202012Validator)
    assert Plan.from_json(text) == local.plan
    browser.open(local.export(tmp_path / "page.html"))
    assert browser.complaints == []
    assert browser.requests == [(tmp_path / "page.html").as_uri()]
    assert browser.evaluate(OVERLAPS) == []
