"""Trained checkpoints in MLX: the bundled ones, and those of others where this machine has them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mech_interp.backends.checks import measure_identities
from mech_interp.backends.loading import bundled_folder, load_model
from mech_interp.backends.metrics import KLDivergence, LogitDifference
from mech_interp.backends.protocol import Row
from mech_interp.errors import InputError
from mech_interp.interventions import FromRun, Intervention, Replace, Zero
from mech_interp.sites import KINDS, Site

pytest.importorskip("mlx.core", reason="MLX is not installed")
layouts = importlib.import_module("mech_interp.backends.huggingface.layouts")

TEXTS = {
    "tinyworld": ["Anna lives in the town of", "The", "Ben went to the market and bought"],
    "tinyworld-llama": ["Anna lives in the town of", "The", "Ben went to the market and bought"],
    "stories260k": ["Once upon a time, there was", "Lily", "The dog and the cat went to the"],
    "atome-vanilla-1m": ["Once upon a time there was a", "Tom said", "She liked to"],
    "llmviz-nano-sort": ["CBABCA", "AACBBC", "BCABAC"],
}
BOUND = 2e-5


@pytest.fixture(scope="module", params=list(TEXTS))
def both(request: pytest.FixtureRequest, real_checkpoints: Path) -> Any:
    """One checkpoint in MLX and in the default engine."""
    name = request.param
    if bundled_folder(name) is None:
        if not (real_checkpoints / name).is_dir():
            pytest.skip(f"the checkpoint {name} is not on this machine")
        name = str(real_checkpoints / name)
    return load_model(name, backend="mlx"), load_model(name, device="cpu", attention="eager")


def gap(left: Tensor, right: Tensor) -> float:
    scale = max(1.0, float(right.abs().max()))
    return float((left.double() - right.double()).abs().max()) / scale


def test_identities(both: Any) -> None:
    found = measure_identities(both[0])
    assert all(
        sum(identity.layer == layer for identity in found) >= 6 for layer in range(both[0].info.n_layers)
    )
    assert max(identity.deviation for identity in found) < 1e-5


def test_the_same_values_everywhere(both: Any) -> None:
    ours, theirs = both
    assert ours.info.weights_hash == theirs.info.weights_hash
    assert ours.info.tokenizer_hash == theirs.info.tokenizer_hash
    texts = TEXTS[ours.info.name]
    assert ours.tokens(texts).lengths == theirs.tokens(texts).lengths
    sites = [
        Site(kind, layer)
        for kind in sorted(ours.info.site_kinds)
        for layer in (range(ours.info.n_layers) if KINDS[kind].in_block else [None])
    ]
    left, right = (model.forward(texts, capture=sites) for model in both)
    for i, n in enumerate(left.tokens.lengths):
        assert gap(left.logits[i, :n], right.logits[i, :n]) < BOUND
        p, q = (found.logits[i, :n].double().log_softmax(-1) for found in (left, right))
        assert float((q.exp() * (q - p)).sum(-1).max()) < 1e-6
        for site in sites:
            a, b = (found.activations[site][i] for found in (left, right))
            a, b = (x[:, :n, :n].tril() if site.spec.over_keys else x[:n] for x in (a, b))
            assert gap(a, b) < BOUND, site


def test_the_same_sweep(both: Any) -> None:
    ours, theirs = both
    base = theirs.tokens(TEXTS[ours.info.name][:1])
    other = type(base)((base.ids + 1) % ours.info.vocabulary, base.lengths)
    rows = []
    for layer in range(ours.info.n_layers):
        for position in range(base.lengths[0]):
            patch = Intervention(Site("resid_pre", layer), Replace(FromRun("other")), positions=position)
            rows.append(Row(0, (patch,)))
        rows += [Row(0, (Intervention(Site("z", layer), Zero(), heads=(head,)),)) for head in range(2)]
    runs = {"base": base, "other": other}
    last = theirs.forward(base, logits="last").logits
    for metric in (LogitDifference((1,), (2,)), KLDivergence(last)):
        found, expected = (
            {result.index: result.value for result in model.rows(runs, rows, metric)} for model in both
        )
        assert gap(*(torch.stack([x[i] for i in range(len(rows))]) for x in (found, expected))) < 1e-4
        assert len({f"{float(value):.2g}" for value in expected.values()}) > len(rows) // 4


def test_the_same_text(both: Any) -> None:
    ours, theirs = both
    texts = TEXTS[ours.info.name][: 2 if ours.info.context > 16 else 1]
    new = min(20, ours.info.context - 8)
    found, expected = (model.generate(texts, max_new_tokens=new) for model in both)
    assert found == expected
    assert list(ours.stop_ids) == (list(found_stops(theirs)))


def found_stops(model: Any) -> list[int]:
    """The library's own stop tokens."""
    generation = importlib.import_module("mech_interp.backends.huggingface.generation")
    return list(generation.default_stops(model.module))


def test_options_of_load_model() -> None:
    with load_model("tinyworld", backend="mlx", device="cpu", dtype="bfloat16") as half:
        assert (half.info.backend, half.info.dtype, half.info.source) == ("mlx", "bfloat16", "bundled")
        whole = load_model("tinyworld", device="cpu")
        left, right = (m.forward(TEXTS["tinyworld"][:1], logits="last").logits for m in (half, whole))
        assert 1e-4 < gap(left, right) < 6e-2
    with pytest.raises(InputError, match="cuda"):
        load_model("tinyworld", backend="mlx", device="cuda")


def test_the_registry_names_the_architectures_that_it_reads() -> None:
    from mech_interp.backends.mlx.facts import READERS
    from mech_interp.backends.registry import BACKENDS

    assert set(BACKENDS["mlx"].models) == set(READERS)
