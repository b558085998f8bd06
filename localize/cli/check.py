"""``localize-cli check``: for each model a line that it localizes, or all that is in the way."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import typer
from torch import nn

from localize.bench.sweep.examine import figures
from localize.bench.sweep.record import ExamineSettings
from localize.bench.zoo import ModelFactory, example_of, find_model
from localize.cli.load import tried
from localize.obstacles import Obstacle

CLASSES = 1000
"""Outputs of the models that are checked, where they can be chosen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What checking one model came to."""

    model: str
    localizes: bool
    facts: dict[str, Any]
    """:func:`~localize.bench.sweep.examine.figures`; empty unless it localizes."""
    obstacles: tuple[Obstacle, ...]
    """What is in the way; if it localizes nevertheless, submodules that were kept whole."""
    seconds: float

    def __str__(self) -> str:
        if not self.localizes:
            return "\n".join(f"{self.model}: {obstacle}" for obstacle in self.obstacles)
        facts = self.facts
        line = (
            f"{self.model}: localizes, L={facts['layers']} layers, K={facts['modules']} modules, "
            f"largest layer {facts['largest_share']:.2f} of MACs"
        )
        line += f", cuts of up to {facts['cut_width']} tensors" if facts["cut_width"] > 1 else ""
        return "\n".join([f"{line}, {self.seconds:.1f} s", *(f"  {obstacle}" for obstacle in self.obstacles)])

    def to_json(self) -> str:
        """One JSON object in one line."""
        facts = {**self.facts, "seconds": round(self.seconds, 3)} if self.localizes else {}
        obstacles = [dataclasses.asdict(obstacle) for obstacle in self.obstacles]
        return json.dumps({"model": self.model, "localizes": self.localizes, **facts, "obstacles": obstacles})


def run_check(names: Sequence[str], settings: ExamineSettings, image_size: int | None, *, as_json: bool) -> bool:
    """Prints a verdict for each model.

    Returns:
        Whether all of them localize.

    Raises:
        ModelError: A model is unknown (then none is checked), or cannot be built.
    """
    passed = True
    for factory in [find_model(name) for name in names]:
        verdict = _verdict(factory, settings, image_size)
        typer.echo(verdict.to_json() if as_json else str(verdict))
        passed &= verdict.localizes
    return passed


def _verdict(factory: ModelFactory, settings: ExamineSettings, image_size: int | None) -> Verdict:
    """Checks a model without values; where that is no help, one with them: forwards may depend on them."""
    fed = image_size or factory.image_size
    verdict = _verdict_on(factory.spec, factory.build(CLASSES, image_size, meta=True), settings, fed)
    if verdict.localizes or factory.spec.startswith(("timm:", "torchvision:")):
        return verdict
    return _verdict_on(factory.spec, factory.build(CLASSES, image_size), settings, fed)


def _verdict_on(name: str, model: nn.Module, settings: ExamineSettings, image_size: int | None) -> Verdict:
    keywords = {"method": settings.method, **settings.keywords()}
    found = tried(model, keywords, example_of(model, image_size))
    facts = {} if found.local is None else figures(found.local)
    return Verdict(name, found.local is not None, facts, found.obstacles, found.seconds)
