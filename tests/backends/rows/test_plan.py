"""Planning is pure: what is skipped cannot matter, what is grouped fits. No model is run here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.backends.rows.plan import (
    Costs,
    Job,
    Stage,
    Start,
    blocks_of_prompts,
    job_of,
    make_chunk,
    plan,
    start_of,
)
from mech_interp.interventions import (
    Add,
    Freeze,
    FromRun,
    Intervention,
    Operation,
    Replace,
    Scale,
    SubspaceSet,
)
from mech_interp.sites import KINDS, Site

LAYERS = 3
# Sites of the toy in order of computation. Keys and values mix positions, all others keep to their own.
IN_BLOCK = (
    "resid_pre",
    "q",
    "k",
    "v",
    "pattern",
    "z",
    "attn_out",
    "resid_mid",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
OUTSIDE = ("embed", "ln_final", "logits")

Values = dict[tuple[str, int | None, int], int]
Edit = Callable[[str, int | None, int, int], int]


def toy(tokens: Sequence[int], edit: Edit) -> Values:
    """A causal decoder over symbols: each value is a hash of exactly what it depends on."""
    seen: Values = {}
    n = range(len(tokens))

    def put(kind: str, layer: int | None, position: int, *parts: object) -> int:
        seen[kind, layer, position] = edit(kind, layer, position, hash((kind, layer, *parts)))
        return seen[kind, layer, position]

    x = [put("embed", None, p, token, p) for p, token in enumerate(tokens)]
    for layer in range(LAYERS):
        x = [put("resid_pre", layer, p, x[p]) for p in n]
        q = [put("q", layer, p, x[p]) for p in n]
        k = [put("k", layer, p, x[p]) for p in n]
        v = [put("v", layer, p, x[p]) for p in n]
        pattern = [put("pattern", layer, p, q[p], *k[: p + 1]) for p in n]
        z = [put("z", layer, p, pattern[p], *v[: p + 1]) for p in n]
        out = [put("attn_out", layer, p, z[p]) for p in n]
        mid = [put("resid_mid", layer, p, x[p], out[p]) for p in n]
        post = [put("mlp_post", layer, p, mid[p]) for p in n]
        mlp = [put("mlp_out", layer, p, post[p]) for p in n]
        x = [put("resid_post", layer, p, mid[p], mlp[p]) for p in n]
    normed = [put("ln_final", None, p, x[p]) for p in n]
    for p in n:
        put("logits", None, p, normed[p])
    return seen


def untouched(kind: str, layer: int | None, position: int, value: int) -> int:
    return value


@dataclass(frozen=True)
class Case:
    """A row on the toy: tokens of its run and of another, edits with positions, positions read."""

    tokens: tuple[int, ...]
    other: tuple[int, ...]
    edits: tuple[tuple[Intervention, tuple[int, ...]], ...]
    reads: tuple[int, ...]

    def shared(self, source: FromRun) -> int:
        theirs = self.tokens if source.run == "base" else self.other
        return next(
            (i for i, (a, b) in enumerate(zip(self.tokens, theirs, strict=True)) if a != b), len(theirs)
        )

    def same(self, source: FromRun, position: int) -> bool:
        theirs = self.tokens if source.run == "base" else self.other
        return self.tokens[position] == theirs[position]

    def job(self) -> Job | None:
        length = len(self.tokens)
        return job_of(0, ("base", 0), length, self.edits, self.reads, LAYERS, self.shared, self.same)

    def outcome(self, edits: Sequence[tuple[Intervention, Sequence[int]]]) -> Values:
        runs = {"base": toy(self.tokens, untouched), "other": toy(self.other, untouched)}

        def read(source: FromRun, kind: str, layer: int | None, position: int) -> int:
            site = source.site or Site(kind, layer)
            return runs[source.run][site.kind, site.layer, position]

        def edit(kind: str, layer: int | None, position: int, value: int) -> int:
            for number, (one, positions) in enumerate(self.edits):
                kept = next((p for i, p in edits if i is one), ())
                if (one.site.kind, one.site.layer) != (kind, layer) or position not in kept:
                    continue
                assert position in positions
                match one.operation:
                    case Replace(FromRun() as source):
                        value = read(source, kind, layer, position)
                    case Freeze(run):
                        value = read(FromRun(run), kind, layer, position)
                    case SubspaceSet(_, FromRun() as source):
                        there = read(source, kind, layer, position)
                        value = value if value == there else hash(("subspace", number, value, there))
                    case _:
                        value = hash(("changed", number, value))
            return value

        return toy(self.tokens, edit)


def operations(kind: str) -> st.SearchStrategy[Operation]:
    source = st.builds(FromRun, st.sampled_from(("base", "other")), st.none() | st.just(_elsewhere(kind)))
    return st.one_of(
        st.just(Scale(2.0)),
        source.map(Replace),
        source.map(lambda s: SubspaceSet(torch.ones(1), s)),
        source.map(Add),
        st.sampled_from(("base", "other")).map(Freeze),
    )


def _elsewhere(kind: str) -> Site:
    return Site(kind, 2) if KINDS[kind].in_block else Site("embed")


@st.composite
def cases(draw: Any) -> Case:
    n = draw(st.integers(1, 5))
    tokens = tuple(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    other = tuple(draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    shared = draw(st.integers(0, n))
    other = (*tokens[:shared], *other[shared:])
    edits = []
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from((*IN_BLOCK, *OUTSIDE)))
        site = Site(kind, draw(st.integers(0, LAYERS - 1)) if KINDS[kind].in_block else None)
        positions = tuple(draw(st.sets(st.integers(0, n - 1), min_size=1)))
        edits.append((Intervention(site, draw(operations(kind)), positions=positions), positions))
    reads = tuple(draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=3)))
    return Case(tokens, other, tuple(edits), reads)


def check(case: Case) -> None:
    """Skipped rows change nothing read, and a job's own edits are enough."""
    base, full = toy(case.tokens, untouched), case.outcome(case.edits)
    job = case.job()
    kept = case.outcome(job.edits if job else ())
    for position in case.reads:
        assert kept["logits", None, position] == full["logits", None, position]
    if job is None:
        return
    assert job.first <= min(case.reads)
    stages = {site: start_of(Site(*site), LAYERS) for site in {(kind, layer) for kind, layer, _ in base}}
    for (kind, layer, position), value in kept.items():
        # Everything before the start, or before the first position, is taken from the base run.
        if position < job.first or stages[kind, layer] < job.start:
            assert value == base[kind, layer, position]


@settings(max_examples=500, deadline=None)
@given(cases())
def test_what_is_left_out_cannot_matter(case: Case) -> None:
    """By brute force on the toy, several edits at a time."""
    check(case)


def test_what_a_single_restoration_leaves_out_cannot_matter() -> None:
    """All of them: every site, position and read, with tokens that differ first, in the middle and last."""
    run = (5, 6, 7)
    for other in ((0, 6, 7), (5, 0, 7), (5, 6, 0)):
        for kind in (*IN_BLOCK, *OUTSIDE):
            for layer in range(LAYERS) if KINDS[kind].in_block else [None]:
                for position in range(3):
                    edit = Intervention(Site(kind, layer), Freeze("other"), positions=position)
                    for read in range(3):
                        check(Case(run, other, ((edit, (position,)),), (read,)))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_nothing_useless_is_kept_among_restorations(case: Case) -> None:
    """A row whose edits all restore what is already there is skipped."""
    restoring = all(
        isinstance(one.operation, Freeze)
        or (isinstance(one.operation, Replace) and one.operation.value.site is None)
        for one, _ in case.edits
    )
    if restoring and case.tokens == case.other:
        assert case.job() is None
    # Before attention has mixed positions, a token in common is enough.
    early = all(one.site.kind in ("embed", "resid_pre", "k") and not one.site.layer for one, _ in case.edits)
    common = all(case.tokens[p] == case.other[p] for _, positions in case.edits for p in positions)
    if restoring and early and common:
        assert case.job() is None


def test_where_rows_take_over() -> None:
    order = [start_of(Site(k, 1 if KINDS[k].in_block else None), 3) for k in KINDS]
    assert order == sorted(order), "stages follow the order of computation"
    assert start_of(Site("z", 2), 3) == Start(2, Stage.Z)
    assert start_of(Site("pattern", 2), 3) == Start(2, Stage.PRE)
    assert start_of(Site("embed"), 3) == Start(0, Stage.EMBED)
    assert start_of(Site("ln_final"), 3) == Start(3, Stage.FINAL)


def job(index: int, start: Start, first: int, reads: tuple[int, ...], length: int = 12) -> Job:
    return Job(index, ("base", 0), length, start, min(first, *reads), reads, ())


starts = st.builds(Start, st.integers(0, 3), st.sampled_from(Stage))
positions = st.integers(0, 11)
job_lists = st.lists(
    st.tuples(starts, positions, st.lists(positions, min_size=1, max_size=3).map(tuple)),
    min_size=1,
    max_size=30,
).map(lambda parts: [job(i, *part) for i, part in enumerate(parts)])


@settings(max_examples=300, deadline=None)
@given(
    job_lists,
    st.builds(Costs, *(st.integers(0, 50) for _ in range(4))),
    st.integers(1, 5000),
    st.integers(1, 60),
    st.floats(1.0, 3.0),
)
def test_chunks(jobs: list[Job], costs: Costs, budget: int, max_tokens: int, waste: float) -> None:
    chunks = plan(jobs, 4, costs, budget, max_tokens=max_tokens, waste=waste)
    assert sorted(j.index for chunk in chunks for j in chunk.jobs) == list(range(len(jobs)))
    for chunk in chunks:
        n, computed = len(chunk.jobs), chunk.width - chunk.first
        assert [j.start for j in chunk.jobs] == sorted(j.start for j in chunk.jobs)
        assert chunk.first == min(j.first for j in chunk.jobs)
        assert chunk.width == max(max(j.reads) for j in chunk.jobs) + 1
        spent = useful = 0
        for j in chunk.jobs:
            layers = max(4 - j.start.layer, 1)
            spent += computed * layers
            useful += (max(j.reads) + 1 - j.first) * layers
        if n > 1:
            assert costs.of(n, chunk.first, chunk.width) <= budget
            assert n * computed <= max_tokens
            assert spent <= waste * useful + 1e-9
    # Planning is a function of its arguments alone, whatever order the rows came in.
    assert plan(list(reversed(jobs)), 4, costs, budget, max_tokens=max_tokens, waste=waste) == chunks


def test_like_rows_go_together() -> None:
    jobs = [job(i, Start(i % 4, Stage.PRE), 5, (11,)) for i in range(40)]
    free = Costs(1, 1, 1, 1)
    assert len(plan(jobs, 4, free, 1 << 40, max_tokens=1 << 20)) == 1
    assert len(plan(jobs, 4, free, 1 << 40, max_tokens=70)) == 4
    # Rows that start eleven positions apart would compute far more than either needs.
    apart = [job(i, Start(0, Stage.PRE), 11 * (i % 2), (11,)) for i in range(10)]
    assert len(plan(apart, 4, free, 1 << 40, max_tokens=1 << 20)) == 2


@settings(max_examples=100, deadline=None)
@given(job_lists)
def test_halves_cover_a_chunk(jobs: list[Job]) -> None:
    chunk = make_chunk(jobs)
    if len(jobs) > 1:
        left, right = chunk.halves()
        assert left.jobs + right.jobs == chunk.jobs
        assert abs(len(left.jobs) - len(right.jobs)) <= 1


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=20), st.integers(1, 10), st.integers(0, 500))
def test_blocks_of_prompts(sizes: list[int], per_token: int, budget: int) -> None:
    blocks = blocks_of_prompts(sizes, per_token, budget)
    assert [i for block in blocks for i in block] == list(range(len(sizes)))
    for block in blocks:
        held = len(block) * max(sizes[i] for i in block) * per_token
        assert len(block) == 1 or held <= budget
