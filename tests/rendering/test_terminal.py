"""Terminal charts: they fit, and every value can be read without colour."""

from __future__ import annotations

import io
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from mech_interp import views
from mech_interp.errors import InputError
from mech_interp.rendering import terminal

TOKENS = ["The", " capital", " of", " France", " is"]
PATCHING = views.HeatMap(
    title="Patching",
    values=[[0.019, -0.03, None, 1.0, 0.0], [0.0, 0.02, -0.01, 0.75, 0.254]],
    row_labels=["L0", "L1"],
    column_labels=TOKENS,
    row_axis="layer",
    column_axis="position",
    value_label="recovered (fraction)",
    marked=[(1, 4)],
    note="n = 32",
)


def in_colour(view: views.View, width: int) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor", legacy_windows=False
    )
    with console.capture() as capture:
        console.print(terminal.render(view))
    return capture.get()


def test_heat_map_without_colour_prints_every_value() -> None:
    lines = terminal.to_text(PATCHING).splitlines()
    assert lines[0] == "Patching"
    assert lines[2].split() == ["The", "·capital", "·of", "·France", "·is"]
    assert lines[3].split() == ["L0", "0.02", "-0.03", "–", "1.00", "0.00"]
    assert lines[4].split() == ["L1", "0.00", "0.02", "-0.01", "0.75", "0.25*"]
    assert lines[-1] == "n = 32"
    assert "values: recovered (fraction)" in lines


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("columns", [1, 14, 70, 200])
def test_heat_maps_fit_the_width_and_lose_no_cell(width: int, columns: int) -> None:
    values = [[row + column / 1000 for column in range(columns)] for row in range(3)]
    view = views.HeatMap(
        title="wide",
        values=values,
        row_labels=["a", "b", "c"],
        column_labels=[f" w{i}" for i in range(columns)],
        row_axis="layer",
        column_axis="position",
        value_label="effect (logits)",
    )
    plain = terminal.to_text(view, width).splitlines()
    assert max(map(len, plain)) <= width
    first = [line.split() for line in plain if line.startswith("a ")]
    assert sum(len(line) - 1 for line in first) == columns
    coloured = in_colour(view, width)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", coloured).splitlines()
    assert max(map(len, bare)) <= width
    rows = [line for line in coloured.splitlines() if re.sub(r"\x1b\[[0-9;]*m", "", line).startswith("a ")]
    assert sum(line.count("48;2;") for line in rows) >= min(columns, 15)


def test_narrow_colour_cells_come_with_a_legend() -> None:
    view = views.HeatMap(
        title="t",
        values=[[float(i) for i in range(40)]],
        row_labels=["L0"],
        column_labels=[f" w{i}" for i in range(40)],
        row_axis="layer",
        column_axis="position",
        value_label="effect (logits)",
    )
    text = re.sub(r"\x1b\[[0-9;]*m", "", in_colour(view, 80))
    assert "39 ·w39" in text
    assert "highest 39.0 at L0, ·w39" in text


def test_wide_characters_keep_columns_aligned() -> None:
    view = views.HeatMap(
        title="t",
        values=[[1.0, 2.0], [3.0, 4.0]],
        row_labels=["日本", "a"],
        column_labels=["日本語", "b"],
        row_axis="layer",
        column_axis="position",
        value_label="effect (logits)",
    )
    lines = terminal.to_text(view).splitlines()[2:5]
    ends = [cell_len(line) for line in lines]
    assert ends[0] == ends[1] == ends[2]


def test_cell_text_is_shown_instead_of_values() -> None:
    view = views.HeatMap(
        title="lens",
        values=[[0.5]],
        cell_text=[[" Paris"]],
        row_labels=["L0"],
        column_labels=["is"],
        row_axis="layer",
        column_axis="position",
        value_label="probability",
        diverging=False,
    )
    assert "·Paris" in terminal.to_text(view)


def bar_chart(**changes: object) -> views.Bars:
    fields = {
        "title": "DLA",
        "labels": ["embed", "L0 MLP", "head"],
        "values": [1.0, -1.0, 2.0],
        "intervals": [None, (-1.5, -0.5), (1.5, 2.5)],
        "value_label": "contribution (logits)",
        "label_axis": "component",
        "diverging": True,
        **changes,
    }
    return views.Bars(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [80, 120])
def test_bars_are_as_long_as_their_values(width: int) -> None:
    lines = terminal.to_text(bar_chart(intervals=None), width).splitlines()
    lengths = [line.count("█") for line in lines[2:5]]
    assert lengths[2] == pytest.approx(2 * lengths[0], abs=2)
    assert lengths[1] == pytest.approx(lengths[0], abs=2)
    axis = lines[2].index("│")
    assert lines[3].index("│") == lines[4].index("│") == axis
    assert lines[2].index("█") > axis > lines[3].index("█")


def test_bars_print_and_draw_intervals() -> None:
    text = terminal.to_text(bar_chart(reference=0.5, reference_label="chance"))
    assert "2.00 [1.50, 2.50]" in text
    assert "-1.00 [-1.50, -0.50]" in text
    assert re.search(r"├─+┼─+┤ +2\.00", text)
    assert "chance 0.50" in text


def test_bars_survive_a_narrow_terminal() -> None:
    text = terminal.to_text(bar_chart(labels=["a" * 50, "b", "c"]), 40)
    assert all(number in text for number in ("1.00", "-1.00", "2.00"))
    assert max(map(len, text.splitlines())) <= 40


def test_lines_put_points_where_they_belong() -> None:
    view = views.Lines(
        title="lens",
        x=[0, 1, 2],
        series=[views.Series(name="target", y=[0.0, 0.5, 1.0])],
        x_axis="layer",
        y_axis="probability",
        x_labels=["embed", "0", "1"],
        markers=[(2, "crossover")],
    )
    text = terminal.to_text(view).splitlines()
    points = [(row, line.index("●")) for row, line in enumerate(text) if "●" in line and "target" not in line]
    assert len(points) == 3
    (top, right), (_, middle), (bottom, left) = points
    ruler = next(line for line in text if "┬" in line)
    assert [left, middle, right] == [i for i, c in enumerate(ruler) if c == "┬"]
    assert middle - left == pytest.approx(right - middle, abs=1)
    assert right - left > 60
    assert text[top].startswith("1.00┤")
    assert text[bottom].startswith("0.00┤")
    assert "┆ crossover: 1" in text


def test_token_strip_shows_spaces_and_values_and_wraps() -> None:
    view = views.TokenStrip(title="s", tokens=TOKENS * 8, values=[0.5] * 40, value_label="effect (logits)")
    text = terminal.to_text(view, 80)
    assert text.count("·France") == 8
    assert text.count("0.50") == 40
    assert max(map(len, text.splitlines())) <= 80


def test_table_aligns_numbers_and_keeps_markup_literal() -> None:
    view = views.Table(title="t", columns=["name", "share (fraction)"], rows=[["[bold]x", 0.5], ["y", None]])
    text = terminal.to_text(view)
    assert "[bold]x" in text
    assert "0.50" in text
    assert "–" in text


def test_grid_stacks_when_narrow_and_spreads_when_wide() -> None:
    grid = views.Grid(title="g", views=[bar_chart(), bar_chart(title="second")], columns=2)
    assert not any("DLA" in line and "second" in line for line in terminal.to_text(grid, 80).splitlines())
    assert any("DLA" in line and "second" in line for line in terminal.to_text(grid, 130).splitlines())


def test_no_colour_codes_when_colour_is_off() -> None:
    console = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", no_color=True
    )
    terminal.show(PATCHING, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "48;2" not in text
    assert "0.75" in text


def test_only_views_are_rendered() -> None:
    with pytest.raises(InputError, match="not a view"):
        terminal.render([1, 2])  # type: ignore[arg-type]
