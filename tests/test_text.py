"""Sizes, counts, indices, names and tables as text."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from localize import LocalizeError
from localize.text import (
    broken,
    format_bytes,
    format_count,
    format_indices,
    html_table,
    markdown_table,
    parse_bytes,
    shown,
    table_width,
    text_table,
)
from tests.tools.paths import ROOT


def test_the_text_of_help_and_tables_needs_no_torch() -> None:
    script = "import sys; import localize.text; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", script], check=False, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0


# Sizes and counts


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GB", 8 * 10**9),
        ("8 GiB", 8 * 2**30),
        ("512mb", 512 * 10**6),
        ("1.5kB", 1500),
        (".5MiB", 2**19),
        ("2e3 B", 2000),
        ("1TB", 10**12),
        ("12345", 12345),
        (12345, 12345),
        (str(2**60 + 1), 2**60 + 1),
    ],
)
def test_sizes_are_read(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "8 apples", "8GBB", "-8GB", "1,5GB", "0", "0.1B", "nan", "inf GB", True, "8G B"]
)
def test_what_is_no_size(text: Any) -> None:
    with pytest.raises(LocalizeError, match="size of memory"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9994, "9.99 kB"),
        (9996, "10.0 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_205_743_088, "1.21 GB"),
        (4 * 10**12, "4.00 TB"),
        (4321 * 10**12, "4321 TB"),
    ],
)
def test_sizes_are_written(size: int, text: str) -> None:
    assert format_bytes(size) == text


def test_a_size_that_was_written_is_read_again() -> None:
    assert parse_bytes(format_bytes(1_205_743_088)) == pytest.approx(1_205_743_088, rel=0.005)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (464, "464"), (73_600, "73.6k"), (1.8139e9, "1.81G"), (5e15, "5000T")]
)
def test_counts_are_written(value: float, text: str) -> None:
    assert format_count(value) == text


# Indices


@pytest.mark.parametrize(
    ("indices", "options", "text"),
    [
        ([], {}, ""),
        ([3], {}, "3"),
        ([3, 4], {}, "3-4"),
        ([3, 4], {"shortest_range": 3}, "3, 4"),
        ([0, 1, 2, 3, 7], {}, "0-3, 7"),
        ([0, 2, 4, 6], {"most": 4}, "0, 2, 4, 6"),
        ([0, 2, 4, 6, 8], {"most": 4}, "0, 2, ..., 8"),
        (range(9), {"most": 4}, "0-8"),
    ],
)
def test_indices_are_written(indices: list[int], options: dict[str, Any], text: str) -> None:
    assert format_indices(indices, **options) == text


# Names and lines


@pytest.mark.parametrize(
    ("name", "text"),
    [("a b", "a b"), ("a\nb", r"a\nb"), ("\x1b[1m", r"\x1b[1m"), ("\u202ea", r"\u202ea"), ("層", "層")],
)
def test_names_are_shown_without_what_a_line_cannot_hold(name: str, text: str) -> None:
    assert shown(name) == text
    assert shown(text) == text


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("", 5, [""]),
        ("a b c", 3, ["a b", "c"]),
        ("layer1.0.conv1..layer2", 10, ["layer1.0.", "conv1..", "layer2"]),
        ("aaaaaaaa", 3, ["aaa", "aaa", "aa"]),
        ("a\n\nb", 3, ["a", "", "b"]),
        ("層層層", 4, ["層層", "層"]),
    ],
)
def test_text_is_broken_where_it_may_be(text: str, width: int, lines: list[str]) -> None:
    assert broken(text, width) == lines


# Tables

HEADER, ROWS = ("name", "params"), [("conv1\n2 alike: 1-2", "1"), ("層層", "1,000")]


def test_a_table() -> None:
    table = text_table(HEADER, ROWS, notes=("", "a note"))
    assert str(table).split("\n") == [
        "name          params",
        "------------  ------",
        "conv1              1",
        "2 alike: 1-2",
        "層層           1,000",
        "                a note",
    ]
    assert table_width([HEADER, *ROWS]) == 20


def test_a_narrow_page_breaks_words_and_no_numbers() -> None:
    table = text_table(("module", "MACs"), [("layer1.0.conv1", "123456")], width=18)
    assert str(table).split("\n") == ["module        MACs", "----------  ------", "layer1.0.   123456", "conv1"]
    hopeless = text_table(("module", "MACs"), [("layer1.0.conv1", "123456")], width=5)
    assert hopeless.body[0] == "----------  ------"


def test_markdown() -> None:
    assert markdown_table(("a", "b"), [("x|y", "1")]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |"


def test_a_table_for_a_notebook_escapes_what_html_would_read() -> None:
    text = html_table(["<b>"], ("n",), [("<i>\n",)], (0,), ["&"])
    assert "<b>" not in text
    assert "&lt;i&gt;\\n" in text
    assert text.endswith("<div>&amp;</div>\n</div>")
