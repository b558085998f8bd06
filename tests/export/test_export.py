"""Exports: what is drawn is what the plan says, in every format, for every method; files are whole or not there."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema
import networkx as nx
import pytest
import timm
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from localize import METHODS, LocalGraphModule, Plan, localize
from localize.export import FORMATS, Request, View, plan_schema
from localize.export.drawing.box_text import short, shown
from localize.export.drawing.dot import dot_source
from localize.export.drawing.draw import draw
from localize.export.drawing.drawing import Drawing, Group
from localize.export.drawing.fold import Repeat, repeats, runs
from localize.export.drawing.graphviz import write_pdf, write_png, write_svg
from localize.models import cifar_resnet
from localize.runtime.exporting import VIEWS, ExportError, ViewKind
from tests.models.graphs import bounded
from tests.models.hostile import hostile_model
from tests.tools.outside import laid_out, lines_of, needs_dot, unfit

HOSTILE = "a\"b'<script>alert(1)</script>&amp;\n\\l\\N\x07\u2028\u202e日本\ud800]]>--%>"


def _model(name: str) -> tuple[nn.Module, int]:
    if name.startswith("cifar"):
        return cifar_resnet(int(name.removeprefix("cifar"))), 32
    if name == "vit":
        return timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=6), 64
    if name == "densenet":
        return timm.create_model("densenet121", num_classes=10, block_config=(2, 2, 3, 2), growth_rate=16), 64
    if name == "bare":
        layers = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(4 * 64, 10)), 8
    return timm.create_model(name, num_classes=10), 64


@cache
def made(name: str, method: str = "auglocal", **options: Any) -> LocalGraphModule:
    with torch.device("meta"):
        model, size = _model(name)
    return localize(model, method, **{"d": 3, "example_inputs": torch.empty(2, 3, size, size), **options})


PAIRS = [
    *(("cifar20", method) for method in METHODS),
    *(("vit", method) for method in ("auglocal", "predsim", "infopro+mlaan")),
    ("densenet", "auglocal"),
    ("densenet", "mlaan"),
    ("mobilenetv2_100", "gn-dgl"),
    ("bare", "auglocal"),
]

every_pair = pytest.mark.parametrize(("name", "method"), PAIRS)
every_view = pytest.mark.parametrize("kind", VIEWS)


# What is drawn


def _groups(members: tuple[str | Group, ...]) -> list[Group]:
    found = [member for member in members if isinstance(member, Group)]
    return found + [inner for group in found for inner in _groups(group.members)]


def _placed(members: tuple[str | Group, ...]) -> list[str]:
    return [name for m in members for name in (m.nodes() if isinstance(m, Group) else (m,))]


def _checked(drawing: Drawing) -> Drawing:
    """Check a drawing: unique names, each placed once, arrows between them, in the order of execution."""
    names = [node.name for node in drawing.nodes]
    assert len({*names}) == len(names)
    assert sorted(_placed(drawing.members)) == sorted(names)
    order = {name: i for i, name in enumerate(names)}
    assert all(edge.source in order and edge.target in order for edge in drawing.edges)
    graph: nx.DiGraph[str] = nx.DiGraph((e.source, e.target) for e in drawing.edges)
    assert nx.is_directed_acyclic_graph(graph)
    assert nx.number_weakly_connected_components(graph) == 1
    for group in _groups(drawing.members):
        assert all(name in {*group.nodes()} for row in group.rows for name in row)
    return drawing


@every_pair
def test_full_drawings_show_the_plan(name: str, method: str) -> None:
    plan = made(name, method).plan
    drawing = _checked(draw(plan, View()))
    kinds = Counter(node.kind for node in drawing.nodes)
    assert (kinds["layer"], kinds["classifier"]) == (len(plan.layers), 1)
    assert kinds["block"] == sum(len(n.blocks) for m in plan.modules for n in m.networks)
    assert kinds["head"] == sum(len(m.networks) for m in plan.modules)
    assert kinds["term"] == sum(len(n.terms) for m in plan.modules for n in m.networks)
    assert Counter(edge.kind for edge in drawing.edges)["cut"] == len(plan.modules) - 1
    primary = [node for node in drawing.nodes if node.kind in ("layer", "classifier")]
    assert sum(int(node.facts["parameters"]) for node in primary) == plan.params
    assert sum(int(node.facts["macs"]) for node in primary) == plan.macs
    heads = [node for node in drawing.nodes if node.kind == "head"]
    assert sum(int(node.facts["macs"]) for node in heads) == plan.auxiliary_macs
    whole = [n for n in drawing.nodes if n.kind == "loss" and not n.lines[0].startswith("part")]
    assert len(whole) == (len(plan.modules) if plan.auxiliary_params else 0)
    copied = [node.facts["source_layer"] for node in drawing.nodes if "source_layer" in node.facts]
    assert copied == [b.source for m in plan.modules for n in m.networks for b in n.blocks if b.source is not None]


@every_view
@pytest.mark.parametrize("fold", [False, True])
def test_views(kind: ViewKind, fold: bool) -> None:
    for method in ("auglocal", "infopro+mlaan", "bp"):
        plan = made("cifar20", method).plan
        drawing = _checked(draw(plan, View(kind=kind, fold=fold)))
        kinds = {node.kind for node in drawing.nodes}
        assert ("layer" in kinds) == (kind in ("primary", "full"))
        assert ("module" in kinds) == (kind in ("local", "auxiliary"))
        assert ("head" in kinds) == (kind in ("auxiliary", "full") and method != "bp")
        assert ("loss" in kinds) == (kind != "primary" and method != "bp")
        if kind in ("local", "auxiliary") and not fold:
            modules = [node for node in drawing.nodes if node.kind == "module"]
            assert sum(int(node.facts["parameters"]) for node in modules) == plan.params


@every_pair
def test_folding_leaves_nothing_out(name: str, method: str) -> None:
    plan = made(name, method).plan
    found = runs(plan)
    assert [k for run in found for k in range(run.first, run.last + 1)] == list(range(len(plan.modules)))
    _checked(draw(plan, View(fold=True)))


@pytest.mark.parametrize("method", ["auglocal", "dgl", "mlaan", "gn-dgl"])
def test_a_deep_network_folds_to_a_few_boxes(method: str) -> None:
    plan = made("cifar110", method, d=6).plan
    assert len(plan.modules) >= 50
    assert sum(run.period for run in runs(plan)) <= 12


@given(st.lists(st.integers(0, 2), max_size=24))
def test_runs_say_what_they_stand_for(forms: list[int]) -> None:
    found = repeats(forms)
    assert [k for run in found for k in range(run.first, run.last + 1)] == list(range(len(forms)))
    for run in found:
        for index in run.shown:
            assert {forms[k] for k in run.like(index)} == {forms[index]}
    assert repeats(forms, fold=False) == tuple(Repeat(i) for i in range(len(forms)))


def test_one_module_is_looked_into() -> None:
    local = made("cifar20")
    for index, module in enumerate(local.plan.modules):
        drawing = _checked(draw(local.plan, View(module=index), local.compiled.network))
        operations = [node for node in drawing.nodes if node.kind == "operation"]
        layers = [group for group in _groups(drawing.members) if group.kind == "layer"]
        assert sum(int(node.facts["macs"]) for node in operations) == (
            sum(local.plan.layers[i].macs for i in module.layers)
            + (index == len(local.plan.modules) - 1) * local.plan.classifier_macs
        )
        assert len(layers) == len(module.layers) + (index == len(local.plan.modules) - 1)


def test_wide_cuts_are_labelled() -> None:
    local = made("cifar8", d=2)
    plan = local.plan
    widths = [plan.layers[m.layers[-1]].width for m in plan.modules[:-1]]
    assert max(widths) > 1
    labels = [edge.label for edge in draw(plan, View()).edges if edge.kind == "cut"]
    assert [" and 1 more" in label for label in labels] == [width == 2 for width in widths]
    for index in range(len(plan.modules)):
        _checked(draw(plan, View(module=index), local.compiled.network))


# Formats


@every_pair
def test_graphml_is_read_back(name: str, method: str, tmp_path: Path) -> None:
    local = made(name, method)
    graph = local.to_networkx()
    path = local.export(tmp_path / "graph.graphml")
    found = nx.read_graphml(path, force_multigraph=True)
    assert {**found.nodes} == {**graph.nodes}
    edges = [[(a, b, data.get("kind")) for a, b, data in each.edges(data=True)] for each in (found, graph)]
    assert sorted(edges[0]) == sorted(edges[1])
    assert graph.graph["parameters"] == local.plan.params
    ET.parse(path)


@every_pair
def test_plans_meet_the_published_schema(name: str, method: str, tmp_path: Path) -> None:
    plan = made(name, method).plan
    text = made(name, method).export(tmp_path / "plan.json").read_text()
    jsonschema.validate(json.loads(text), plan_schema(), jsonschema.Draft202012Validator)
    assert Plan.from_json(text) == plan


def test_the_schema_refuses_what_is_no_plan() -> None:
    schema = plan_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    good = json.loads(made("cifar8").plan.to_json())
    jsonschema.validate(good, schema)
    wrong: list[dict[str, Any]] = [
        {**good, "format": 2},
        {**good, "surprise": 1},
        {key: value for key, value in good.items() if key != "modules"},
        {**good, "modules": [{**good["modules"][0], "index": "0"}]},
        {**good, "input": {**good["input"], "layout": "CHWN"}},
    ]
    for value in wrong:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(value, schema)


@needs_dot
@every_pair
def test_pictures_have_their_text_in_its_place(name: str, method: str) -> None:
    """Nothing is cut off, no two lines of text overlap, and what is written in a box stays in it."""
    local = made(name, method)
    for view in (View(), View(fold=True), View(kind="local"), View(kind="auxiliary", fold=True)):
        layout = laid_out(FORMATS["dot"].write(Request(local, view)))
        assert lines_of(layout)
        assert unfit(layout) == []


@needs_dot
@pytest.mark.parametrize(("suffix", "begins"), [("svg", b"<?xml"), ("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_pictures_are_what_they_say(suffix: str, begins: bytes, tmp_path: Path) -> None:
    path = made("cifar8").export(tmp_path / f"picture.{suffix}", fold=True)
    assert path.read_bytes().startswith(begins)


@needs_dot
def test_text_in_a_picture_has_the_width_it_was_laid_out_with() -> None:
    request = Request(made("cifar20", "infopro+mlaan"), View(fold=True))
    texts = list(ET.fromstring(FORMATS["svg"].write(request)).iter("{http://www.w3.org/2000/svg}text"))
    assert len(texts) > 100
    lines = lines_of(laid_out(FORMATS["dot"].write(request)))
    laid = Counter((line.text, round(line.box[2] - line.box[0], 1)) for line in lines)
    found = Counter(
        ((text.text or "").replace("\N{NO-BREAK SPACE}", " "), float(text.get("textLength", 0))) for text in texts
    )
    assert found == laid


def test_without_graphviz_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ExportError, match="apt install graphviz"):
        made("cifar8").export(tmp_path / "a.svg")
    assert list(tmp_path.iterdir()) == []


def test_where_graphviz_fails_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "dot"
    program.write_text("#!/bin/sh\necho 'no such thing' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(program))
    with pytest.raises(ExportError, match="did not draw the graph: no such thing"):
        made("cifar8").export(tmp_path / "a.svg")
    assert [path.name for path in tmp_path.iterdir()] == ["dot"]


def test_tensorboard(tmp_path: Path) -> None:
    local = made("cifar20")
    with SummaryWriter(tmp_path) as writer:
        local.add_graph(writer)
    events = EventAccumulator(str(tmp_path)).Reload()
    graph = events.Graph()
    assert len(graph.node) == len(draw(local.plan, View()).nodes)
    names = {node.name for node in graph.node}
    assert {name for node in graph.node for name in node.input} <= names
    assert "module_1.layer1.0/layer_1.layer1.0" in names
    with pytest.raises(ExportError, match="a PosixPath does not write for TensorBoard"):
        local.add_graph(tmp_path)


def test_notebooks_show_a_table() -> None:
    local = made("cifar20", "mlaan")
    page = ET.fromstring(local.plan._repr_html_())
    rows = page.findall(".//tbody/tr")
    assert len(rows) == len(local.plan.modules)
    assert [row[0].text for row in rows] == [f"{m.index} {m.name}" for m in local.plan.modules]
    for line in str(local.plan).splitlines()[:2]:
        assert line in "".join(page.itertext())


# Names


def _renamed(plan: Plan, name: str) -> Plan:
    layers = tuple(dataclasses.replace(layer, name=f"{name}{layer.index}") for layer in plan.layers)
    modules = tuple(dataclasses.replace(m, name=f"{name}{m.index}", note=name) for m in plan.modules)
    return dataclasses.replace(plan, model=name, layers=layers, modules=modules)


@needs_dot
@bounded(4)
@example(HOSTILE)
@given(st.text(min_size=1, max_size=60))
def test_no_name_breaks_a_graph(name: str) -> None:
    plan = _renamed(made("cifar8").plan, name)
    for view in (View(), View(kind="local", fold=True)):
        layout = laid_out(dot_source(draw(plan, view)).encode("utf-8"))
        assert shown(f"{name} by auglocal") in {line.text for line in lines_of(layout)}


@needs_dot
@bounded(6)
@example(HOSTILE.replace(".", ""))
@given(st.text(min_size=1, max_size=30).filter(lambda name: "." not in name))
def test_no_name_of_a_module_breaks_a_file(name: str) -> None:
    inner = nn.Sequential()
    for i in range(3):
        inner.add_module(f"{name}{i}", nn.Conv2d(3, 3, 3, padding=1))
    model = nn.Sequential(inner, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    local = localize(model, d=2, example_inputs=torch.empty(2, 3, 8, 8), verify=False)
    svg = ET.fromstring(FORMATS["svg"].write(Request(local, View())))
    assert {element.tag.split("}")[1] for element in svg.iter()} <= {
        "svg", "g", "title", "polygon", "path", "text", "a", "ellipse", "polyline",
    }  # fmt: skip
    ET.fromstring(FORMATS["graphml"].write(Request(local, View(module=1))))
    assert Plan.from_json(FORMATS["json"].write(Request(local, View())).decode()) == local.plan
    ET.fromstring(local.plan._repr_html_())


def test_names_that_are_markup_and_code(tmp_path: Path) -> None:
    """Files are as they should be, or refused for a name that the format cannot hold."""
    local = localize(hostile_model(), d=2, example_inputs=torch.zeros(2, 3, 16, 16), seed=0)
    for form in FORMATS:
        path = tmp_path / f"hostile.{form}"
        if FORMATS[form].values:
            with pytest.raises(ExportError, match=r"torch\.export writes names into Python code as they are"):
                local.export(path)
            assert not path.exists()
        elif FORMATS[form].write not in (write_svg, write_png, write_pdf) or shutil.which("dot"):
            assert local.export(path).stat().st_size > 1000
    names: dict[str, Any] = {"__name__": "exported"}
    exec((tmp_path / "hostile.py").read_text(encoding="utf-8"), names)
    network = names["Localized"]()
    network.load_state_dict(local.state_dict())
    x, y = torch.randn(2, 3, 16, 16), torch.tensor([1, 2])
    for (name, loss, _), out in zip(network.steps(x, y), local.steps(x, y), strict=True):
        assert name == out.name
        assert torch.equal(loss, out.loss)
    assert "hacked" not in names


@given(st.text())
def test_shown_names_are_one_line_of_printable_text(name: str) -> None:
    text = shown(name)
    assert text.isprintable()
    text.encode("utf-8")
    assert len(short(name, 20)) <= 20


# Files


def test_signature_and_formats() -> None:
    assert set(FORMATS) >= {"dot", "svg", "png", "pdf", "graphml", "json"}
    for form in FORMATS.values():
        assert {*form.views} <= {*get_args(ViewKind)}


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")
    with pytest.raises(ExportError, match=r"plan.json exists\. Give another name, or force"):
        made("cifar8").export(path)
    assert path.read_text() == "mine"
    assert made("cifar8").export(path, force=True) == path
    assert Plan.from_json(path.read_text()) == made("cifar8").plan


def test_a_failed_export_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.json"
    path.write_text("mine")

    def broken(source: Any, target: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="no space left"):
        made("cifar8").export(path, force=True)
    assert [(item.name, item.read_text()) for item in tmp_path.iterdir()] == [("plan.json", "mine")]


@pytest.mark.parametrize(
    ("name", "asked", "message"),
    [
        ("plan", {}, r"the format of .*plan is not known: its name has no suffix\. Formats: dot, svg"),
        ("plan.jsn", {}, r"unknown format 'jsn'\. Did you mean json\?"),
        ("plan.txt", {"format": "grapml"}, r"unknown format 'grapml'\. Did you mean graphml\?"),
        ("plan.json", {"view": "primary"}, "json has no view 'primary'"),
        ("plan.svg", {"view": "everything"}, r"unknown view 'everything'\. Views: primary, local, auxiliary, full"),
        ("plan.json", {"fold": True}, "json has neither a single module nor folding"),
        ("plan.dot", {"module": 99}, r"module must be an integer from 0 to \d+, got 99"),
        ("plan.dot", {"module": -1}, "module must be an integer from 0 to .*, got -1"),
        ("plan.dot", {"module": True}, "module must be an integer from 0 to .*, got True"),
        ("missing/plan.dot", {}, "the folder .*missing does not exist"),
    ],
)
def test_what_is_refused(name: str, asked: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        made("cifar8").export(tmp_path / name, **asked)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.svg").mkdir()
    with pytest.raises(ExportError, match=r"a.svg is a folder"):
        made("cifar8").export(tmp_path / "a.svg", force=True)


def test_a_copy_exports_too(tmp_path: Path) -> None:
    import copy

    local = localize(cifar_resnet(8, width=4), d=2, example_inputs=torch.empty(2, 3, 16, 16))
    twin = copy.deepcopy(local)
    files = [each.export(tmp_path / f"{i}.dot", module=1) for i, each in enumerate((local, twin))]
    assert files[0].read_bytes() == files[1].read_bytes()
