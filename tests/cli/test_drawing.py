"""Numbers, times, sizes and tables as people read them."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from mech_interp.cli import drawing
from mech_interp.cli.drawing import Column

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "just now"),
        (44, "just now"),
        (50, "1 min ago"),
        (60 * 89, "89 min ago"),
        (3600 * 2, "2 h ago"),
        (3600 * 35, "35 h ago"),
        (86400 * 2, "2 days ago"),
        (86400 * 20, "20 days ago"),
        (86400 * 300, "2025-05-05"),
        (-3600, "2026-03-01 13:00"),
    ],
)
def test_times_are_relative_until_they_are_old(seconds, said, monkeypatch):
    moment = NOW - timedelta(seconds=seconds)
    local = moment.astimezone().strftime("%Y-%m-%d %H:%M")
    expected = said if "-" not in said else local[: len(said)]
    assert drawing.ago(moment.isoformat(), NOW) == expected


def test_a_time_that_is_none_or_unreadable():
    assert drawing.ago(None) == ""
    assert drawing.ago("yesterday") == "yesterday"
    assert drawing.ago("2026-03-01T12:00:00", NOW) == "just now"


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_340_000, "2.3 MB"), (None, "")]
)
def test_sizes(n, said):
    assert drawing.size(n) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.3, "12 s"), (300, "5 min")]
)
def test_lengths_of_time(seconds, said):
    assert drawing.lasted(seconds) == said


def test_estimates():
    assert drawing.estimate({"value": 0.81234, "interval": [0.74, 0.88]}) == "0.8123 [0.74, 0.88]"
    assert drawing.estimate({"value": None, "interval": None}) == "–"
    assert drawing.scientific(0.00012) == "1e-04"


def text_of(width, columns, rows):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(drawing.table(console, columns, rows))
    return console.file.getvalue().splitlines()


def test_long_text_goes_on_below_and_ids_stay_whole():
    columns = [Column("run", keep=True), Column("name"), Column("family", at=100)]
    lines = text_of(40, columns, [["run-000001-abcdef01", "x" * 50, "toy"]])
    assert "run-000001-abcdef01" in lines[2]
    assert sum(line.count("x") for line in lines) == 50
    assert "family" not in lines[0]
    assert "family" in text_of(100, columns, [["r", "n", "toy"]])[0]


def test_markup_in_a_cell_is_printed_as_it_stands():
    assert "[bold]x[/] [red" in text_of(60, [Column("name")], [["[bold]x[/] [red"]])[2]


def test_numbers_go_on_in_another_table_where_the_width_ends():
    console = Console(file=io.StringIO(), width=40)
    first = [(Column("#"), [1, 2])]
    metrics = {f"a_long_metric_{i}": [0.5, None] for i in range(3)}
    tables = drawing.number_tables(console, first, metrics)
    assert [[column.header for column in table.columns] for table in tables] == [
        ["#", "a_long_metric_0", "a_long_metric_1"],
        ["#", "a_long_metric_2"],
    ]
