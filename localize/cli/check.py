"""``localize-cli check``: how each model localizes, or every obstacle to it."""

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
from localize.cli.load import localize_or_explain
from localize.obstacles import Obstacle

CLASSES = 1000
"""Number of outputs of the models that are checked, where it can be chosen."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of checking one model."""

    model: str
    localizes: bool
    facts: dict[str, Any]
    """Figures of the localized model (:func:`~localize.bench.sweep.examine.figures`); empty if it does not localize."""
    obstacles: tuple[Obstacle, ...]
    """Obstacles to localizing the model; for a model that localizes, submodules that were kept whole."""
    seconds: float
    """Seconds that localizing took."""

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
        """Write one JSON object in one line."""
        facts = {**self.facts, "seconds": round(self.seconds, 3)} if self.localizes else {}
        obstacles = [dataclasses.asdict(obstacle) for obstacle in self.obstacles]
        return json.dumps({"model": self.model, "localizes": self.localizes, **facts, "obstacles": obstacles})


def run_check(names: Sequence[str], settings: ExamineSettings, image_size: int | None, *, as_json: bool) -> bool:
    """Print a verdict for each model.

    Returns:
        Whether all of them localize.

    Raises:
        ModelError: A model is unknown (in which case none is checked), or cannot be built.
    """
    passed = True
    for factory in [find_model(name) for name in names]:
        verdict = _verdict(factory, settings, image_size)
        typer.echo(verdict.to_json() if as_json else str(verdict))
        passed &= verdict.localizes
    return passed


def _verdict(factory: ModelFactory, settings: ExamineSettings, image_size: int | None) -> Verdict:
    """Check a model without values, and one with values if that fails: a user's forward may depend on values."""
    fed = image_size or factory.image_size
    verdict = _verdict_on(factory.spec, factory.build(CLASSES, image_size, meta=True), settings, fed)
    if verdict.localizes or factory.spec.startswith(("timm:", "torchvision:")):
        return verdict
    return _verdict_on(factory.spec, factory.build(CLASSES, image_size), settings, fed)


def _verdict_on(name: str, model: nn.Module, settings: ExamineSettings, image_size: int | None) -> Verdict:
    keywords = {"method": settings.method, **settings.keywords()}
    attempt = localize_or_explain(model, keywords, example_of(model, image_size))
    facts = {} if attempt.local is None else figures(attempt.local)
    return Verdict(name, attempt.local is not None, facts, attempt.obstacles, attempt.seconds)
