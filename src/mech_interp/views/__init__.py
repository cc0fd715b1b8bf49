"""Figures as data: what a chart shows, free of how it is drawn.

Every view is a frozen dataclass that checks itself, converts to plain JSON (`to_dict`, with a `kind`
and a schema version) and back (`view_from_dict`) without loss. Missing values are None in memory and
in JSON; NaN is read as missing. Axis and value labels carry their unit; `note` states n and what the
intervals are.
"""

from __future__ import annotations

from mech_interp.views.base import Cell, View, finite, view_from_dict, view_from_json, visible
from mech_interp.views.charts import Bars, Grid, HeatMap, Lines, Scatter, Series, Table, TokenStrip
from mech_interp.views.graphs import LayeredGraph

__all__ = [
    "Bars",
    "Cell",
    "Grid",
    "HeatMap",
    "LayeredGraph",
    "Lines",
    "Scatter",
    "Series",
    "Table",
    "TokenStrip",
    "View",
    "finite",
    "view_from_dict",
    "view_from_json",
    "visible",
]
