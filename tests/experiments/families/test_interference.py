"""Directions whose geometry is known: orthogonal, antipodal, polygons; and a slow oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.errors import InputError
from mech_interp.experiments import ModelFacts, get, interference
from mech_interp.experiments.interference import geometry, mean_share, random_rows, rows_of


def polygon(corners: int) -> np.ndarray:
    angles = 2 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        (np.eye(5) * 3, 1.0),
        (np.concatenate([np.eye(3), -np.eye(3)]), 1 / 2),
        (polygon(3), 2 / 3),
        (polygon(5), 2 / 5),
        (TETRAHEDRON, 3 / 4),
    ],
)
def test_geometries_of_the_paper(directions: np.ndarray, expected: float) -> None:
    """Elhage et al. 2022: orthogonal 1, digon 1/2, triangle 2/3, pentagon 2/5, tetrahedron 3/4."""
    found = geometry(rows_of(directions))
    np.testing.assert_allclose(found.dimensionality, expected)
    assert found.total <= found.d + 1e-9


@pytest.mark.parametrize("part", [3, 7, 4096])
def test_it_equals_the_definition(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interference, "_PART", part)
    rows = np.random.default_rng(0).standard_normal((20, 6)) * np.linspace(0.1, 3, 20)[:, None]
    rows[4] = 0
    found = geometry(rows_of(rows), sampled=100)
    kept = np.delete(rows, 4, axis=0)
    units = kept / np.linalg.norm(kept, axis=1)[:, None]
    for i in range(19):
        assert found.dimensionality[i] == pytest.approx(
            (kept[i] @ kept[i]) / sum((units[i] @ other) ** 2 for other in kept)
        )
        cosines = np.delete(units @ units[i], i)
        assert found.crowding[i] == pytest.approx(6 * (cosines**2).mean())
        assert found.closest[i] == pytest.approx(np.abs(cosines).max())
    assert found.zeros == 1
    assert found.total <= 6


def test_centring_and_its_share() -> None:
    rows = np.random.default_rng(0).standard_normal((200, 8)) + 5
    assert mean_share(rows) == pytest.approx(8 * 25 / (8 * 26), abs=0.01)
    raw, centred = (geometry(rows_of(rows, centre=centre)) for centre in (False, True))
    assert raw.crowding.mean() > 5
    assert centred.crowding.mean() == pytest.approx(1, abs=0.05)


def test_random_directions_have_the_lengths_and_no_structure() -> None:
    lengths = np.linspace(0.5, 2, 300)
    rows = random_rows(lengths, 16, 3)
    first, again = (np.concatenate(list(rows())) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(np.linalg.norm(first, axis=1), lengths)
    assert geometry(rows).crowding.mean() == pytest.approx(1, abs=0.05)
    assert not np.array_equal(first, np.concatenate(list(random_rows(lengths, 16, 4)())))


@pytest.mark.parametrize("bad", [np.zeros((4, 3)), np.ones((1, 3)), np.full((3, 3), np.nan), np.ones(4)])
def test_nothing_to_compare(bad: np.ndarray) -> None:
    with pytest.raises(InputError):
        geometry(rows_of(bad))


def test_the_family_measures_the_model_s_weights(model: Any, run: Any) -> None:
    contexts: list[Any] = []
    result = run("superposition", replicates=2, centre=False, contexts=contexts)
    assert "tied" in contexts[0].notes[0]
    embed = model.weights("W_E").detach().float().numpy()
    np.testing.assert_allclose(
        result.tensors["dimensionality.embed"][0],
        geometry(rows_of(embed)).dimensionality,
        rtol=1e-5,
    )
    reads = model.weights("W_in", 1).detach().float().numpy().T
    np.testing.assert_allclose(
        result.tensors["dimensionality.mlp_in"][1], geometry(rows_of(reads)).dimensionality, rtol=1e-5
    )
    writes = model.weights("W_out", 1).detach().float().numpy()
    assert writes.shape == (24, 16)
    np.testing.assert_allclose(
        result.tensors["dimensionality.mlp_out"][1], geometry(rows_of(writes)).dimensionality, rtol=1e-5
    )
    # Random weights are no more crowded than random directions.
    metric = result.metrics["crowding.mlp_out"]
    assert metric.value == pytest.approx(metric.control["value"], abs=0.15)
    assert [row["weights"] for row in result.tables["weights"]] == ["embed"] + ["mlp_in"] * 2 + [
        "mlp_out"
    ] * 2
    assert result.status == "complete"


def test_a_gate_is_asked_only_of_models_that_have_one() -> None:
    family = get("superposition")
    params = family.Params.model_validate({"weights": ["mlp_gate"]})
    sizes = (2, 2, 2, 16, 8, 24, 41, 16)
    plain = {"mlp_pre_linear": "the MLP of GPT-2 is not gated"}
    with pytest.raises(InputError, match="mlp_gate, which m does not have: the MLP of GPT-2 is not gated"):
        family.check(params, ModelFacts("m", "gpt2", *sizes, missing_kinds=plain), None)
    family.check(params, ModelFacts("m", "llama", *sizes), None)


def test_sets_of_the_mlp_are_refused_for_a_mixture_of_experts() -> None:
    family = get("superposition")
    sizes = (2, 2, 2, 16, 8, 24, 41, 16)
    facts = ModelFacts("m", "mixtral", *sizes, missing_kinds={"mlp_pre": "its MLP is a mixture of experts"})
    with pytest.raises(InputError, match="names mlp_in, mlp_out, which m does not have: its MLP is a mix"):
        family.check(family.Params.model_validate({}), facts, None)
    family.check(family.Params.model_validate({"weights": ["embed", "unembed"]}), facts, None)
