"""No number without a test: what is set as a table is what was noted, and a cell without a figure is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.figures import Figure, figures, tables
from tests.figures.figures import Measured
from tests.figures.promises import COLUMNS, PROMISES, RUNS, STORES

ROOT = Path(__file__).resolve().parents[1]
EVERY_CELL = [
    Measured(key, store, promise.kind, 0, 3, "runs lost", f"tests/test_{key}.py::test_it")
    for key, promise in PROMISES.items()
    for store in STORES
    if store not in promise.unsaid
]


@pytest.fixture
def noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "figures.jsonl"
    monkeypatch.setenv("FIGURES", str(path))
    return path


def test_what_is_noted_is_read_back(noted: Path) -> None:
    figure = Figure("tests/test_x.py::test_y[sqlite]")
    figure.runs("one claim", "sqlite", 1, 1204, "runs claimed by two")
    figure.seconds("failover", "etcd", 2.3149, 3.5, "the latest run")
    figure.keep()
    count, time = figures.read(noted)
    assert count == Measured("one claim", "sqlite", RUNS, 1, 1204, "runs claimed by two", "tests/test_x.py::test_y")
    assert [str(count), str(time)] == ["1 of 1,204", "2.31 of 3.5 s"]


TESTS = """
def test_it_is_as_promised(figure):
    figure.runs("one claim", "sqlite", 0, 7, "runs claimed by two")

def test_it_is_not(figure):
    figure.runs("one claim", "etcd", 1, 7, "runs claimed by two")
    assert False

def test_nothing_is_measured():
    pass
"""


def test_only_tests_that_measure_are_run_and_only_what_is_as_promised_is_kept(noted: Path, tmp_path: Path) -> None:
    (tmp_path / "test_promises.py").write_text(TESTS)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-p", "no:cacheprovider", "-q", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert "1 failed, 1 passed, 1 deselected" in ran.stdout
    assert [one.store for one in figures.read(noted)] == ["sqlite"]


def test_nothing_is_noted_where_nobody_asks(noted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FIGURES")
    figure = Figure("a test")
    figure.runs("one claim", "sqlite", 0, 1, "runs")
    figure.keep()
    assert not noted.exists()


@pytest.mark.parametrize(("promise", "store", "of"), [("one clam", "sqlite", 1), ("one claim", "redis", 1)])
def test_a_name_that_is_in_no_table_is_an_error(promise: str, store: str, of: int) -> None:
    with pytest.raises(AssertionError):
        Figure("a test").runs(promise, store, 0, of, "runs")


def test_nothing_of_nothing_is_no_figure() -> None:
    with pytest.raises(AssertionError, match="nothing was tried"):
        Figure("a test").runs("one claim", "sqlite", 0, 0, "runs")


def test_each_cell_without_a_figure_is_named() -> None:
    assert figures.missing(EVERY_CELL) == []
    for one in EVERY_CELL:
        others = [other for other in EVERY_CELL if other is not one]
        assert figures.missing(others) == [f"{PROMISES[one.promise].title}: {STORES[one.store]}"]


def test_counts_are_added_and_of_times_the_nearest_to_its_bound_counts() -> None:
    count, time = EVERY_CELL[0], next(one for one in EVERY_CELL if one.kind != RUNS)
    assert str(figures.together([count._replace(value=1), count])) == "1 of 6"
    assert str(figures.together([time._replace(value=1.5, of=2), time._replace(value=2, of=3)])) == "1.50 of 2 s"


def test_the_table_has_a_line_for_each_promise_and_a_column_for_each_store() -> None:
    heads, _, *rows = tables.overview(EVERY_CELL).splitlines()
    assert [cell.strip() for cell in heads.split("|")[3:-1]] == list(COLUMNS)
    assert [row.split("|")[1].strip() for row in rows] == [promise.title for promise in PROMISES.values()]
    assert max(map(len, [heads, *rows])) <= 120


def test_the_table_takes_its_place_in_the_readme_and_nothing_else_moves() -> None:
    readme = (ROOT / "README.md").read_text()
    once = tables.with_overview(readme, EVERY_CELL)
    assert tables.overview(EVERY_CELL) in once
    assert tables.with_overview(once, EVERY_CELL) == once
    assert once.partition(tables.BEGIN)[0] == readme.partition(tables.BEGIN)[0]
    assert once.partition(tables.END)[2] == readme.partition(tables.END)[2]


def test_a_readme_without_a_place_for_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="no place"):
        tables.with_overview("# Something else", EVERY_CELL)


def test_the_readme_and_the_page_show_the_same_table() -> None:
    shown = (ROOT / "README.md").read_text().partition(tables.BEGIN)[2].partition(tables.END)[0].strip()
    assert shown
    assert shown in (ROOT / "docs" / "guarantees.md").read_text()


def test_every_test_that_the_page_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/.]+)` `(\w+)`", (ROOT / "docs" / "guarantees.md").read_text())
    assert named
    for file, test in named:
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file} has no {test} (any more): make figures"
