"""The row executor against the naive loop: every site kind, every operation, any memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from cases import combinations, one_of_each
from tiny_models import hf_model, largest_gap, opened, random_ids
from torch import Tensor

from mech_interp.backends.huggingface.chunk import ChunkRun
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import (
    KLDivergence,
    LogitDifference,
    Logits,
    Metric,
    Probability,
    ProbabilityDifference,
)
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import OutOfMemoryError
from mech_interp.interventions import (
    Add,
    Freeze,
    FromRun,
    Intervention,
    Mean,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Zero,
)
from mech_interp.sites import KINDS, Site, sites

BOUND = {"float32": 1e-5, "float64": 1e-9}


def swept(model: Any, runs: Any, rows: Sequence[Row], metric: Metric, **options: Any) -> list[Any]:
    """Results in the order of the rows; each row exactly once."""
    found = {}
    for result in model.rows(runs, rows, metric, **options):
        assert result.index not in found
        found[result.index] = result
    assert sorted(found) == list(range(len(rows)))
    return [found[i] for i in range(len(rows))]


def check(model: Any, runs: Any, rows: Sequence[Row], metric: Metric, **options: Any) -> list[Any]:
    """Fast equals naive, row by row."""
    fast = swept(model, runs, rows, metric, **options)
    slow = list(naive_rows(model, runs, rows, metric))
    scale = max(1.0, max(float(result.value.abs().max()) for result in slow))
    for row, left, right in zip(rows, fast, slow, strict=True):
        assert largest_gap(left.value, right.value) <= BOUND[model.info.dtype] * scale, row
    return fast


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def single(request: pytest.FixtureRequest) -> Any:
    """float32 models under the other attention implementation than `exact` has."""
    return opened(request.param, attention="eager")


def test_every_operation_at_every_site(model: Any, runs: Any) -> None:
    assert model.info.dtype == "float32"
    check_every_operation_at_every_site(model, runs, seed=10)


def test_every_operation_at_every_site_in_float64(exact: Any, runs: Any) -> None:
    assert exact.info.dtype == "float64"
    check_every_operation_at_every_site(exact, runs, seed=11)


def check_every_operation_at_every_site(model: Any, runs: Any, seed: int) -> None:
    rows = one_of_each(model, seed)
    results = check(model, runs, rows, Logits((-1, 1)))
    assert len(rows) > 350
    # The test would prove little if most rows were skipped, or none.
    computed = sum(result.computed for result in results)
    assert 0.7 * len(rows) < computed < len(rows)


def test_several_interventions_in_one_row(exact: Any, runs: Any) -> None:
    rows = combinations(exact, 120, seed=4)
    check(exact, runs, rows, Logits((-2,)))


def test_several_interventions_in_one_row_with_eager_attention(single: Any, runs: Any) -> None:
    assert single.info.attention == "eager"
    check(single, runs, combinations(single, 50, seed=5), Logits((-1,)))


@pytest.mark.parametrize(
    "positions", [(0,), (2, -1), (-1, -1), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (-1, 4, 2, -1)]
)
def test_any_positions_can_be_read(exact: Any, runs: Any, positions: tuple[int, ...]) -> None:
    """One, several, all, out of order, and the same one twice."""
    check(exact, runs, combinations(exact, 40, seed=len(positions)), Logits(positions))


def test_reading_all_of_a_short_prompt_backwards(model: Any) -> None:
    """One row alone, whose reads cover its whole prompt in another order: the mask must follow them."""
    runs = {"base": Tokens.from_lists([[5, 9]])}
    for kind in ("resid_pre", "v", "q", "pattern"):
        rows = [Row(0, (Intervention(Site(kind, layer), Scale(0.5)),)) for layer in range(3)]
        for row in rows:
            check(model, runs, [row], Logits((-1, -2)))
            check(model, runs, [row], Logits((-1, -1)))


def test_tracing_shaped_rows(exact: Any, runs: Any) -> None:
    """Noise on a subject, one state restored from the clean run, later outputs held at the corrupt run."""
    noise = Intervention("embed", Noise(1.5, seed=2), positions=(1, 2))
    rows = []
    for prompt in range(3):
        for layer in range(3):
            for position in (1, 2, -1):
                restore = Intervention(
                    Site("resid_post", layer), Replace(FromRun("base")), positions=position
                )
                held = [
                    Intervention(Site("mlp_out", later), Freeze("other"), positions=position)
                    for later in range(layer + 1, 3)
                ]
                rows += [Row(prompt, (noise, restore)), Row(prompt, (noise, restore, *held))]
    results = check(exact, runs, rows, Logits((-1,)))
    assert all(result.computed for result in results)


@pytest.mark.parametrize("kind", ["resid_pre", "z", "mlp_out", "k", "pattern"])
def test_whole_grids(model: Any, runs: Any, kind: str) -> None:
    """The bread-and-butter sweep: every layer and position (and head), denoising and noising."""
    rows = []
    for run, source in (("base", "other"), ("other", "base")):
        heads = range(model.info.heads(kind)) if KINDS[kind].heads else None
        for site in sites(kind, range(3), heads):
            for prompt in range(3):
                for position in range(0, runs["base"].lengths[prompt], 2):
                    edit = Intervention(site, Replace(FromRun(source)), positions=position)
                    rows.append(Row(prompt, (edit,), run))
    metric = LogitDifference((1, 2, 3), (4, 5, 6))
    results = check(model, runs, rows, metric)
    for row, result in zip(rows, results, strict=True):
        if row.interventions[0].positions == (0,):
            assert not result.computed, "nothing differs before position 2"


def reference_logits(model: Any, runs: Any) -> Tensor:
    return model.forward(runs["other"], logits="last").logits


@pytest.mark.parametrize(
    "make",
    [
        lambda model, runs: LogitDifference((1, 2, 3), (4, 5, 6)),
        lambda model, runs: LogitDifference((1, 2, 3), (4, 5, 6), position=1),
        lambda model, runs: Probability((1, 2, 3), position=-2),
        lambda model, runs: ProbabilityDifference(((1,), (2, 3), (4,)), ((5, 6), (7,), (8,))),
        lambda model, runs: KLDivergence(reference_logits(model, runs)),
    ],
    ids=["logit difference", "logit difference at 1", "probability", "probability difference", "KL"],
)
def test_every_metric(model: Any, runs: Any, make: Any) -> None:
    rows = combinations(model, 40, seed=8) + [Row(i) for i in range(3)]
    # The final logits are reachable by edits also when only two of them are read.
    edit = Intervention("logits", Replace(torch.linspace(0, 9, 97)))
    rows += [Row(0, (edit,)), Row(1, (edit,), "other")]
    metric = make(model, runs)
    results = check(model, runs, rows, metric)
    # Against the metric's definition, from whole logits.
    for row, result in zip(rows, results, strict=True):
        if row.interventions:
            continue
        position = runs["base"].position(row.prompt, metric.positions[0])
        logits = model.forward(runs["base"]).logits[row.prompt, position].double()
        p = logits.softmax(-1)
        expected = {
            LogitDifference: lambda i, logits=logits: logits[i + 1] - logits[i + 4],
            Probability: lambda i, p=p: p[i + 1],
            ProbabilityDifference: lambda i, p=p: (
                p[list(((1,), (2, 3), (4,))[i])].sum() - p[list(((5, 6), (7,), (8,))[i])].sum()
            ),
            KLDivergence: lambda i, p=p: torch.nn.functional.kl_div(
                p.log(), reference_logits(model, runs)[i].double().softmax(-1), reduction="sum"
            ),
        }[type(metric)](row.prompt)
        assert float(result.value) == pytest.approx(float(expected), abs=2e-5)


@pytest.mark.parametrize("budget", [1, 20_000, 200_000])
def test_any_memory_budget_gives_the_same(exact: Any, runs: Any, budget: int) -> None:
    rows = combinations(exact, 60, seed=6)
    check(exact, runs, rows, Logits((-1,)), memory_budget=budget)


def chunk_sizes(monkeypatch: pytest.MonkeyPatch, limit: int | None = None) -> list[int]:
    """Record how many rows run together; refuse more than `limit` as a full memory would."""
    sizes: list[int] = []
    real = ChunkRun.values

    def values(self: ChunkRun) -> Tensor:
        if limit is not None and len(self.chunk.jobs) > limit:
            raise torch.OutOfMemoryError("simulated")
        sizes.append(len(self.chunk.jobs))
        return real(self)

    monkeypatch.setattr(ChunkRun, "values", values)
    return sizes


def test_a_budget_of_one_byte_runs_rows_one_by_one(
    model: Any, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = chunk_sizes(monkeypatch)
    rows = [Row(i % 3, (Intervention(Site("z", i % 3), Zero()),)) for i in range(9)]
    swept(model, runs, rows, Logits((-1,)), memory_budget=1)
    assert sizes == [1] * 9
    sizes.clear()
    swept(model, runs, rows, Logits((-1,)))
    assert len(sizes) < 9


@pytest.mark.parametrize("limit", [1, 3])
def test_when_memory_runs_out_chunks_are_halved(
    exact: Any, runs: Any, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    rows = combinations(exact, 40, seed=7)
    expected = list(naive_rows(exact, runs, rows, Logits((-1,))))
    sizes = chunk_sizes(monkeypatch, limit)
    found = swept(exact, runs, rows, Logits((-1,)))
    assert max(sizes) <= limit
    assert sum(sizes) == sum(result.computed for result in found)
    for left, right in zip(found, expected, strict=True):
        assert largest_gap(left.value, right.value) < 1e-8


def test_one_row_that_does_not_fit_is_an_error(
    model: Any, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunk_sizes(monkeypatch, limit=0)
    with pytest.raises(OutOfMemoryError, match="does not fit in memory"):
        swept(model, runs, [Row(0, (Intervention("z.0", Zero()),))], Logits())


def test_results_stream(model: Any, runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first result is there before the last chunk has run, and the caller may stop early."""
    sizes = chunk_sizes(monkeypatch)
    rows = [Row(i % 3, (Intervention(Site("z", i % 3), Zero()),)) for i in range(30)]
    stream = model.rows(runs, rows, Logits((-1,)), memory_budget=1)
    next(stream)
    assert sizes == [1]
    stream.close()


def test_progress_counts_every_row(model: Any, runs: Any) -> None:
    rows = [Row(i % 3, (Intervention("z.1", Freeze("base")),), "base") for i in range(4)]
    rows += [Row(i % 3, (Intervention("z.1", Zero()),)) for i in range(6)]
    calls: list[tuple[int, int]] = []
    swept(model, runs, rows, Logits((-1,)), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 10) for i in range(10)]


def test_rows_that_cannot_matter_are_skipped_and_right(exact: Any, runs: Any) -> None:
    useless = [
        Row(0),
        Row(0, (Intervention("resid_pre.1", Freeze("base")),)),
        Row(0, (Intervention("resid_pre.1", Replace(FromRun("other")), positions=(0, 1)),)),
        Row(1, (Intervention("z.0", Replace(FromRun("base")), positions=1),), "other"),
        Row(0, (Intervention("resid_pre.1", Zero(), positions=5),)),
        Row(0, (Intervention("resid_post.2", Zero(), positions=2),)),
        Row(
            0,
            (Intervention("mlp_post.2", Zero(), positions=2), Intervention("ln_final", Zero(), positions=1)),
        ),
        Row(0, (Intervention("z.2", Zero(), positions=0),)),
    ]
    useful = [
        Row(0, (Intervention("resid_pre.1", Replace(FromRun("other")), positions=2),)),
        Row(0, (Intervention("resid_pre.2", Zero(), positions=2),)),
        Row(0, (Intervention("k.2", Zero(), positions=0),)),
        Row(0, (Intervention("z.2", Zero(), positions=3),)),
        # A value from another site, or another head, changes something also where the tokens agree.
        Row(0, (Intervention("resid_pre.1", Replace(FromRun("base", site="resid_pre.2")), positions=0),)),
        Row(0, (Intervention("z.1.0", Replace(FromRun("base", site="z.1.3")), positions=0),)),
        Row(0, (Intervention("z.1", Mean("base"), positions=0),)),
        Row(0, (Intervention("z.1", Add(FromRun("base")), positions=0),)),
    ]
    results = check(exact, runs, useless + useful, Logits((3,)))
    assert [result.computed for result in results] == [False] * len(useless) + [True] * len(useful)
    base = {run: exact.forward(runs[run]).logits for run in ("base", "other")}
    for row, result in zip(useless, results, strict=False):
        assert largest_gap(result.value[0], base[row.run][row.prompt, 3]) < 1e-12
    for row, result in zip(useful, results[len(useless) :], strict=True):
        assert largest_gap(result.value[0], base[row.run][row.prompt, 3]) > 1e-6, row


def test_restoring_below_a_change_is_not_skipped(exact: Any, runs: Any) -> None:
    """A restoration does something once an earlier intervention has changed what it restores."""
    noise = Intervention("embed", Noise(1.0), positions=0)
    undone = Intervention("resid_pre.0", Freeze("base"))
    half = Intervention("resid_pre.1", Freeze("base"), positions=0)
    results = check(exact, runs, [Row(0, (noise, undone)), Row(0, (noise, half))], Logits((-1,)))
    base = exact.forward(runs["base"].select([0]), logits="last").logits
    assert largest_gap(results[0].value, base) < 1e-10
    assert largest_gap(results[1].value, base) > 1e-6


def test_each_entry_can_have_its_own_value_in_many_rows(exact: Any, runs: Any) -> None:
    """One tensor of vectors shared by rows, some of whose positions cannot matter and are dropped."""
    values = torch.randn(8, exact.info.d_head, generator=torch.Generator().manual_seed(1)).double()
    edit = Intervention("z.1", Replace(values), positions=(4, 2, 0, 1), heads=(3, 1))
    rows = [Row(p, (edit,), run) for p in range(3) for run in ("base", "other")]
    check(exact, runs, rows, Logits((2,)))
    check(exact, runs, rows, Logits((-1,)))


def test_like_operations_on_one_row_act_once_each(exact: Any, runs: Any) -> None:
    add = Add(torch.linspace(-1, 1, 32))
    rows = [
        Row(prompt, tuple(Intervention("resid_mid.1", one, positions=2) for one in order))
        for prompt in range(3)
        for order in ((add,), (add, add), (add, Scale(0.5), add), (Scale(0.5), add, add))
    ]
    results = check(exact, runs, rows, Logits((-1,)))
    for a in range(4):
        for b in range(a):
            assert largest_gap(results[a].value, results[b].value) > 1e-6


def test_directions_of_many_rows_are_kept_apart(exact: Any, runs: Any) -> None:
    directions = torch.randn(6, 32, generator=torch.Generator().manual_seed(2))
    rows = [Row(i % 3, (Intervention("resid_post.1", ProjectOut(d)),)) for i, d in enumerate(directions)]
    check(exact, runs, rows, Logits((-1,)))


def test_one_layer_and_one_token() -> None:
    for architecture in ("gpt2", "llama"):
        size = "n_layer" if architecture == "gpt2" else "num_hidden_layers"
        model = open_module(hf_model(architecture, **{size: 1}))
        runs = {"base": Tokens.from_lists([[3], [4, 5]]), "other": Tokens.from_lists([[9], [4, 7]])}
        rows = []
        for kind in sorted(model.info.site_kinds):
            site = Site(kind, 0 if KINDS[kind].in_block else None)
            for prompt in (0, 1):
                for operation in (Zero(), Replace(FromRun("other")), Scale(2.0)):
                    rows.append(Row(prompt, (Intervention(site, operation, positions=-1),)))
        check(model, runs, rows, Logits((-1,)))


def test_a_model_that_fills_its_context(model: Any) -> None:
    runs = {"base": Tokens.from_lists(random_ids((24, 23), seed=3))}
    rows = [Row(i, (Intervention(Site("z", 1), Zero(), positions=p),)) for i in (0, 1) for p in (0, 11, -1)]
    check(model, runs, rows, Logits((-1,)))


def test_a_single_run_needs_no_name(model: Any, runs: Any) -> None:
    rows = [Row(1, (Intervention("z.0", Zero()),))]
    one = swept(model, runs["base"], rows, Logits())
    two = swept(model, {"base": runs["base"]}, rows, Logits())
    assert torch.equal(one[0].value, two[0].value)
    assert swept(model, runs["base"], [], Logits()) == []
