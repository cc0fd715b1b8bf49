"""Whatever a view holds, after a trip through JSON, it draws in the terminal and as a figure."""

from __future__ import annotations

import json
import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from mech_interp import views
from mech_interp.rendering import terminal
from mech_interp.rendering.figure import figure

NUMBERS = st.one_of(
    st.none(),
    st.just(math.nan),
    st.just(math.inf),
    st.just(-math.inf),
    st.floats(-1e6, 1e6),
    st.integers(-3, 3),
)
ODD = ["", " ", "\n", "$x$", "·", "日本", "a" * 60, "\x00", "[b]", "inf"]
WORDS = st.one_of(st.text(max_size=12), st.sampled_from(ODD))


@st.composite
def any_view(draw: st.DrawFn) -> views.View:
    """A valid view of any kind, with awkward contents."""
    rows, columns = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    words = {n: draw(st.lists(WORDS, min_size=n, max_size=n)) for n in {rows, columns}}
    numbers = st.lists(NUMBERS, min_size=columns, max_size=columns)
    grid = draw(st.lists(numbers, min_size=rows, max_size=rows))
    text = {"title": draw(WORDS), "note": draw(WORDS)}
    flag = draw(st.booleans())
    kind = draw(st.sampled_from(["heat", "bars", "lines", "scatter", "strip", "table", "graph", "grid"]))
    if kind == "heat":
        cells = [[str(v) for v in row] for row in grid] if draw(st.booleans()) else None
        return views.HeatMap(
            **text, values=grid, row_labels=words[rows], column_labels=words[columns], row_axis="layer",
            column_axis=draw(WORDS), value_label="effect (logits)", diverging=flag, cell_text=cells,
            marked=[(0, 0)] if rows and columns else [],
        )  # fmt: skip
    if kind == "bars":
        bounds = st.one_of(st.none(), st.tuples(st.floats(-2, 0), st.floats(0, 2)))
        return views.Bars(
            **text, labels=words[columns], values=draw(numbers), value_label="effect (logits)",
            label_axis="component", diverging=flag, highlighted=[0] if columns else [],
            intervals=draw(st.one_of(st.none(), st.lists(bounds, min_size=columns, max_size=columns))),
            reference=draw(st.one_of(st.none(), st.floats(-1, 1))), reference_label="chance",
        )  # fmt: skip
    if kind == "lines":
        series = [views.Series(name=draw(WORDS), y=row, low=row, high=row) for row in grid]
        return views.Lines(
            **text, x=list(range(columns)), series=series, x_axis="layer", y_axis="probability",
            x_labels=words[columns] if flag else None, markers=[(1, "here")], references=[(0.5, "chance")],
            log_x=draw(st.booleans()), log_y=draw(st.booleans()),
        )  # fmt: skip
    if kind == "scatter":
        return views.Scatter(
            **text, x=draw(numbers), y=draw(numbers), x_axis="exact (logits)", y_axis="estimate (logits)",
            groups=words[columns] if flag else None, labels=words[columns], identity=flag,
        )  # fmt: skip
    if kind == "strip":
        return views.TokenStrip(
            **text, tokens=words[columns], values=draw(numbers), value_label="effect (logits)", diverging=flag
        )
    if kind == "graph":
        levels = sorted(draw(st.lists(st.integers(0, 4), min_size=columns, max_size=columns)))
        pairs = [(i, j) for i in range(columns) for j in range(columns) if levels[i] < levels[j]]
        edges = draw(st.lists(st.sampled_from(pairs), max_size=6)) if pairs else []
        return views.LayeredGraph(
            **text, nodes=words[columns], levels=levels, edges=edges, value_label="effect (logits)",
            values=draw(st.lists(NUMBERS, min_size=len(edges), max_size=len(edges))),
            level_labels=words[rows], edge_labels=draw(WORDS.map(lambda one: [one] * len(edges))),
        )  # fmt: skip
    if kind == "table":
        cells = st.one_of(WORDS, NUMBERS, st.booleans())
        body = draw(
            st.lists(st.lists(cells, min_size=columns, max_size=columns), min_size=rows, max_size=rows)
        )
        return views.Table(**text, columns=words[columns], rows=body)
    parts = draw(st.lists(any_view().filter(lambda one: not isinstance(one, views.Grid)), max_size=3))
    return views.Grid(**text, views=parts, columns=draw(st.integers(1, 3)))


@given(any_view())
@settings(max_examples=150, deadline=None)
def test_every_view_survives_strict_json(view: views.View) -> None:
    text = view.to_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    again = views.view_from_json(text)
    assert again == view
    assert again.to_json() == text


@given(any_view())
@settings(max_examples=80, deadline=None)
def test_every_view_prints_at_any_width(view: views.View) -> None:
    again = views.view_from_json(view.to_json())
    for width in (40, 80, 120):
        text = terminal.to_text(again, width)
        assert text == terminal.to_text(view, width)
        assert max(map(cell_len, text.split("\n"))) <= width


@given(any_view())
@settings(max_examples=20, deadline=None)
def test_every_view_becomes_a_figure(view: views.View) -> None:
    if isinstance(view, views.Grid) and not view.views:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figure(views.view_from_json(view.to_json()))
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(drawn).draw()
    assert min(drawn.get_size_inches()) > 0.5
    assert max(drawn.get_size_inches()) < 60


def test_a_glyph_that_only_the_proportional_font_has_is_spelled_out() -> None:
    """Token strips are drawn in the monospaced one."""
    strip = views.TokenStrip(title="😀", tokens=("😀",), values=(0.5,), value_label="effect")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from matplotlib.backends.backend_agg import FigureCanvasAgg

        FigureCanvasAgg(figure(strip)).draw()


def test_packages_import_no_drawing_library() -> None:
    import subprocess
    import sys

    code = (
        "import sys, mech_interp.views, mech_interp.rendering, mech_interp.statistics;"
        "heavy = {'matplotlib', 'scipy', 'torch', 'transformers', 'sklearn'} & set(sys.modules);"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"imported at start: {done.stderr}")
