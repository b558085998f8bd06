"""``localize-cli check`` and ``sweep``: what they print, what they write, and their exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localize.bench.sweep.record import ExamineSettings, ModelRecord
from localize.bench.sweep.workers import Examine, Subject
from localize.cli import sweep as _sweep
from localize.cli.main import main
from tests.models.model_file import MODEL_FILE


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODEL_FILE)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert isinstance(caught.value.code, int)
    return caught.value.code


# check


def test_check_says_how_a_model_localizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "localize:cifar_resnet8", "m.py:chain", "-d", "2", "--max-cut", "1") == 0
    out, err = capsys.readouterr()
    assert err == ""
    first, second = out.splitlines()
    assert first.startswith("localize:cifar_resnet8: localizes, L=4 layers, K=3 modules, largest layer 0.")
    assert re.fullmatch(
        r"m\.py:chain: localizes, L=4 layers, K=3 modules, largest layer 0\.\d\d of MACs, \d+\.\d s", second
    )


def test_check_lists_obstacles_of_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "m.py:two", "m.py:chain", "m.py:maps", "m.py:sequence") == 1
    out = capsys.readouterr().out
    assert re.search(r"^m\.py:two: Two: it has no trainable parameter\. ", out, re.MULTILINE)
    assert re.search(r"^m\.py:two: Two \(m\.py:\d+\): the model's forward must take one tensor", out, re.MULTILINE)
    assert "m.py:chain: localizes" in out
    assert "m.py:maps: localizes" in out
    # Only localizing for this method finds that there are no logits.
    assert re.search(r"^m\.py:sequence: Sequential: the model returns .* use method='bp'", out, re.MULTILINE)
    assert run("check", "m.py:sequence", "--method", "bp") == 0


def test_what_is_kept_whole_is_said_and_is_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "m.py:whole") == 0
    verdict, whole = capsys.readouterr().out.splitlines()
    assert verdict.startswith("m.py:whole: localizes")
    assert whole.startswith("  1 (m.py:")
    assert "so it is kept whole" in whole


@pytest.mark.parametrize("name", ["slopes", "looking"])
def test_models_that_need_values_are_built_with_them(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", f"m.py:{name}") == 0
    assert "localizes" in capsys.readouterr().out


def test_check_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "m.py:chain", "m.py:sequence", "--json") == 1
    good, bad = map(json.loads, capsys.readouterr().out.splitlines())
    assert (good["model"], good["localizes"], good["layers"], good["modules"]) == ("m.py:chain", True, 4, 1)
    assert good["obstacles"] == []
    assert good["seconds"] > 0
    assert (bad["model"], bad["localizes"]) == ("m.py:sequence", False)
    assert set(bad["obstacles"][0]) == {"path", "source", "what", "remedy"}


def test_check_takes_the_compilers_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "m.py:chain", "--granularity", "0,2", "--max-cut", "1", "--image-size", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["layers"], found["input_shape"]) == (2, [3, 16, 16])
    assert run("check", "m.py:chain", "--granularity", "0,nothing") == 1
    assert "nothing" in capsys.readouterr().out


# sweep


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sweeps run in this process; the names that they come to."""
    names: list[str] = []

    def in_process(
        models: list[Subject], settings: ExamineSettings, examine: Examine, **options: Any
    ) -> Iterator[ModelRecord]:
        assert options == {"jobs": None, "timeout": 600}
        for name, family in models:
            names.append(name)
            yield examine(name, family, settings, lambda stage: None)

    monkeypatch.setattr(_sweep, "sweep", in_process)
    return names


TINY = ["--filter", "squeezenet1_?", "--out", "s.jsonl"]


def test_sweep(examined: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", *TINY, "--summary", "docs/coverage.md") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert re.search(r"^\| squeezenet \| 2 \| 2 \| 17 / 17 / 17 \| 15 / 15 / 15 \| 1 \| ", out, re.MULTILINE)
    assert out.splitlines()[-1] == "2 localized, records in s.jsonl, summary in docs/coverage.md"
    meta, *records = map(json.loads, Path("s.jsonl").read_text().splitlines())
    assert meta["run"]["settings"]["d"] == 3
    assert [record["name"] for record in records] == examined == [f"torchvision:squeezenet1_{i}" for i in (0, 1)]
    assert "2 models examined: 2 localized." in Path("docs/coverage.md").read_text()
    # All is there: nothing is examined, the table is printed again.
    before = Path("s.jsonl").read_text()
    assert run("sweep", *TINY) == 0
    out = capsys.readouterr().out
    assert out.startswith("2 of 2 models are in s.jsonl already\n")
    assert "| squeezenet | 2 | 2 |" in out
    assert Path("s.jsonl").read_text() == before
    assert len(examined) == 2


def test_sweep_stops_and_goes_on(
    examined: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calm = vars(_sweep)["sweep"]

    def interrupted(*arguments: Any, **options: Any) -> Iterator[ModelRecord]:
        yield next(iter(calm(*arguments, **options)))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_sweep, "sweep", interrupted)
        assert run("sweep", *TINY) == 130
    err = capsys.readouterr().err
    assert err == "interrupted; 1 of 2 models are in s.jsonl, and the same command continues from there\n"
    assert run("sweep", *TINY) == 0
    assert examined == ["torchvision:squeezenet1_0", "torchvision:squeezenet1_1"]
    assert "1 of 2 models are in s.jsonl already" in capsys.readouterr().out


def test_sweep_retries_what_did_not_localize(
    examined: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(
        models: list[Subject], settings: ExamineSettings, examine: Examine, **options: Any
    ) -> Iterator[ModelRecord]:
        for name, family in models:
            status: Any = "localized" if name.endswith("0") else "refused"
            yield ModelRecord(
                name=name, family=family, status=status, stage="capture", reason="[why]", where="head", layers=1
            )

    with monkeypatch.context() as patch:
        patch.setattr(_sweep, "sweep", refused)
        assert run("sweep", *TINY) == 0
    out = capsys.readouterr().out
    assert "torchvision:squeezenet1_1: refused at capture (head): [why]\n" in out
    assert "1 localized, 1 refused, records in s.jsonl" in out
    assert run("sweep", *TINY) == 0
    assert examined == []
    assert run("sweep", *TINY, "--retry") == 0
    assert examined == ["torchvision:squeezenet1_1"]
    assert "2 localized" in capsys.readouterr().out
    assert run("sweep", *TINY, "--force") == 0
    assert len(examined) == 3


# Errors: exit code 2, one line, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check"], "MODEL"),
        (["check", "m.py:chain", "timm:resnet1888"], "unknown model 'timm:resnet1888'. Did you mean resnet18"),
        (["check", "m.py:broken"], "cannot build m.py:broken: RuntimeError: no such luck"),
        (["check", "m.py:chain", "--method", "backprop"], "unknown method 'backprop'"),
        (["check", "m.py:chain", "-d", "0"], "d must be an integer >= 1, got 0"),
        (["check", "m.py:chain", "--max-cut", "0"], "greater than or equal to 1"),
        (["sweep", "--source", "keras"], "unknown source of models 'keras'. Give timm, torchvision or all"),
        (["sweep", "--filter", "vgg_of_1888"], "no model of timm or torchvision matches vgg_of_1888"),
        (["sweep", "--method", "backprop"], "unknown method 'backprop'"),
        (["sweep", "-d", "0"], "d must be an integer >= 1, got 0"),
        (["sweep", "--retry", "--force"], "contradict"),
        (["sweep", "--jobs", "0"], "greater than or equal to 1"),
        (["sweep", *TINY, "--out", "m.py"], "m.py was not written by a sweep: line "),
        (["sweep", "m.py:chain"], "unexpected extra argument"),
    ],
)
def test_errors(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir() if path.name != "__pycache__"] == ["m.py"]


def test_a_sweep_of_other_settings_is_not_mixed_in(examined: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sweep", "--filter", "squeezenet1_0", "--out", "s.jsonl") == 0
    before = Path("s.jsonl").read_text()
    assert run("sweep", *TINY, "-d", "2") == 2
    assert "d is 3 in s.jsonl and 2 here" in capsys.readouterr().err
    assert Path("s.jsonl").read_text() == before


def test_help_names_every_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command, options in (
        ("check", "method depth max-cut granularity output image-size json"),
        ("sweep", "source filter method depth max-cut granularity jobs timeout out summary retry force"),
    ):
        assert run(command, "--help") == 0
        out = capsys.readouterr().out
        assert [option for option in options.split() if f"--{option}" not in out] == []
