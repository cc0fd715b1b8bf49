"""Views check themselves and survive JSON unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp import views
from mech_interp.errors import InputError


def test_arrays_become_plain_numbers_and_nan_is_missing() -> None:
    view = views.HeatMap(
        title="t", values=np.array([[0.5, np.nan]]), row_labels=[0], column_labels=np.arange(2),
        row_axis="layer", column_axis="head", value_label="effect (logits)",
    )  # fmt: skip
    assert view.to_dict()["values"] == [[0.5, None]]
    assert view.column_labels == ("0", "1")
    table = views.Table(title="t", columns=["a", "b", "c"], rows=[[np.float32(0.5), np.int64(3), True]])
    assert table.rows == ((0.5, 3, True),)
    assert [type(cell) for cell in table.rows[0]] == [float, int, bool]


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" Paris", "·Paris"),
        ("of ", "of·"),
        ("  ", "··"),
        ("\n", "↵"),
        ("", "∅"),
        ("a b", "a b"),
        ("\x07", "\\x07"),
    ],
)
def test_spaces_in_tokens_are_visible(token: str, shown: str) -> None:
    assert views.visible(token) == shown


HEAT: dict[str, Any] = {
    "title": "t", "values": [[1.0]], "row_labels": ["a"], "column_labels": ["b"], "row_axis": "r",
    "column_axis": "c", "value_label": "v",
}  # fmt: skip
LINES: dict[str, Any] = {
    "title": "t", "x": [1], "series": [views.Series(name="s", y=[1])], "x_axis": "x", "y_axis": "y",
}  # fmt: skip
BARS: dict[str, Any] = {"title": "t", "labels": ["a"], "values": [1.0], "value_label": "v", "label_axis": "l"}


@pytest.mark.parametrize(
    "build",
    [
        lambda: views.HeatMap(**{**HEAT, "values": [[1.0, 2.0]]}),
        lambda: views.HeatMap(**{**HEAT, "values": []}),
        lambda: views.HeatMap(**{**HEAT, "values": [["x"]]}),
        lambda: views.HeatMap(**{**HEAT, "marked": [(0, 1)]}),
        lambda: views.HeatMap(**{**HEAT, "cell_text": [["a", "b"]]}),
        lambda: views.HeatMap(**{**HEAT, "limits": (1, 0)}),
        lambda: views.Bars(**{**BARS, "intervals": [(2.0, 1.0)]}),
        lambda: views.Bars(**{**BARS, "intervals": [(0, 1, 2)]}),
        lambda: views.Bars(**{**BARS, "values": [1.0, 2.0]}),
        lambda: views.Bars(**{**BARS, "highlighted": [1]}),
        lambda: views.Series(name="s", y=[1.0], low=[0.0]),
        lambda: views.Lines(
            title="t", x=[1, 2], series=[views.Series(name="s", y=[1])], x_axis="", y_axis=""
        ),
        lambda: views.Table(title="t", columns=["a"], rows=[[1, 2]]),
        lambda: views.Grid(title="t", views=[], columns=0),
        lambda: views.Grid(title="t", views=[views.Grid(title="u", views=[])]),
        lambda: views.view_from_dict({}),
        lambda: views.view_from_dict({"kind": "heatmap", "schema": 1}),
        lambda: views.view_from_dict({"kind": "table", "schema": 99}),
        lambda: views.view_from_dict({"kind": "table", "schema": 1, "title": "t"}),
        lambda: views.view_from_dict({**views.Bars(**BARS).to_dict(), "colour": "red"}),
        lambda: views.view_from_json("{"),
    ],
)
def test_wrong_views_are_refused_in_one_sentence(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError) as caught:
        build()
    assert caught.value.message
    assert caught.value.hint


def test_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(InputError, match="heat_map"):
        views.view_from_dict({"kind": "heatmap", "schema": 1})
