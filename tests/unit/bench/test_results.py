"""Rows of the benchmark: medians, ratios, and the file that holds them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from bench import results
from bench.results import MEASURES, OVERLAY2, Figures, Results


def filled() -> Results:
    """Two systems' pulls of one image."""
    made = Results()
    for value in (4.0, 2.0, 3.0):
        made.add("pull_s", "web", "100mbit", OVERLAY2, value)
    for value in (1.0, 2.0):
        made.add("pull_s", "web", "100mbit", "gear-direct", value)
    return made


def test_a_row_has_median_extremes_and_count() -> None:
    """
    In the order in which the first values came.
    """
    first, second = filled().rows()
    assert (first.median, first.min, first.max, first.n, first.unit) == (3.0, 2.0, 4.0, 3, "s")
    assert (second.system, second.median, second.n) == ("gear-direct", 1.5, 2)


def test_a_measure_that_is_not_declared_is_a_bug() -> None:
    """
    A misspelt name would be a row that no table shows.
    """
    with pytest.raises(AssertionError):
        Results().add("pul_s", "web", "loopback", OVERLAY2, 1.0)


def test_the_file_is_a_list_of_flat_objects(tmp_path: Path) -> None:
    """
    With exactly the keys that readers of build/bench/results.json know.
    """
    results.write(tmp_path / "new" / "results.json", filled().rows(), merge=False)
    entries = json.loads((tmp_path / "new" / "results.json").read_text())
    keys = ["measure", "image", "link", "system", "median", "min", "max", "n", "unit"]
    assert [list(entry) for entry in entries] == [keys, keys]
    assert results.read(tmp_path / "new" / "results.json") == filled().rows()


@pytest.mark.parametrize("merge", [False, True])
def test_merging_keeps_what_is_about_something_else(tmp_path: Path, *, merge: bool) -> None:
    """
    A row about the same thing is replaced either way.
    """
    path = tmp_path / "results.json"
    results.write(path, filled().rows(), merge=True)
    newer = Results()
    newer.add("pull_s", "web", "100mbit", "gear-direct", 9.0)
    results.write(path, newer.rows(), merge=merge)
    found = {row.system: row.median for row in results.read(path)}
    assert found == {OVERLAY2: 3.0, "gear-direct": 9.0} if merge else {"gear-direct": 9.0}


def test_ratios_are_against_overlay2_on_the_same_image_and_link() -> None:
    """
    Without such a row, or with a zero there, there is none.
    """
    made = filled()
    made.add("pull_s", "web", "loopback", "gear-direct", 1.0)
    made.add("wire_bytes", "web", "100mbit", OVERLAY2, 0.0)
    made.add("wire_bytes", "web", "100mbit", "gear-direct", 1.0)
    figures = Figures(made.rows())
    assert [figures.ratio(row) for row in figures] == [1.0, 0.5, None, None, None]


def test_every_measure_has_a_unit_and_a_title() -> None:
    """
    Units are the few that readers of the rows must know.
    """
    units = {measure.unit for measure in MEASURES.values()}
    assert units == {"s", "B", "MB/s", "objects/s", "reads", "requests", "%", "x mean"}
    titles = [measure.title for measure in MEASURES.values()]
    assert all(titles)
    assert len(set(titles)) == len(titles)
