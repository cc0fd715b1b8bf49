"""Bars, measures and tables of the certificate; what its hypotheses say about planted models."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from mech_interp import planted
from mech_interp.methods.circuits.certificate.claims import claims_about
from mech_interp.methods.circuits.certificate.result import Bar, Certificate, Measure, number, worst
from mech_interp.methods.circuits.certificate.tables import grids

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("bar", "value", "interval", "kept"),
    [
        (Bar("at least", 0.99), 0.99, None, True),
        (Bar("at least", 0.99), 0.9899, None, False),
        (Bar("at most", 0.05), 0.05, None, True),
        (Bar("at most", 0.05), 0.0501, None, False),
        (Bar("exactly", 1), 1.0, None, True),
        (Bar("exactly", 1), 2.0, None, False),
        (Bar("interval holds", 1.0), 0.97, (0.93, 1.01), True),
        (Bar("interval holds", 1.0), 0.9993, (0.9992, 0.9994), True),  # prints as 1.00
        (Bar("interval holds", 1.0), 0.99, (0.985, 0.994), False),
        (Bar("interval holds", 1.0), 1.02, (1.01, 1.03), False),
        (Bar("interval holds", 1.0), 1.0, None, False),
        (Bar("interval begins at or below", 0.05), 0.07, (0.04, 0.1), True),
        (Bar("interval begins at or below", 0.05), 0.0, (0.0, 0.02), True),
        (Bar("interval begins at or below", 0.05), 0.12, (0.08, 0.17), False),
        (Bar("at most", 0.05), math.nan, None, False),
        (Bar("interval holds", 1.0), math.nan, (0.9, 1.1), False),
    ],
)
def test_bars(bar: Bar, value: float, interval: tuple[float, float] | None, kept: bool) -> None:
    assert bar.kept(value, interval) is kept


def measure(section: str, value: float, bar: Bar | None = None) -> Measure:
    return Measure(
        section, "exact edge patching", "induction", "edge AUC", value, 3, "draws", 6.0, "corrupt", bar=bar
    )


def test_a_certificate_without_bars_certifies_nothing() -> None:
    free = measure("exact", 0.2)
    kept, broken = measure("exact", 1.0, Bar("at least", 0.99)), measure("exact", 0.9, Bar("at least", 0.99))
    assert not Certificate("full", {}, (), {}).holds
    assert not Certificate("full", {}, (free,), {}).holds
    assert Certificate("full", {}, (free, kept), {}).holds
    missed = Certificate("full", {}, (free, kept, broken), {})
    assert not missed.holds
    assert missed.missed == [broken]
    assert missed.to_dict()["missed"] == [
        "exact: exact edge patching on induction, 6 nats, corrupt: edge AUC 0.9 (bar: at least 0.99)"
    ]


def test_values_that_are_none_are_never_written_as_numbers() -> None:
    plain = measure("gates", math.nan, Bar("exactly", 1)).to_dict()
    assert plain["value"] is None
    assert plain["holds"] is False
    json.dumps(plain, allow_nan=False)
    assert number(None) == "none"
    assert number(1.0) == "1"
    assert number(0.99312) == "0.9931"
    assert number(3.14e-7) == "3.1e-07"
    assert math.isnan(worst([1.0, math.nan]))
    assert worst([1.0, 0.5]) == 0.5


def test_tables_hold_every_measure_once() -> None:
    bar = Bar("at least", 0.99)
    (table,) = grids([measure("exact", 1.0, bar).to_dict()])
    assert table.heads == ("", "6 nats, corrupt")
    assert [one.text for one in table.rows[0]] == ["induction", "1"]
    assert table.rows[0][1].holds is True
    assert table.about.endswith("n: 3 draws. Bar: at least 0.99.")


@pytest.mark.parametrize("name", [*planted.models("circuit"), *planted.models("gate")])
def test_hypotheses_name_the_planted_parts(name: str) -> None:
    """The true one stands on true edges alone; the bystander is none of the mechanism's parts."""
    made = planted.build(name)
    claims = claims_about(made, 30)
    true = {edge for edges in made.truths.values() for edge in edges}
    for node in claims.true.nodes.values():
        for site in node.sites:
            assert site in (true if "->" in site else made.nodes)
    _, bystander = claims.wrong
    (part,) = bystander.nodes["claimed"].sites
    assert not any(edge.startswith(f"{part}->") for edge in true)
    assert {len(column) for column in claims.features.values()} == {len(claims.prompts)}
    assert set(claims.true.features) | {"elsewhere"} <= set(claims.features)
    assert 2 <= len(set(claims.features["elsewhere"])) <= 3


def test_the_published_certificate_is_full_and_holds() -> None:
    record = json.loads((ROOT / "docs" / "certificate.json").read_text(encoding="utf-8"))
    certificate = record["certificate"]
    assert certificate["scope"] == "full"
    assert certificate["holds"]
    assert certificate["missed"] == []
    assert {one["model"] for one in certificate["measures"]} >= set(planted.models())
    assert certificate["settings"]["replicates"] == 200
