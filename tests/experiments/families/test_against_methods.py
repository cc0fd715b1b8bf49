"""Each family gives what its method gives when called directly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mech_interp.errors import InputError, MechError
from mech_interp.experiments import ModelFacts, get, parts
from mech_interp.experiments.data import DataParams, load_data
from mech_interp.methods import activation_patching, causal_tracing, direct_logit_attribution, logit_lens
from mech_interp.statistics import UnstableRatioError, wilson

FACTS = ModelFacts("tiny", "gpt2", 2, 2, 2, 16, 8, 24, 41, 16)


@pytest.fixture
def data(model: Any, records: Any) -> Any:
    return load_data(DataParams.model_validate({"prompt_pairs": records}), model.tokenizer, 3)


def test_logit_lens(model: Any, records: Any, data: Any, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.portions, "__defaults__", (5,))
    result = run("logit_lens", prompt_pairs=records)
    answers = [pair.answer for pair in data]
    direct = logit_lens(model, data.clean, answers, groups=data.groups, seed=3)
    np.testing.assert_array_equal(result.tensors["target_rank"], direct.target.rank)
    np.testing.assert_allclose(result.tensors["target_probability"], direct.target.probability, rtol=1e-9)
    np.testing.assert_allclose(result.tensors["control_probability"], direct.control.probability, rtol=1e-9)
    metrics = result.metrics
    assert metrics["final_probability"].value == pytest.approx(direct.probability.value[-1])
    assert metrics["final_probability"].interval == pytest.approx(direct.probability.at(2).interval)
    assert metrics["final_rank"].value == pytest.approx(np.exp(np.log(direct.target.rank[:, -1]).mean()))
    hits = int((direct.target.rank[:, -1] == 1).sum())
    assert metrics["final_top1_rate"].value == hits / 12
    assert metrics["final_top1_rate"].interval == pytest.approx(wilson(hits, 12).interval)
    assert metrics["decision_layer"].value == pytest.approx(direct.decision_estimate.value)
    per_group = metrics["final_probability"].per_group
    assert per_group is not None
    assert per_group["pair-3"] == pytest.approx(direct.target.probability[3, -1])
    assert metrics["final_probability"].control["value"] == pytest.approx(
        direct.control_probability.value[-1]
    )
    assert len(result.tables["layers"]) == 3
    assert [row["prompt"] for row in result.tables["prompts"]] == data.clean
    assert result.status == "complete"


def test_direct_logit_attribution(
    model: Any, records: Any, data: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.portions, "__defaults__", (5,))
    result = run("direct_logit_attribution", prompt_pairs=records)
    direct = direct_logit_attribution(
        model,
        data.clean,
        [pair.answer for pair in data],
        [pair.wrong for pair in data],
        groups=data.groups,
        seed=3,
    )
    np.testing.assert_allclose(result.tensors["terms"], direct.terms, atol=1e-9)
    np.testing.assert_allclose(result.tensors["control_terms"], direct.control_terms, atol=1e-9)
    metrics = result.metrics
    assert metrics["logit_difference"].value == pytest.approx(direct.total.value)
    sums = [metrics[f"{name}_total"].value for name in ("embedding", "attention", "mlp", "bias")]
    assert sum(sums) == pytest.approx(direct.total.value)
    assert metrics["significant_components"].value == int(direct.test.significant().sum())
    assert result.tables["components"][0]["component"] == direct.components[0].label
    assert {control.name: control.passed for control in result.controls}["terms_sum_to_the_difference"]


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        ({"positions": ["subject", "last"]}, {"positions": ["subject", "last"]}),
        ({"kind": "z", "per_head": True}, {"kind": "z"}),
        ({"per_head": True, "positions": -1}, {"kind": "z", "positions": [-1]}),
        (
            {"hook_site": "blocks.1.hook_resid_pre", "patch_position": 2},
            {"sites": ["resid_pre.1"], "positions": [2]},
        ),
        (
            {"sites": ["attn_out", "blocks.1.hook_mlp_out"], "layers": [1], "direction": "noising"},
            {"sites": ["attn_out.1", "mlp_out.1"], "direction": "noising"},
        ),
        (
            {"hook_sites": ["blocks.1.attn.hook_z"], "per_head": True, "control_cells": None},
            {"sites": ["z.1.0", "z.1.1"], "control_cells": None},
        ),
        (
            {"positions": "last", "by": ["layer"], "metric": "kl", "normalise": False},
            {"positions": ["last"], "by": ["layer"], "metric": "kl", "normalise": False},
        ),
        ({"control_cells": 0}, {"positions": ["subject", "last"], "control_cells": 0}),
    ],
)
def test_circuit_patching(
    parameters: dict[str, Any], options: dict[str, Any], model: Any, records: Any, data: Any, run: Any
) -> None:
    result = run("circuit_patching", prompt_pairs=records, **parameters)
    direct = activation_patching(model, data, seed=3, **options)
    np.testing.assert_allclose(result.tensors["effects"], direct.effects, atol=1e-9)
    np.testing.assert_allclose(result.tensors["control_effects"], direct.control_effects, atol=1e-9)
    ends = ("other", "base") if direct.direction == "denoising" else ("base", "other")
    for name, end in zip(("clean_metric", "corrupt_metric"), ends, strict=True):
        assert result.metrics[name].value == pytest.approx(getattr(direct, end).mean())
    top = direct.top_site
    if top is not None:
        assert result.metrics["top_effect"].value == pytest.approx(top.estimate.value)
    assert {one.name for one in result.controls if one.sanity} == {"self_patch", "restore_all"}
    assert len(result.tables["cells"]) == int(np.prod(direct.shape))


def test_patching_falls_back_to_the_metric_s_unit(records: Any, run: Any) -> None:
    """Pairs that go both ways cancel, so that there is no difference to divide by."""
    turned = [
        {
            **record,
            **(
                {"correct_token": record["incorrect_token"], "incorrect_token": record["correct_token"]}
                if i % 2
                else {}
            ),
        }
        for i, record in enumerate(records)
    ]
    with pytest.raises(UnstableRatioError, match="auto"):
        run("circuit_patching", prompt_pairs=turned, positions="last")
    contexts: list[Any] = []
    result = run(
        "circuit_patching", prompt_pairs=turned, positions="last", normalise="auto", contexts=contexts
    )
    assert result.metrics["top_effect"].unit == "logits"
    assert "own unit" in contexts[0].notes[0]


def test_patching_at_each_pair_s_own_position(model: Any, records: Any, data: Any, run: Any) -> None:
    own = [{**record, "patch_position": 2 + i % 2} for i, record in enumerate(records)]
    result = run("circuit_patching", prompt_pairs=own)
    direct = activation_patching(
        model, data, positions=lambda pair, texts: {"p": [2 + data.pairs.index(pair) % 2]}
    )
    np.testing.assert_allclose(result.tensors["effects"], direct.effects, atol=1e-9)
    with pytest.raises(InputError, match="no patch_position"):
        run("circuit_patching", prompt_pairs=[*own[:3], *records[3:]])


def test_patching_reads_the_metric_where_it_is_asked_to(model: Any, records: Any, run: Any) -> None:
    at = [{**record, "target_position": -2} for record in records]
    result = run("circuit_patching", prompt_pairs=at, positions="last", normalise=False)
    rows = model.forward([record["clean_prompt"] for record in records], logits=(-2,)).logits[:, 0]
    ids = [
        [model.tokenizer.convert_tokens_to_ids(record[name]) for record in records]
        for name in ("correct_token", "incorrect_token")
    ]
    expected = [float(row[a] - row[b]) for row, a, b in zip(rows, *ids, strict=True)]
    assert result.metrics["clean_metric"].value == pytest.approx(np.mean(expected))
    # The last token comes after the place that is read, so nothing there can move it.
    np.testing.assert_allclose(result.tensors["effects"], 0, atol=1e-12)
    with pytest.raises(InputError, match="different positions"):
        run("circuit_patching", prompt_pairs=[*at[:6], *records[6:]])


def test_control_sites_are_swept_too(model: Any, records: Any, data: Any, run: Any) -> None:
    result = run("circuit_patching", prompt_pairs=records, positions="last", control_sites=["mlp_out.0", "v"])
    direct = activation_patching(model, data, sites=["mlp_out.0", "v.0", "v.1"], seed=3, positions=["last"])
    worst = np.abs(direct.estimates.value).argmax()
    assert result.metrics["top_control_site_effect"].value == pytest.approx(direct.estimates.value[worst])
    assert len(result.tables["control_cells"]) == 3


@pytest.mark.parametrize(
    "options", [{}, {"mode": "interchange"}, {"severed": "mlp"}, {"kinds": ["mlp_out"], "window": 2}]
)
def test_causal_tracing(options: dict[str, Any], model: Any, records: Any, data: Any, run: Any) -> None:
    result = run("causal_tracing", prompt_pairs=records, samples=2, only_known=False, **options)
    direct = causal_tracing(model, data, samples=2, only_known=False, seed=3, **options)
    for kind in direct.kinds:
        np.testing.assert_allclose(result.tensors[f"effects_{kind}"], direct.binned(kind), atol=1e-9)
        # The strongest place inside the subject, whose one token is its last.
        layer = result.metrics[f"subject_layer_{kind}"].value
        assert layer in range(2)
    assert result.metrics["total_effect"].value == pytest.approx(direct.total_effect.value)
    assert result.metrics["known_rate"].value == direct.known.value
    assert all(control.passed for control in result.controls if control.sanity)
    assert len(result.tables["facts"]) == 12


def test_a_wrong_backend_voids_the_run(model: Any, records: Any, run: Any) -> None:
    """Identities are held to the dtype's rounding: one that fails is no result."""

    class Off:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def unembed(self, resid: Any, token_ids: Any = None) -> Any:
            return model.unembed(resid, token_ids) * 1.01

    with pytest.raises(MechError, match="differ from the model's own"):
        run("logit_lens", on=Off(), prompt_pairs=records)


@pytest.mark.parametrize(
    ("family", "parameters", "match"),
    [
        ("circuit_patching", {"layers": [2]}, "has 2 layers"),
        ("circuit_patching", {"kind": "z", "heads": [2]}, "has 2 there"),
        ("circuit_patching", {"sites": ["resid_pre.5"]}, "has 2 layers"),
        ("circuit_patching", {"control_sites": ["z.0.9"]}, "has 2 heads"),
        ("circuit_patching", {"per_head": True, "kind": "resid_pre"}, "has no heads"),
        ("circuit_patching", {"hook_sites": ["no_such"]}, "names no site"),
        ("circuit_patching", {"positions": ["subjct", "last"]}, "no position named 'subjct'"),
        ("circuit_patching", {"positions": [-1, 20]}, "Position 20 does not exist"),
        ("circuit_patching", {"patch_position": 20}, "Position 20 does not exist"),
        ("logit_lens", {"position": -20}, "Position -20 does not exist"),
        ("activation_capture", {"positions": [9]}, "Position 9 does not exist"),
        ("activation_capture", {"sites": ["pattern.0"]}, "over keys"),
        ("activation_capture", {"sites": ["resid_post"], "layers": [7]}, "has 2 layers"),
        ("causal_tracing", {"window": 3}, "has 2 layers"),
        ("causal_tracing", {"span": "object"}, "no span"),
        ("causal_tracing", {"severed": "mlp", "kinds": ["mlp_out"]}, "residual stream only"),
    ],
)
def test_what_the_model_lacks_is_refused_before_weights_load(
    family: str, parameters: dict[str, Any], match: str, model: Any, records: Any
) -> None:
    found = get(family)
    params = found.Params.model_validate({"prompt_pairs": records, **parameters})
    with pytest.raises(InputError, match=match):
        found.check(params, FACTS, model.tokenizer)
    # The same without the mistake passes.
    found.check(found.Params.model_validate({"prompt_pairs": records}), FACTS, model.tokenizer)


def test_a_prompt_past_the_context_is_refused(model: Any) -> None:
    found = get("logit_lens")
    params = found.Params.model_validate({"prompts": [{"prompt": "The" + " old" * 20, "target": " Ann"}]})
    with pytest.raises(InputError, match="21 tokens"):
        found.check(params, FACTS, model.tokenizer)
