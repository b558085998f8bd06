"""The page in a browser: it draws itself without complaints, and answers pointer and keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from localize import localize
from localize.export import View
from localize.export.page.page import write_page
from localize.export.request import Request
from localize.models import cifar_resnet
from tests.models.hostile import END, LAYERS, hostile_loss, hostile_model
from tests.tools.chromium import OVERLAPS, Chromium

EXAMPLE = torch.zeros(2, 3, 32, 32)

STICKING_OUT = """
[...document.querySelectorAll("#world .node:not(.module)")].filter((node) => {
  const box = node.querySelector(".box").getBoundingClientRect();
  return [...node.querySelectorAll("text")].some((text) => {
    const own = text.getBoundingClientRect();
    return own.width && (own.left < box.left || own.right > box.right);
  });
}).map((node) => node.textContent)
"""
OUTSIDE = """
(() => {
  const frame = document.getElementById("graph").getBoundingClientRect();
  return [...document.querySelectorAll("#world *")].filter((element) => {
    const box = element.getBoundingClientRect();
    if (!box.width && !box.height) return false;
    const wide = box.left < frame.left - 1 || box.right > frame.right + 1;
    return wide || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map((element) => element.outerHTML.slice(0, 200));
})()
"""


class Pages:
    """Files made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: dict[str, Any] = {}

    def local(self, name: str) -> Any:
        if name not in self.made:
            self.made[name] = MAKE[name]()
        return self.made[name]

    def __call__(self, name: str, **view: Any) -> Path:
        path = self.folder / f"{name}{'-'.join(f'{k}{v}' for k, v in view.items())}.html"
        if not path.exists():
            path.write_bytes(write_page(Request(self.local(name), View(**view))))
        return path


def _vit() -> Any:
    timm = pytest.importorskip("timm")
    return localize(timm.create_model("vit_tiny_patch16_224"), d=2, seed=0)


def _densenet() -> Any:
    models = pytest.importorskip("torchvision.models")
    model = models.DenseNet(growth_rate=8, block_config=(2, 2, 2), num_init_features=16, num_classes=10)
    return localize(model, d=2, example_inputs=torch.zeros(2, 3, 64, 64), max_cut=8, seed=0)


def _mlp(count: int) -> nn.Module:
    blocks = [nn.Sequential(nn.Linear(48 if i else 3 * 1024, 48), nn.ReLU()) for i in range(count)]
    return nn.Sequential(nn.Flatten(), *blocks, nn.Linear(48, 10))


MAKE: dict[str, Any] = {
    "resnet": lambda: localize(cifar_resnet(32), d=3, example_inputs=EXAMPLE, seed=0),
    "deep": lambda: localize(cifar_resnet(110), d=6, example_inputs=EXAMPLE, seed=0),
    "mlaan": lambda: localize(cifar_resnet(14), "mlaan", example_inputs=EXAMPLE, seed=0),
    "groups": lambda: localize(cifar_resnet(20), "gn-dgl", modules=4, example_inputs=EXAMPLE, seed=0),
    "infopro": lambda: localize(cifar_resnet(14), "infopro", example_inputs=EXAMPLE, seed=0),
    "vit": _vit,
    "densenet": _densenet,
    "many": lambda: localize(_mlp(150), d=2, example_inputs=EXAMPLE, seed=0),
    "hostile": lambda: localize(
        hostile_model(), d=2, example_inputs=torch.zeros(2, 3, 16, 16), criterion=hostile_loss, seed=0
    ),
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Pages:
    return Pages(tmp_path_factory.mktemp("pages"))


def centre(browser: Chromium, element: str) -> tuple[float, float]:
    """Where an element is in the window."""
    box = browser.evaluate(f"""(() => {{
        const box = document.getElementById({element!r}).getBoundingClientRect();
        return [box.left + box.width / 2, box.top + box.height / 2];
    }})()""")
    return box[0], box[1]


def count(browser: Chromium, selector: str) -> int:
    return int(browser.evaluate(f"document.querySelectorAll({selector!r}).length"))


def facts(browser: Chromium) -> dict[str, str]:
    """Return the entries of the panel by name."""
    found = browser.evaluate("""[...document.querySelectorAll("#panel .facts dt")].map(
        (name) => [name.textContent, name.nextSibling.textContent])""")
    return {name: value for name, value in reversed(found)}


def focused(browser: Chromium) -> str:
    return str(browser.evaluate("document.activeElement.id"))


@pytest.mark.parametrize("name", ["resnet", "deep", "mlaan", "groups", "infopro", "vit", "densenet"])
def test_draws_without_complaints(browser: Chromium, pages: Pages, name: str) -> None:
    path = pages(name)
    browser.open(path)
    assert browser.complaints == []
    assert browser.requests == [path.as_uri()]
    assert count(browser, "#world .module-card") > 3
    assert count(browser, "#memory path.line") == 2
    assert browser.evaluate(STICKING_OUT) == []
    assert browser.evaluate(OVERLAPS) == []
    browser.evaluate("document.getElementById('whole').click()")
    browser.settle()
    assert browser.evaluate(OVERLAPS) == []
    assert browser.evaluate(OUTSIDE) == []


@pytest.mark.parametrize("kind", ["primary", "local", "auxiliary"])
def test_views(browser: Chromium, pages: Pages, kind: str) -> None:
    browser.open(pages("resnet", kind=kind))
    assert browser.complaints == []
    assert (count(browser, ".node.loss") > 0) == (kind != "primary")
    assert (count(browser, ".node.block") > 0) == (kind == "auxiliary")
    assert (count(browser, ".wall") > 0) == (kind != "primary")
    assert count(browser, ".node.box") == (0 if kind == "primary" else 14)
    assert browser.evaluate(OVERLAPS) == []


def test_a_single_module(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet", module=3))
    assert count(browser, ".module-card") == 1
    assert browser.evaluate("[...document.querySelectorAll('.node.layer')].map((node) => node.id)") == ["m3.l3"]
    ends = browser.evaluate("[...document.querySelectorAll('.end text')].map((text) => text.textContent)")
    assert [end.split("  ")[0] for end in ends] == ["from module 2", "to module 4"]


def test_a_click_opens_details(browser: Chromium, pages: Pages) -> None:
    local = pages.local("resnet")
    browser.open(pages("resnet"))
    browser.pointer(*centre(browser, "m1"), click=True)
    found = facts(browser)
    module = local.plan.modules[1]
    assert module.auxiliary is not None
    assert found["output"] == "16\u2009\u00d7\u200932\u2009\u00d7\u200932"
    assert found["parameters"] == "4.67k"
    assert found["depth"] == f"d = {module.auxiliary.depth}"
    code = browser.evaluate("document.querySelector('#panel .code').textContent")
    assert code == local.local_modules[1].code.strip()
    names = browser.evaluate("[...document.querySelectorAll('#panel .names li')].map((item) => item.textContent)")
    assert names == list(module.parameters)
    browser.key("Escape")
    assert count(browser, ".has-panel") == 0


def test_a_drag_moves_and_opens_nothing(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    browser.key("Escape")
    start = centre(browser, "m1.l1")
    browser.drag(start, (start[0] + 60, start[1] + 40))
    end = centre(browser, "m1.l1")
    assert (end[0] - start[0], end[1] - start[1]) == pytest.approx((60, 40), abs=2)
    assert count(browser, ".has-panel") == 0


def test_wheel_and_keys_zoom(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    scale = "Number(document.getElementById('world').getAttribute('transform').match(/scale\\((.*)\\)/)[1])"
    before = browser.evaluate(scale)
    browser.wheel(400, 300, down=-200)
    closer = browser.evaluate(scale)
    assert closer > before
    browser.key("-")
    assert browser.evaluate(scale) < closer
    browser.key("0")
    assert count(browser, "#graph.is-far") == 1


def test_search_finds_a_module(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("deep"))
    assert count(browser, "#m35") == 0  # folded
    browser.key("/")
    assert focused(browser) == "search"
    browser.type("layer2.16")
    assert count(browser, "#results [role=option]") >= 1
    browser.key("Enter")
    assert focused(browser) == "m35"
    assert browser.evaluate("document.querySelector('#panel h2').textContent") == "layer2.16"
    x, y = centre(browser, "m35")
    assert 0 < x < 1400
    assert 60 < y < 760
    browser.key("/")
    browser.type("nothing of this kind")
    assert count(browser, "#results .none") == 1


def test_folding(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("deep"))
    folded = count(browser, ".module-card")
    assert folded < 20
    assert count(browser, ".row-frame") > 0
    browser.pointer(*centre(browser, "run1"), click=True)
    assert count(browser, ".module-card") == folded + 8
    browser.evaluate("document.getElementById('fold').click()")
    assert count(browser, ".module-card") == folded
    browser.evaluate("document.getElementById('fold').click()")
    assert count(browser, ".module-card") == 50
    assert browser.evaluate(OVERLAPS) == []
    assert browser.complaints == []


PRESS_EVERYTHING = """
(async () => {
  for (const id of [...document.querySelectorAll("#world .node")].map((node) => node.id)) {
    const node = document.getElementById(id);
    if (!node) continue;
    node.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, clientX: 300, clientY: 300 }));
    node.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    const link = document.querySelector("#panel .link:last-child");
    if (link) link.click();
  }
  const chart = document.querySelector(".chart");
  const { left, top, width } = chart.getBoundingClientRect();
  for (let x = 0; x < width; x += 40) {
    chart.dispatchEvent(new PointerEvent("pointermove", { clientX: left + x, clientY: top + 20 }));
    chart.dispatchEvent(new MouseEvent("click", { clientX: left + x, clientY: top + 20 }));
  }
  for (const name of ["fold", "about", "whole", "in", "out", "theme"]) document.getElementById(name).click();
  for (const key of ["End", "ArrowRight", "ArrowUp", "Home", "ArrowLeft", "Enter", "Escape"]) {
    const current = document.querySelector("#world [tabindex='0']");
    current.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  }
})()
"""


@pytest.mark.parametrize("name", ["deep", "mlaan", "groups"])
def test_everything_can_be_pressed(browser: Chromium, pages: Pages, name: str) -> None:
    browser.open(pages(name))
    browser.evaluate(PRESS_EVERYTHING)
    browser.settle()
    assert browser.complaints == []


@pytest.mark.parametrize("kind", ["primary", "local", "auxiliary", "full"])
def test_everything_of_one_module_can_be_pressed(browser: Chromium, pages: Pages, kind: str) -> None:
    browser.open(pages("mlaan", kind=kind, module=2))
    browser.evaluate(PRESS_EVERYTHING)
    browser.settle()
    assert browser.complaints == []


def test_keys_walk(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    assert count(browser, "#world [tabindex='0']") == 1
    browser.evaluate("document.querySelector('#world [tabindex=\"0\"]').focus()")
    walked = []
    keys = ["ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowDown", "ArrowLeft"]
    for key in keys:
        browser.key(key)
        walked.append(focused(browser))
    aux = ["m1.own.g0.b0", "m1.own.g0.b1", "m1.own.g0.head", "m1.own.loss"]
    assert walked == ["m0.l0", "m1", *aux, "m2.own.loss", "m2.own.g0.head"]
    assert count(browser, "#world [tabindex='0']") == 1
    browser.key("End")
    assert focused(browser) == "m13.own.loss"
    browser.key("Enter")
    assert browser.evaluate("document.querySelector('#panel h2').textContent") == "output loss"
    browser.key("Escape")
    assert focused(browser) == "m13.own.loss"


def test_a_loss_lights_what_its_gradient_reaches(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    browser.pointer(*centre(browser, "m1.own.loss"))
    lit = browser.evaluate("[...document.querySelectorAll('.node.lit')].map((node) => node.id)")
    own = ["m1", "m1.l1", "m1.own.g0.b0", "m1.own.g0.b1", "m1.own.g0.head", "m1.own.loss"]
    assert sorted(lit) == sorted(own)
    browser.evaluate("new Promise((done) => setTimeout(done, 250))")
    dim = "Number(getComputedStyle(document.getElementById('m0.l0')).opacity)"
    assert browser.evaluate(dim) < 0.5
    assert not browser.evaluate("document.getElementById('tip').hidden")
    browser.pointer(20, 850)
    assert count(browser, ".lit") == 0


def test_a_cascaded_loss_lights_earlier_modules(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("mlaan"))
    browser.pointer(*centre(browser, "m1.cascade.loss"))
    lit = browser.evaluate("[...document.querySelectorAll('.node.lit')].map((node) => node.id)")
    assert sorted(lit) == ["m0", "m0.l0", "m1", "m1.cascade.g0.head", "m1.cascade.loss", "m1.l1"]
    assert count(browser, ".bracket.lit") == 1


def test_a_copy_marks_its_layer(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    browser.pointer(*centre(browser, "m0.own.g0.b0"))
    assert browser.evaluate("[...document.querySelectorAll('.node.layer.source')].map((node) => node.id)") == ["m8.l8"]


def test_chart_and_graph_point_at_each_other(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("resnet"))
    browser.pointer(*centre(browser, "m2.l2"))
    assert browser.evaluate("Number(document.querySelector('.band').getAttribute('width'))") > 10
    box = browser.evaluate(
        "(({ left, top, width }) => [left, top, width])(document.querySelector('.chart').getBoundingClientRect())"
    )
    browser.pointer(box[0] + box[2] / 2, box[1] + 50)
    assert "of the step: module" in browser.evaluate("document.querySelector('.read').textContent")
    assert count(browser, ".node.module.source") == 1


def test_dark_phone_and_paper(browser: Chromium, pages: Pages, tmp_path: Path) -> None:
    path = pages("resnet")
    browser.open(path, dark=True)
    colour = "getComputedStyle(document.body).backgroundColor"
    assert browser.evaluate(colour) == "rgb(20, 23, 27)"
    browser.evaluate("document.getElementById('theme').click()")
    assert browser.evaluate(colour) != "rgb(20, 23, 27)"
    browser.open(path, width=390, height=844)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    assert browser.evaluate(OVERLAPS) == []
    browser.open(path)
    browser.page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    browser.page.emulate_media(media="print")
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert count(browser, ".slice .module-card") >= 14
    assert browser.evaluate("getComputedStyle(document.getElementById('panel')).display") == "none"
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert count(browser, ".slice") == 0
    assert browser.complaints == []


def test_names_do_nothing(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("hostile"))
    assert browser.evaluate("window.hacked") is None
    assert count(browser, "img") == 0
    assert END in browser.evaluate("document.querySelector('h1').textContent")
    for index in range(len(LAYERS)):
        identity = f"m{min(index, count(browser, '.module-card') - 1)}"
        browser.pointer(*centre(browser, identity), click=True)
    browser.key("/")
    browser.type("<img")
    assert "<img src=x" in browser.evaluate("document.querySelector('#results').textContent")
    browser.key("Enter")
    assert browser.evaluate("window.hacked") is None
    assert count(browser, "img") == 0
    assert browser.complaints == []


def test_many_modules(browser: Chromium, pages: Pages) -> None:
    browser.open(pages("many"))
    browser.evaluate("document.getElementById('fold').hidden || document.getElementById('fold').click()")
    assert count(browser, ".module-card") > 140
    browser.evaluate("document.getElementById('whole').click()")
    browser.settle()
    assert browser.evaluate(OVERLAPS) == []
    assert browser.evaluate(OUTSIDE) == []
