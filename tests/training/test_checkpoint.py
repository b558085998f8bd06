"""Checkpoints: whole or not at all, data and no code, refused when they belong to another run."""

from __future__ import annotations

import json
import os
import random
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from localize.files import atomic_text
from localize.training import checkpoint as module
from localize.training.checkpoint import (
    Checkpoint,
    CheckpointError,
    Position,
    check_same_run,
    differences,
    load_checkpoint,
    random_state,
    restore_random_state,
    save_checkpoint,
    save_primary,
)

CPU = torch.device("cpu")


def example(**changes: Any) -> Checkpoint:
    layer = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    fields: dict[str, Any] = {
        "local": layer.state_dict(),
        "optimizer": optimizer.state_dict(),
        "plan": json.dumps({"method": "auglocal", "modules": [{"name": "a"}, {"name": "b"}]}),
        "settings": {"lr": 0.1, "seed": 0, "classes": ["x", "y"]},
        "position": Position(epoch=3, step=5),
        "history": [{"epoch": 1, "module_losses": {"a": 1.5}}],
        "partial": {"losses": torch.randn(5, 2), "images": [1, 2]},
        "random_state": random_state(CPU),
    }
    return Checkpoint(**{**fields, **changes})


def test_round_trip(tmp_path: Path) -> None:
    saved = example()
    save_checkpoint(saved, tmp_path / "c.pt")
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert all(torch.equal(loaded.local[name], value) for name, value in saved.local.items())
    momentum = [state["momentum_buffer"] for state in saved.optimizer["state"].values()]
    found = [state["momentum_buffer"] for state in loaded.optimizer["state"].values()]
    assert all(torch.equal(a, b) for a, b in zip(momentum, found, strict=True))
    assert loaded.position == Position(epoch=3, step=5)
    assert (loaded.plan, loaded.settings, loaded.history) == (saved.plan, saved.settings, saved.history)
    assert torch.equal(loaded.partial["losses"], saved.partial["losses"])


def test_random_state_round_trip(tmp_path: Path) -> None:
    save_checkpoint(example(), tmp_path / "c.pt")
    expected = torch.rand(3), random.random()
    torch.rand(100)
    restore_random_state(load_checkpoint(tmp_path / "c.pt").random_state, CPU)
    assert torch.equal(torch.rand(3), expected[0])
    assert random.random() == expected[1]


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(example(position=Position(epoch=1, step=0)), path)

    def fail(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(example(position=Position(epoch=2, step=0)), path)
    assert load_checkpoint(path).position == Position(epoch=1, step=0)
    assert [file.name for file in tmp_path.iterdir()] == ["c.pt"]


def test_written_files_have_the_usual_rights(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    atomic_text(tmp_path / "atomic", "text")
    assert (tmp_path / "atomic").read_text() == "text"
    rights = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")]
    assert rights[0] == rights[1]


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    torch.save({"format": module.FORMAT, "local": _Bomb(tmp_path / "made")}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04 broken zip"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"c\.pt is not a checkpoint") as caught:
        load_checkpoint(tmp_path / "c.pt")
    assert "\n" not in str(caught.value)


def test_no_file_and_another_layout_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .*c\.pt"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save({"format": 99}, tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="layout 99"):
        load_checkpoint(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(CheckpointError, match="layout None"):
        load_checkpoint(tmp_path / "c.pt")


def test_differences_are_named() -> None:
    assert list(differences({"a": 1, "b": [1, {"c": 2}]}, {"a": 1, "b": [1, {"c": 2}]})) == []
    found = list(differences({"a": 1, "b": [1, {"c": 2}], "d": 0}, {"a": 2, "b": [1, {"c": 3}], "e": 1}))
    assert found == [
        "a is 1 there and 2 here",
        "b[1].c is 2 there and 3 here",
        "d is 0 there and nothing here",
        "e is nothing there and 1 here",
    ]
    assert list(differences([1], [1, 2], "x")) == ["x has 1 entries there and 2 here"]


def test_another_run_is_refused_by_name() -> None:
    saved = example()
    check_same_run(saved, saved.plan, {"lr": 0.1, "seed": 0, "classes": ["x", "y"]}, "c.pt")
    with pytest.raises(CheckpointError, match=r"lr is 0\.1 there and 0\.2 here; seed is 0 there and 1 here"):
        check_same_run(saved, saved.plan, {"lr": 0.2, "seed": 1, "classes": ["x", "y"]}, "c.pt")
    other = json.dumps({"method": "auglocal", "modules": [{"name": "a"}, {"name": "z"}]})
    with pytest.raises(CheckpointError, match=r"plan\.modules\[1\]\.name is b there and z here"):
        check_same_run(saved, other, saved.settings, "c.pt")


def test_many_differences_are_counted() -> None:
    saved = example(settings=dict.fromkeys("abcdefg", 0))
    with pytest.raises(CheckpointError, match="and 2 more"):
        check_same_run(saved, saved.plan, dict.fromkeys("abcdefg", 1), "c.pt")


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("column", torch.arange(12.0).view(3, 4).t())  # not contiguous

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x))
        return result


def test_primary_weights_load_into_the_plain_model(tmp_path: Path) -> None:
    model = _Tied()
    save_primary(model, tmp_path / "m.safetensors", {"classes": "a\nb"})
    other = _Tied()
    other.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
    assert set(load_file(tmp_path / "m.safetensors")) == set(model.state_dict())
    assert other.second.weight is other.first.weight
    x = torch.randn(2, 4)
    assert torch.equal(other(x), model(x))
    assert torch.equal(other.get_buffer("column"), model.get_buffer("column"))
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert file.metadata() == {"classes": "a\nb"}
