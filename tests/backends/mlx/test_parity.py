"""MLX against the default engine: the same values at every site, under every operation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import combinations, one_of_each
from mlx_models import VARIANTS
from tiny_models import random_ids
from torch import Tensor

from mech_interp.backends.metrics import Logits, Metric
from mech_interp.backends.protocol import InstrumentedModel, Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.errors import CapabilityError, InputError
from mech_interp.interventions import (
    Add,
    Custom,
    Freeze,
    FromRun,
    Intervention,
    Mean,
    Noise,
    Replace,
    Scale,
    Zero,
)
from mech_interp.sites import KINDS, Site

pytest.importorskip("mlx.core", reason="MLX is not installed")

# float32 on both sides; the backend promises 1e-3.
BOUND = 2e-5
PROMPTS = random_ids((7, 1, 11, 4), seed=5)


@pytest.fixture(scope="module", params=list(VARIANTS))
def pair(request: pytest.FixtureRequest, pairs: Any) -> Any:
    """Each variant in both engines."""
    return pairs(request.param)


def gap(left: Tensor, right: Tensor) -> float:
    """Largest difference relative to the largest magnitude (at least 1)."""
    if left.shape != right.shape or not bool(torch.isfinite(left).all()):
        return float("inf")
    scale = max(1.0, float(right.abs().max()))
    return float((left.double() - right.double()).abs().max()) / scale


def every_site(model: Any) -> list[Site]:
    return [
        Site(kind, layer)
        for kind in sorted(model.info.site_kinds)
        for layer in (range(model.info.n_layers) if KINDS[kind].in_block else [None])
    ]


def real(value: Tensor, length: int, site: Site) -> Tensor:
    """One prompt's tensor without filled columns; keys that a query does not see left out."""
    if not site.spec.over_keys:
        return value[:length]
    return value[:, :length, :length].tril()


def test_what_is_said_of_the_model(pair: Any) -> None:
    ours, theirs = pair.mlx.info, pair.default.info
    assert isinstance(pair.mlx, InstrumentedModel)
    assert ours.backend == "mlx"
    assert {"capture", "intervene", "rows", "heads", "weights", "generate"} == ours.capabilities
    same = set(ours.__dataclass_fields__) - {"backend", "capabilities", "attention"}
    assert {f: getattr(ours, f) for f in same} == {f: getattr(theirs, f) for f in same}


def test_every_site_and_the_logits(pair: Any) -> None:
    sites = every_site(pair.mlx)
    ours = pair.mlx.forward(PROMPTS, capture=sites)
    theirs = pair.default.forward(PROMPTS, capture=sites)
    for i, ids in enumerate(PROMPTS):
        assert gap(ours.logits[i, : len(ids)], theirs.logits[i, : len(ids)]) < BOUND
        for site in sites:
            left, right = (real(f.activations[site][i], len(ids), site) for f in (ours, theirs))
            assert left.dtype == torch.float32
            assert gap(left, right) < BOUND, site


def test_fused_attention_gives_the_same(pair: Any) -> None:
    from mech_interp.backends import mlx

    explicit = mlx.open_folder(pair.folder, name="x", source="x", attention="eager")
    assert explicit.info.attention == "eager"
    capped = pair.mlx.decoder.facts.score_cap is not None
    assert pair.mlx.info.attention == ("eager" if capped else "sdpa")
    sites = [Site("z", layer) for layer in range(3)]
    fused, stepwise = (m.forward(PROMPTS, capture=sites, logits="last") for m in (pair.mlx, explicit))
    assert gap(fused.logits, stepwise.logits) < BOUND
    assert all(
        gap(fused.activations[s][i, : len(ids)], stepwise.activations[s][i, : len(ids)]) < BOUND
        for s in sites
        for i, ids in enumerate(PROMPTS)
    )


def check_rows(pair: Any, runs: Any, rows: list[Row], metric: Metric) -> None:
    slow = list(naive_rows(pair.default, runs, rows, metric))
    found = {result.index: result.value for result in pair.mlx.rows(runs, rows, metric)}
    assert sorted(found) == list(range(len(rows)))
    for index, (row, result) in enumerate(zip(rows, slow, strict=True)):
        assert gap(found[index], result.value) < BOUND, row


def test_every_operation_at_every_site(pair: Any, runs: Any) -> None:
    rows = one_of_each(pair.mlx, seed=3)
    assert {row.interventions[0].site.kind for row in rows} == set(pair.default.info.site_kinds)
    check_rows(pair, runs, rows, Logits((-1, 4)))


def test_several_interventions_at_once(pair: Any, runs: Any) -> None:
    check_rows(pair, runs, combinations(pair.mlx, 60, seed=4), Logits((-1,)))


def test_a_forward_with_interventions_and_runs(pair: Any, runs: Any) -> None:
    edits = [
        Intervention("resid_pre.1", Replace(FromRun("far")), positions=2, prompts=(0, 2)),
        Intervention("z.1", Mean("other"), heads=(1,)),
        Intervention("pattern.2", Freeze("far"), prompts=1, positions=(1, 2)),
        Intervention("mlp_out.0", Noise(0.3, seed=2)),
    ]
    sites = every_site(pair.mlx)
    options: dict[str, Any] = {"capture": sites, "interventions": edits, "runs": runs}
    ours, theirs = (m.forward(runs["base"], **options) for m in (pair.mlx, pair.default))
    plain = pair.mlx.forward(runs["base"]).logits
    for i, length in enumerate(runs["base"].lengths):
        assert gap(ours.logits[i, :length], theirs.logits[i, :length]) < BOUND
        assert gap(ours.logits[i, :length], plain[i, :length]) > 1e-2
        for site in sites:
            left, right = (real(f.activations[site][i], length, site) for f in (ours, theirs))
            assert gap(left, right) < BOUND, site


def test_greedy_generation_token_for_token(pair: Any) -> None:
    ours, theirs = (m.generate(PROMPTS, max_new_tokens=10, stop_ids=()) for m in (pair.mlx, pair.default))
    assert ours.ids == theirs.ids
    assert len(set(ours.ids)) == len(PROMPTS)
    stops = [ours.ids[0][3], ours.ids[2][5]]
    ours, theirs = (m.generate(PROMPTS, max_new_tokens=10, stop_ids=stops) for m in (pair.mlx, pair.default))
    assert (ours.ids, ours.finished) == (theirs.ids, theirs.finished)
    assert "stop" in ours.finished


def test_generation_under_interventions(pair: Any) -> None:
    direction = torch.linspace(-2, 2, pair.mlx.info.d_model)

    def bend(live: Tensor, context: Any) -> Tensor:
        return live + 0.1 * context.positions[:, None].to(live)

    edits = [
        Intervention("resid_post.0", Add(direction), phase="generated"),
        Intervention("k.1", Scale(0.5), heads=(0,), positions=(0, -1), phase="prompt"),
        Intervention("pattern.2", Zero(), positions=(12,), heads=(1,)),
        Intervention("mlp_out.1", Custom(bend), prompts=(0, 2)),
    ]
    options: dict[str, Any] = {"max_new_tokens": 12, "stop_ids": (), "interventions": edits}
    ours, theirs = (m.generate([*PROMPTS[:3:2], PROMPTS[0]], **options) for m in (pair.mlx, pair.default))
    assert ours.ids == theirs.ids
    free = pair.mlx.generate([*PROMPTS[:3:2], PROMPTS[0]], max_new_tokens=12, stop_ids=())
    assert free.ids != ours.ids


def test_cached_generation_equals_whole_forwards(pair: Any) -> None:
    # A window is shorter than the text, so that old keys fall out of it on the way.
    texts = [list(PROMPTS[2])]
    made = pair.mlx.generate(texts, max_new_tokens=12, stop_ids=()).ids[0]
    for token in made:
        assert int(pair.mlx.forward(texts, logits="last").logits[0].argmax()) == token
        texts[0].append(token)


def test_sampling_is_the_same_stream(pair: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 8, "temperature": 1.2, "seed": 4, "stop_ids": ()}
    assert pair.mlx.generate(PROMPTS, **options).ids == pair.default.generate(PROMPTS, **options).ids


def test_unembedding(pair: Any) -> None:
    resid = 3 * torch.randn(2, 5, pair.mlx.info.d_model, generator=torch.Generator().manual_seed(0))
    whole = pair.mlx.unembed(resid)
    assert gap(whole, pair.default.unembed(resid)) < BOUND
    for ids in (torch.tensor([3, 96, 0]), torch.arange(20).view(2, 5, 2)):
        chosen = pair.mlx.unembed(resid, ids)
        assert gap(chosen, pair.default.unembed(resid, ids)) < BOUND
        assert gap(chosen, whole.gather(-1, ids.expand(2, 5, ids.shape[-1]))) < BOUND


def test_the_direction_through_the_final_norm(pair: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    resid, direction = torch.randn(2, 3, 4, pair.mlx.info.d_model, generator=generator)
    ours, theirs = (m.final_norm_direction(resid, direction) for m in (pair.mlx, pair.default))
    assert gap(ours, theirs) < BOUND
    # Against the norm itself: its output along the direction, up to its constant offset.
    normed = pair.default.layout.final_norm(resid)
    offset = pair.mlx.weights("ln_final.b") @ direction[0, 0] if pair.mlx.info.norm == "layer" else 0
    expected = (normed[0, 0] * direction[0, 0]).sum() - offset
    assert float((resid[0, 0] * ours[0, 0]).sum()) == pytest.approx(float(expected), abs=1e-4)


def test_every_weight_exactly(pair: Any) -> None:
    layout = pair.default.layout
    for layer in (None, 0, 1, 2):
        names = layout.weights() if layer is None else layout.blocks[layer].weights()
        for name in names:
            assert torch.equal(pair.mlx.weights(name, layer), pair.default.weights(name, layer)), name
            if name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
                both = (m.weights(name, layer, head=1) for m in (pair.mlx, pair.default))
                assert torch.equal(*both), name
        # Both know the same names.
        listed = []
        for model in (pair.mlx, pair.default):
            with pytest.raises(InputError) as refused:
                model.weights("?", layer)
            listed.append(set(str(refused.value).partition("There are: ")[2].strip(".").split(", ")))
        assert listed[0] == listed[1] == set(names)


def test_weights_are_refused_in_words(pair: Any) -> None:
    for kind, layer, head, words in (
        ("W_Q", 3, None, "no layer 3"),
        ("W_Q", 0, 4, "no head 4"),
        ("W_in", 0, 1, "not divided into heads"),
        ("W_q", 0, None, "Did you mean .*W_Q"),
    ):
        with pytest.raises(InputError, match=words):
            pair.mlx.weights(kind, layer, head)


def test_missing_sites_are_refused_with_the_reason(pair: Any) -> None:
    for kind, why in pair.mlx.info.missing_kinds.items():
        site = Site(kind, 0 if KINDS[kind].in_block else None)
        with pytest.raises(InputError, match=why[:20]):
            pair.mlx.forward(PROMPTS, capture=[site])


def test_gradients_are_refused(pair: Any) -> None:
    with pytest.raises(CapabilityError, match="mlx computes no gradients"):
        pair.mlx.forward(PROMPTS, grad=True)


def test_captured_values_are_safe_from_later_forwards(pair: Any) -> None:
    """Memory is shared with MLX, which reuses what it believes to be free."""
    site = Site("mlp_out", 1)
    first = pair.mlx.forward(PROMPTS, capture=[site, "pattern.1"])
    copies = [first.activations[s].clone() for s in (site, "pattern.1")] + [first.logits.clone()]
    for _ in range(3):
        pair.mlx.forward(random_ids((7, 1, 11, 4), seed=9), capture=[site, "pattern.1"])
    now = [first.activations[site], first.activations["pattern.1"], first.logits]
    assert all(torch.equal(a, b) for a, b in zip(now, copies, strict=True))
