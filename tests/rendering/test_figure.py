"""Figures: files are written, text does not overlap, colours mean what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.cbook import is_math_text

from mech_interp import views
from mech_interp.errors import InputError
from mech_interp.rendering import figure as figures
from mech_interp.rendering.colours import DIVERGING, aligned, decimals, scale_colour, short, value_limits


def heat(rows: int, columns: int, **changes: Any) -> views.HeatMap:
    fields: dict[str, Any] = {
        "title": "Residual stream patching",
        "values": np.linspace(-1, 1, rows * columns).reshape(rows, columns),
        "row_labels": [f"layer {i}" for i in range(rows)],
        "column_labels": [f" token{i}" for i in range(columns)],
        "row_axis": "layer",
        "column_axis": "position",
        "value_label": "logit difference recovered (fraction)",
        "note": "n = 32 prompts; mean over prompts",
    }
    return views.HeatMap(**{**fields, **changes})


def bars(n: int) -> views.Bars:
    return views.Bars(
        title="Accuracy",
        labels=[f"a rather long component name {i}" for i in range(n)],
        values=[i / n for i in range(n)],
        intervals=[(i / n - 0.1, i / n + 0.1) for i in range(n)],
        value_label="accuracy (fraction)",
        label_axis="component",
        reference=0.5,
        reference_label="chance",
    )


def lines(n: int) -> views.Lines:
    return views.Lines(
        title="Lens",
        x=list(range(n)),
        x_labels=["embed", *(f" word{i}" for i in range(n - 1))],
        series=[views.Series(name="a", y=[0.1] * n), views.Series(name="b", y=[0.2] * n)],
        x_axis="layer",
        y_axis="probability (fraction)",
    )


def ticks_out_of_view(figure: Any) -> set[Any]:
    """Labels of ticks beyond the ends of their axis, which exist and are not drawn."""
    out = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - slack <= tick.get_loc() <= high + slack:
                out |= {tick.label1, tick.label2}
    return out


def overlaps(figure: Any) -> list[tuple[str, str]]:
    """Pairs of visible texts whose boxes overlap by more than a pixel."""
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = list(figure.findobj(lambda o: hasattr(o, "get_rotation") and hasattr(o, "get_text")))
    unseen = ticks_out_of_view(figure)
    texts = [t for t in texts if t.get_visible() and t.get_text().strip() and t not in unseen]
    boxes = [t.get_window_extent(renderer) for t in texts]
    frame = figure.bbox
    out = []
    for i, first in enumerate(boxes):
        # Rotated labels have boxes that overlap although the words do not.
        if texts[i].get_rotation() not in (0, 90):
            continue
        if not (frame.x0 - 1 <= first.x0 and first.x1 <= frame.x1 + 1 and frame.y0 - 1 <= first.y0):
            inside = texts[i].axes is None or texts[i].axes.bbox.overlaps(first)
            if inside:
                out.append((texts[i].get_text(), "the edge"))
        for j in range(i):
            second = boxes[j]
            wide = min(first.x1, second.x1) - max(first.x0, second.x0)
            high = min(first.y1, second.y1) - max(first.y0, second.y0)
            if wide > 1 and high > 1 and texts[j].get_rotation() in (0, 90):
                out.append((texts[i].get_text(), texts[j].get_text()))
    return out


@pytest.mark.parametrize(
    "view",
    [
        heat(1, 1),
        heat(4, 5),
        heat(12, 14),
        heat(6, 90),
        heat(60, 3),
        heat(3, 99, column_labels=["WM"] * 99),
        bars(1),
        bars(12),
        bars(240),
        lines(2),
        lines(13),
        lines(49),
    ],
    ids=lambda view: f"{view.kind}-{len(getattr(view, 'values', getattr(view, 'x', [])))}",
)
def test_no_text_overlaps(view: views.View) -> None:
    assert overlaps(_drawn(view)) == []


def test_names_that_do_not_fit_are_turned_rather_than_left_out() -> None:
    axes = _drawn(heat(4, 20)).axes[0]
    labels = axes.get_xticklabels()
    assert [label.get_text() for label in labels] == [f"·token{i}" for i in range(20)]
    assert {label.get_rotation() for label in labels} == {45}


def test_grid_of_three_has_no_overlap_and_keeps_every_title() -> None:
    grid = views.Grid(title="Factual recall", views=[bars(6), lines(6), heat(4, 5)], columns=3, note="n = 1")
    figure = _drawn(grid)
    assert overlaps(figure) == []
    words = {text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_text"))}
    assert {"Factual recall", "Accuracy", "Lens", "Residual stream patching"} <= words


def _drawn(view: views.View) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = figures.figure(view)
    FigureCanvasAgg(figure)
    return figure


def test_units_and_note_are_on_the_figure() -> None:
    words = {text.get_text() for text in _drawn(heat(4, 5)).findobj(lambda o: hasattr(o, "get_text"))}
    assert {"layer", "position", "n = 32 prompts; mean over prompts"} <= words
    assert any("fraction" in word for word in words)


@pytest.mark.filterwarnings("error")
def test_awkward_text_draws_as_it_reads(tmp_path: Path) -> None:
    names = ["$x$ and $y", "日本語", "a\nb", "\x00", "{", "\\frac", "_^", " lead", "[bold]"]
    view = views.Bars(
        title="$1 to $2 \\alpha 日",
        labels=names,
        values=range(9),
        value_label="$ (n)",
        label_axis="c",
        note="% $",
    )
    path = figures.save(view, tmp_path / "awkward.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    figure = _drawn(view)
    words = [text.get_text() for text in figure.findobj(lambda o: hasattr(o, "get_rotation"))]
    assert any("$1 to" in word for word in words)
    assert not any(is_math_text(word) for word in words)
    shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert shown[1] == "\\u65e5\\u672c\\u8a9e"
    assert shown[7] == "·lead"


def test_same_view_gives_the_same_bytes(tmp_path: Path) -> None:
    first = figures.save(heat(3, 3), tmp_path / "a.png").read_bytes()
    assert figures.save(heat(3, 3), tmp_path / "b.png").read_bytes() == first
    assert figures.save(heat(3, 3, title="other"), tmp_path / "c.png").read_bytes() != first


def test_no_global_state_is_touched(tmp_path: Path) -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    figures.save(bars(3), tmp_path / "x.png")
    assert dict(matplotlib.rcParams) == before


def test_bad_targets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="jpeg"):
        figures.save(bars(1), tmp_path / "x.jpeg")
    with pytest.raises(InputError, match="does not exist"):
        figures.save(bars(1), tmp_path / "none" / "x.png")
    with pytest.raises(InputError, match="no panels"):
        figures.figure(views.Grid(title="g", views=[]))
    with pytest.raises(InputError, match="no figure form"):
        figures.figure("x")  # type: ignore[arg-type]


def test_diverging_colours_are_centred_and_monotone() -> None:
    limits = value_limits([-0.2, 0.9, None], diverging=True)
    assert limits == (-0.9, 0.9)
    assert scale_colour(0.0, limits, True) == DIVERGING[5]
    assert scale_colour(0.9, limits, True) == DIVERGING[-1]
    assert scale_colour(-5.0, limits, True) == DIVERGING[0]
    reds = [scale_colour(v, limits, True)[0] for v in np.linspace(0, 0.9, 20)]
    assert reds == sorted(reds, reverse=True)
    assert value_limits([], diverging=False) == (0.0, 1.0)
    assert value_limits([3.0, 3.0], diverging=False) == (2.5, 3.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0.00"),
        (-0.0001, "-1e-4"),
        (0.019, "0.019"),
        (0.97, "0.97"),
        (-12.34, "-12.3"),
        (123.4, "123"),
        (123456.0, "1e5"),
        (float("inf"), "∞"),
    ],
)
def test_short_numbers(value: float | None, text: str) -> None:
    assert short(value) == text


def test_numbers_of_one_chart_share_their_decimals() -> None:
    digits = decimals([0.019, -1.5, None])
    assert [aligned(v, digits) for v in (0.019, -1.5, -0.001)] == ["0.02", "-1.50", "0.00"]
    assert decimals([0.001]) is None
