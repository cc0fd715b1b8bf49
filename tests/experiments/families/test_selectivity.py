"""Neurons whose classes are known by construction, nulls where there are none, and slow oracles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.errors import InputError
from mech_interp.experiments import selectivity
from mech_interp.experiments.labelled import LabelledParams, LabelledText, load_texts, texts_hash, token_class
from mech_interp.experiments.selectivity import auc_of, measure, replication

CLASSES = ["a", "b", "c", "d", "e"]


def planted(per_class: int = 20, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """40 neurons: 0-9 respond to a, 10-19 to b and c, 20-39 to nothing."""
    draw = np.random.default_rng(seed)
    labels = [label for label in CLASSES for _ in range(per_class)]
    values = draw.standard_normal((len(labels), 40))
    index = np.array(labels)
    values[index == "a", :10] += 3
    values[np.isin(index, ["b", "c"]), 10:20] += 3
    return values, labels


def test_area_is_the_share_of_ordered_pairs() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 6, (30, 4)).astype(float)  # with ties
    index = draw.integers(0, 3, 30)
    found = auc_of(selectivity._ranks(values, None), np.eye(3)[index])
    for neuron in range(4):
        for label in range(3):
            mine, rest = values[index == label, neuron], values[index != label, neuron]
            wins = (mine[:, None] > rest).mean() + 0.5 * (mine[:, None] == rest).mean()
            assert found[label, neuron] == pytest.approx(wins)


def test_planted_responses_are_counted() -> None:
    values, labels = planted()
    found = measure(values, labels, min_auc=0.75, shuffles=200, seed=1)
    assert found.classes == tuple(CLASSES)
    np.testing.assert_array_equal(found.counts, [1] * 10 + [2] * 10 + [0] * 20)
    assert found.responds[0, :10].all()
    assert found.responds[1:3, 10:20].all()
    # Some chance responses are allowed, at the false-discovery rate.
    assert found.null_counts.mean() < 0.01
    done, of = replication(values, labels, list(range(len(labels))), min_auc=0.75)
    assert done >= 0.9 * of >= 24


def test_nothing_is_found_where_nothing_is() -> None:
    found = 0
    for seed in range(20):
        values = np.random.default_rng(seed).standard_normal((60, 30))
        labels = [CLASSES[i % 3] for i in range(60)]
        found += int(measure(values, labels, min_auc=0.51, shuffles=50, held_out=2, seed=seed).responds.any())
    assert found <= 4  # a false-discovery rate of 5 % gives 1 in 20 on average


def test_strata_are_shuffled_within_and_take_out_the_text() -> None:
    generator = np.random.default_rng(0)
    index = np.array([0, 1, 2, 0, 1, 0, 2, 1])
    strata = [5, 5, 5, 7, 7, 6, 6, 6]
    seen = set()
    for _ in range(50):
        shuffled = selectivity._shuffled(index, strata, generator)
        for stratum in set(strata):
            where = [i for i, one in enumerate(strata) if one == stratum]
            assert sorted(shuffled[where]) == sorted(index[where])
        seen.add(tuple(shuffled))
    assert len(seen) > 20
    # A neuron that only follows the text responds to no class of its tokens.
    texts = np.repeat(np.arange(20), 3)
    labels = ["x", "y", "z"] * 20
    values = np.stack([texts * 10.0, texts * 10.0 + np.tile([0, 0, 5], 20)], axis=1)
    values += 0.01 * generator.standard_normal(values.shape)
    found = measure(values, labels, list(texts), shuffles=200)
    assert found.counts.tolist() == [0, 1]
    assert found.responds[2, 1]


def test_halves_share_no_group_and_hold_every_class() -> None:
    index = np.array([0] * 7 + [1] * 8)
    groups = np.arange(15)
    half = selectivity._half(index, groups, 0)
    assert abs(half[:7].sum() - 3.5) <= 1
    assert abs(half[7:].sum() - 4) <= 1
    twins = np.repeat(np.arange(6), 2)
    half = selectivity._half(np.array([0, 1] * 6), twins, 0)
    assert all(half[i] == half[i + 1] for i in range(0, 12, 2))
    assert half.sum() == 6


@pytest.mark.parametrize("labels", [["a"] * 6, ["a"] * 5 + ["b"], ["a", "b"]])
def test_too_few_labels(labels: list[str]) -> None:
    with pytest.raises(InputError):
        measure(np.zeros((6, 2)), labels)


def test_token_classes() -> None:
    words = [" Paris", " 12", "17", ".", " the", "The", " river", "ing", " ,", "\n"]
    assert [token_class(word) for word in words] == [
        "name",
        "number",
        "number",
        "punctuation",
        "function word",
        "function word",
        "word",
        "word piece",
        "punctuation",
        "punctuation",
    ]


def test_small_world_texts() -> None:
    params = LabelledParams.model_validate({"documents": 4, "kinds": ["facts", "years"]})
    found = load_texts(params, 1)
    assert {one.label for one in found} == {"facts", "years"}
    assert texts_hash(found) == texts_hash(load_texts(params, 1)) != texts_hash(load_texts(params, 2))
    with pytest.raises(InputError, match="Did you mean facts"):
        load_texts(params.model_copy(update={"kinds": ["fact", "years"]}), 1)


def test_texts_from_spec_and_file(tmp_path: Any) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"text": "a b", "label": "x"}\n\n{"prompt": "c", "label": "y"}\n', encoding="utf-8")
    given = [{"prompt": "a b", "label": "x"}, {"text": "c", "label": "y"}]
    inline = load_texts(LabelledParams.model_validate({"prompts": given}), 0)
    assert inline == load_texts(LabelledParams.model_validate({"dataset_path": str(file)}), 0)
    assert inline == [LabelledText(text="a b", label="x"), LabelledText(text="c", label="y")]
    with pytest.raises(InputError, match="has no label"):
        load_texts(LabelledParams.model_validate({"prompts": ["a", "b"]}), 0)
    bare = LabelledParams.model_validate({"prompts": ["a", "b"], "labels": "token"})
    assert [one.text for one in load_texts(bare, 0)] == ["a", "b"]
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"Line 1 of texts\.jsonl"):
        load_texts(LabelledParams.model_validate({"dataset_path": str(file)}), 0)


def test_the_family_counts_planted_neurons(model: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family's counts are those of `measure` on activations taken by hand."""
    texts = [
        {"text": f"The {old} {name} {tail}", "label": label}
        for label, tail in (("giving", "gave that book"), ("saying", "say 12 ."), ("red", "to a red a red"))
        for old in ("old", "new", "big")
        for name in ("Ann", "dog", "Tom")
    ]
    result = run("polysemanticity", prompts=texts, shuffles=50, min_auc=0.8)
    rows = []
    for one in texts:
        found = model.forward(one["text"], capture=["mlp_post.0", "mlp_post.1"], logits="none").activations
        rows.append(np.concatenate([found[f"mlp_post.{layer}"][0].mean(0).numpy() for layer in (0, 1)]))
    labels = [one["label"] for one in texts]
    names = sorted(set(labels))
    member = np.eye(3)[[names.index(label) for label in labels]]
    values = np.stack(rows).astype(np.float32).astype(np.float64)
    expected = auc_of(selectivity._ranks(values, None), member)
    np.testing.assert_allclose(result.tensors["auc"], expected, atol=0.02)
    assert np.median(np.abs(result.tensors["auc"] - expected)) < 1e-6
    counts = result.tensors["classes_per_neuron"]
    assert counts.shape == (48,)
    assert result.metrics["selective_share"].value == pytest.approx((counts >= 1).mean())
    assert result.metrics["polysemantic_share"].value == pytest.approx((counts >= 2).mean())
    assert result.metrics["selective_share"].control["value"] < 0.2
    assert {control.name: control.passed for control in result.controls}["rank_sums"]
    assert [row["neurons"] for row in result.tables["layers"]] == [24, 24]
