"""Results check themselves, know whether they count, and fit into a run folder."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.experiments.errors import FamilyError
from mech_interp.experiments.result import Control, Finding, Metric, Result
from mech_interp.statistics import Estimate
from mech_interp.storage.folder import RunFolder
from mech_interp.views import Bars, Table, view_from_dict

SANE = Control("self_patch", "0", 0.0, passed=True, sanity=True)
WRONG = Control("self_patch", "0", 0.3, passed=False, sanity=True)
WEAK = Control("random_direction", "0", 0.3, passed=False)


def result(**changes: object) -> Result:
    return Result(**{"question": "Where?", "method": "Patch.", **changes})


def test_a_failed_sanity_control_voids_the_run_and_no_other_does():
    assert result().status == "complete"
    assert result(controls=[SANE, WEAK]).status == "complete"
    void = result(controls=[WRONG, WEAK])
    assert (void.status, void.failed) == ("void", [WRONG])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"value": math.nan}, "A metric is nan"),
        ({"value": math.inf}, "A metric is inf"),
        ({"value": 1.0, "interval": (0.0, math.nan)}, "An interval is"),
        ({"value": 1.0, "interval": (2.0, 1.0)}, "upside down"),
        ({"value": None}, "neither a value nor a reason"),
        ({"value": 1.0, "n": -1}, "not negative"),
        ({"value": 1.0, "tolerance": -0.1}, "not negative"),
    ],
)
def test_metrics_check_themselves(given, said):
    with pytest.raises(FamilyError) as caught:
        Metric(**{"n": 3, **given})
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": " "}, "no question or no method"),
        ({"metrics": {"Top Rank": Metric(value=1.0, n=1)}}, "'Top Rank' is no name"),
        ({"tables": {"../x": []}}, "'../x' is no name"),
        ({"findings": [Finding("It is layer 3.", [])]}, "has no evidence"),
        ({"findings": [Finding("It is layer 3.", ["rank"])]}, "refers to 'rank', which the result lacks"),
        ({"findings": [Finding("It.", ["t"], ["none"])], "tables": {"t": []}}, "refers to 'none'"),
        ({"controls": [SANE, WRONG]}, "Two controls have the same name"),
    ],
)
def test_results_check_themselves(changes, said):
    with pytest.raises(FamilyError) as caught:
        result(**changes)
    assert said in caught.value.message


def test_metrics_come_from_estimates():
    estimate = Estimate(0.5, (0.25, 0.75), n=40, method="cluster bootstrap", n_groups=10)
    metric = Metric.of(estimate, unit="fraction", better="higher", per_group={"a": 0.5})
    assert (metric.value, metric.interval, metric.n, metric.n_groups) == (0.5, (0.25, 0.75), 40, 10)
    assert (metric.unit, metric.better, metric.method) == ("fraction", "higher", "cluster bootstrap")
    few = Metric.of(Estimate(0.5, None, n=3, method="mean", reason="3 groups"))
    assert (few.interval, few.reason) == (None, "3 groups")
    lost = Metric.of(Estimate(math.nan, (0.0, 1.0), n=3, method="mean"))
    assert (lost.value, lost.interval, lost.reason) == (None, None, "the value is not finite")


FINITE = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(
    st.builds(
        Metric,
        value=FINITE,
        n=st.integers(0, 99),
        interval=st.none() | st.tuples(FINITE, FINITE).map(lambda bounds: (min(bounds), max(bounds))),
        unit=st.sampled_from(["", "logit"]),
        better=st.sampled_from([None, "higher", "lower"]),
        control=st.none() | st.just({"name": "shuffled", "value": 0.0}),
        per_group=st.none() | st.dictionaries(st.text(max_size=3), FINITE, max_size=3),
        n_groups=st.none() | st.integers(1, 9),
        method=st.sampled_from(["", "mean"]),
        reason=st.sampled_from(["", "few"]),
    )
)
def test_metrics_round_trip(metric):
    assert Metric.from_dict(metric.to_dict()) == metric


def test_agreement_is_within_the_stated_tolerance():
    base = Metric(value=100.0, n=1, tolerance=0.01, absolute=0.0)
    assert base.agrees(Metric(value=100.9, n=1))
    assert not base.agrees(Metric(value=101.2, n=1))
    near_zero = Metric(value=0.0, n=1, tolerance=0.01, absolute=1e-3)
    assert near_zero.agrees(Metric(value=5e-4, n=1))
    assert not near_zero.agrees(Metric(value=2e-3, n=1))
    none = Metric(value=None, n=0, reason="no group")
    assert none.agrees(none)
    assert not none.agrees(base)
    assert not base.agrees(none)


def test_a_result_fits_into_a_run_folder(tmp_path):
    whole = result(
        metrics={
            "top.rank": Metric(value=2.0, n=8, interval=(1.0, 3.0), control={"name": "c", "value": 9.0})
        },
        tables={"ranked": [{"site": "z.1", "effect": 0.5}]},
        tensors={"effects": np.arange(4.0).reshape(2, 2)},
        views={
            "bars": Bars(
                title="Effect", labels=("a", "b"), values=(1.0, 2.0), value_label="logits", label_axis="site"
            )
        },
        findings=[Finding("Layer 1 decides.", ["top.rank", "bars"], ["self_patch"])],
        controls=[SANE],
        caveats=["Eight prompts."],
    )
    with RunFolder.create(tmp_path, "ab" * 32, "name: a\n", {}) as folder:
        folder.finish(whole.status, whole.contents(report="# Report\n"))
    assert folder.status == "complete"
    assert Metric.from_dict(folder.metrics()["top.rank"]) == whole.metrics["top.rank"]
    assert folder.table("ranked") == [{"site": "z.1", "effect": 0.5}]
    np.testing.assert_array_equal(folder.array("effects"), whole.tensors["effects"])
    assert view_from_dict(folder.view("bars")) == whole.views["bars"]
    told = folder.findings()
    assert told["findings"] == [
        {"sentence": "Layer 1 decides.", "evidence": ["top.rank", "bars"], "controls": ["self_patch"]}
    ]
    assert told["controls"][0]["sanity"] is True
    assert told["notes"] == {"question": "Where?", "method": "Patch.", "caveats": ["Eight prompts."]}


def test_tables_need_no_view_of_their_own():
    assert result(views={"t": Table(title="t", columns=("a",), rows=((1,),))}).views["t"].title == "t"
