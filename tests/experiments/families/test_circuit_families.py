"""Families of circuits: files of a run, refusals before loading, controls, numbers against the methods."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from mech_interp.errors import CapabilityError, InputError
from mech_interp.experiments import Context, ModelFacts, get
from mech_interp.experiments.context import MemoryStore
from mech_interp.experiments.families.causal_scrubbing import CausalScrubbingParams
from mech_interp.graph_io import from_dict, from_eap_ig
from mech_interp.methods.circuits.acdc import acdc_edges
from mech_interp.methods.circuits.attribution import edge_attribution
from mech_interp.methods.circuits.common import circuit_task
from mech_interp.methods.circuits.faithfulness import faithfulness
from mech_interp.methods.circuits.paths import path_patching

FAST = {"curve_random": 1, "random_circuits": 2}
FAMILIES = (
    "acdc_edge",
    "acdc_lite",
    "attribution_patching",
    "causal_scrubbing",
    "circuit_evaluation",
    "path_patching",
)


def facts(architecture: str) -> ModelFacts:
    return ModelFacts("model", architecture, 2, 2, 2, 16, 8, 24, 50, 16)


def task_of(model: Any, records: list[dict[str, Any]]) -> Any:
    from mech_interp.experiments.data import load_data

    params = get("acdc_edge").Params.model_validate({"prompt_pairs": records})
    return circuit_task(model, load_data(params, model.tokenizer, 3))


def test_attribution_is_the_methods(run: Any, model: Any, records: Any) -> None:
    result = run("attribution_patching", prompt_pairs=records, variant="eap", check=8, claims=4, **FAST)
    found = edge_attribution(task_of(model, records), variant="eap", check=8, claims=4, seed=3)
    np.testing.assert_allclose(result.tensors["scores"], found.matrix, atol=1e-12)
    assert found.approximation is not None
    assert result.metrics["approximation_pearson"].value == pytest.approx(found.approximation.pearson.value)


def test_acdc_is_the_methods_and_its_files_read_back(run: Any, model: Any, records: Any) -> None:
    result = run("acdc_edge", prompt_pairs=records, tau=0.02, **FAST)
    task = task_of(model, records)
    found = acdc_edges(task, 0.02)
    assert [row["edge"] for row in result.tables["circuit_edges"]] == found.pruned.names()
    value = faithfulness(task, found.circuit, random=0).faithfulness.value
    assert result.metrics["faithfulness"].value == pytest.approx(value)
    own = from_dict(json.loads(result.graphs["circuit.json"]))
    theirs = from_eap_ig(json.loads(result.graphs["circuit.eap-ig.json"]))
    assert own.circuit == theirs.circuit == found.pruned
    assert own.facts["tau"] == 0.02
    assert result.graphs["circuit.dot"].startswith("digraph")
    assert result.status == "complete"


def test_paths_are_the_methods_receiver_by_receiver(run: Any, model: Any, records: Any) -> None:
    result = run(
        "path_patching", prompt_pairs=records, receivers=["logits", "m1"], senders="all", control_cells=0
    )
    found = path_patching(task_of(model, records), ["logits", "m1"], "all", control_cells=0, seed=3)
    np.testing.assert_allclose(result.tensors["effects"], found.effects, atol=1e-12, equal_nan=True)


def test_a_stored_circuit_is_judged_as_the_search_judged_it(
    run: Any, model: Any, records: Any, tmp_path: Any
) -> None:
    found = run("acdc_edge", prompt_pairs=records, tau=0.02, **FAST)
    path = tmp_path / "circuit.json"
    path.write_text(found.graphs["circuit.json"], encoding="utf-8")
    judged = run("circuit_evaluation", prompt_pairs=records, circuit=str(path), **FAST)
    assert judged.metrics["faithfulness"].value == pytest.approx(found.metrics["faithfulness"].value)
    assert judged.metrics["circuit_edges"].value == found.metrics["circuit_edges"].value
    family = get("circuit_evaluation")
    params = family.Params.model_validate({"prompt_pairs": records, "circuit": str(path)})
    before = family.datasets(params, model.tokenizer, 3)["circuit"]
    path.write_text(found.graphs["circuit.eap-ig.json"], encoding="utf-8")
    assert family.datasets(params, model.tokenizer, 3)["circuit"] != before


def test_everything_void_when_the_engine_is_wrong(
    run: Any, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mech_interp.methods.circuits.common import CircuitTask

    real = CircuitTask.evaluate_masks

    def off(self: Any, *args: Any, **more: Any) -> Any:
        return real(self, *args, **more) + 0.01

    monkeypatch.setattr(CircuitTask, "evaluate_masks", off)
    result = run("acdc_lite", prompt_pairs=records, tau=0.02, **FAST)
    assert result.status == "void"
    assert {one.name for one in result.failed} == {"all_edges", "no_edges"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_architecture_without_edges_is_refused_before_loading(
    family: str, records: Any, model: Any
) -> None:
    given: dict[str, Any] = {"prompt_pairs": records}
    if family == "causal_scrubbing":
        given["hypothesis"] = {"logits": ["a"], "nodes": {"a": {"sites": ["m0"]}}}
    if family == "circuit_evaluation":
        given["nodes"] = ["m0"]
    found = get(family)
    params = found.Params.model_validate(given)
    found.check(params, facts("gpt2"), model.tokenizer)
    with pytest.raises(CapabilityError, match="edges of phi are not checked"):
        found.check(params, facts("phi"), model.tokenizer)
    assert "edges" in found.needs


def test_an_impossible_edge_and_an_unknown_receiver_are_refused(records: Any, model: Any) -> None:
    for family, given, words in (
        ("circuit_evaluation", {"edges": ["m1->a0.h0<q>"]}, "no edge"),
        ("circuit_evaluation", {"nodes": ["a9.h9"]}, "no writer"),
        ("path_patching", {"receivers": ["a5.h0<q>"]}, "no reader"),
    ):
        found: Any = get(family)
        params = found.Params.model_validate({"prompt_pairs": records, **given})
        with pytest.raises(InputError, match=words):
            found.check(params, facts("gpt2"), model.tokenizer)


def test_a_node_that_matches_no_site_is_refused_before_loading(records: Any, model: Any) -> None:
    found: Any = get("causal_scrubbing")
    nodes = {"late": {"sites": ["a7.h1"], "depends_on": ["answer"]}}
    given = {"prompt_pairs": records, "hypothesis": {"logits": ["late"], "nodes": nodes}}
    with pytest.raises(InputError, match=r"'late' matches no site of this model: 'a7\.h1'"):
        found.check(found.Params.model_validate(given), facts("gpt2"), model.tokenizer)


def test_edges_are_scored_by_relevance_rules(run: Any, records: Any) -> None:
    given = {"prompt_pairs": records, "variant": "eap", "check": 4, "claims": 2, **FAST}
    plain, relevance = (run("attribution_patching", rules=rules, **given) for rules in ("none", "relp"))
    assert relevance.status == "complete"
    assert any("eap, relp rules" in one.sentence for one in relevance.findings)
    assert not np.allclose(plain.tensors["scores"], relevance.tensors["scores"], rtol=1e-3)


def test_the_strongest_edges_are_taken_apart_by_position(run: Any, model: Any, records: Any) -> None:
    given = {"prompt_pairs": records, "variant": "eap", "check": 0, "claims": 0, **FAST}
    result = run("attribution_patching", by_position=True, **given)
    assert result.status == "complete"
    (control,) = [one for one in result.controls if one.name == "positions_sum"]
    assert control.passed
    assert control.value < 1e-9
    found = edge_attribution(
        task_of(model, records), variant="eap", check=0, claims=0, by_position=True, seed=3
    )
    assert found.positions is not None
    scores = found.positions.scores.mean(0)
    by_name = {row["item"]: row["score"] for row in result.tables["top"]}
    for edge, row in zip(found.positions.edges, scores, strict=True):
        assert float(row.sum()) == pytest.approx(by_name[edge])
    table = result.tables["positions"]
    assert len(table) == scores.size
    np.testing.assert_allclose([row["score"] for row in table], scores.ravel())
    lengths = model.tokens([one["clean_prompt"] for one in records]).lengths
    assert table[0]["position"] == ("earlier" if len(set(lengths)) > 1 else str(-min(lengths)))
    assert "positions" in result.views


def test_when_memory_runs_out_batches_shrink_and_the_run_says_so(
    run: Any, records: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mech_interp.backends.huggingface import edge_gradients
    from mech_interp.backends.huggingface.circuit_state import CircuitState
    from mech_interp.backends.huggingface.edges import EdgeEngine

    given: dict[str, dict[str, Any]] = {
        "attribution_patching": {"variant": "eap", "check": 4, "claims": 2, **FAST},
        "acdc_edge": {"tau": 0.02, **FAST},
    }
    whole = {family: run(family, prompt_pairs=records, **more) for family, more in given.items()}
    scores, trials, rows = edge_gradients.edge_scores, CircuitState.trials, EdgeEngine._batch

    def few_prompts(*args: Any, prompts: list[int], **more: Any) -> Any:
        if len(prompts) > 3:
            raise MemoryError
        return scores(*args, prompts=prompts, **more)

    def few_trials(self: Any, reader: int, removed: Any, candidates: Any, *more: Any) -> Any:
        if len(candidates) > 2:
            raise MemoryError
        return trials(self, reader, removed, candidates, *more)

    def few_rows(self: Any, pairs: Any, *more: Any) -> Any:
        if len(pairs) > 20:
            raise MemoryError
        return rows(self, pairs, *more)

    monkeypatch.setattr(edge_gradients, "edge_scores", few_prompts)
    monkeypatch.setattr(CircuitState, "trials", few_trials)
    monkeypatch.setattr(EdgeEngine, "_batch", few_rows)
    for family, words in (
        ("attribution_patching", ("3 were scored at once", "circuits were run within")),
        ("acdc_edge", ("removals were tried at once", "circuits were run within")),
    ):
        contexts: list[Any] = []
        result = run(family, prompt_pairs=records, contexts=contexts, **given[family])
        for one in words:
            assert any(one in note for note in contexts[0].notes), (family, contexts[0].notes)
        expected = whole[family].metrics["faithfulness"].value
        assert result.metrics["faithfulness"].value == pytest.approx(expected)


@pytest.mark.parametrize("family", ["attribution_patching", "acdc_edge", "circuit_evaluation"])
def test_circuits_are_found_again_on_other_draws_of_the_prompts(
    run: Any, model: Any, records: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of which each seed draws some of the records."""
    from mech_interp.datasets.pairs import TaskSet
    from mech_interp.experiments import circuit_judging, data, parts

    params = get("acdc_edge").Params.model_validate({"prompt_pairs": records})
    everything, real = data.load_data(params, model.tokenizer, 3).pairs, data.load_data
    size = 8

    def drawn(given: Any, tokenizer: Any, seed: int) -> TaskSet:
        if given.task is None:
            return real(given, tokenizer, seed)
        order = np.random.default_rng(seed if given.data_seed is None else given.data_seed)
        chosen = order.permutation(len(everything))[:size]
        return TaskSet("some", tuple(everything[i] for i in chosen))

    monkeypatch.setattr(parts, "load_data", drawn)
    monkeypatch.setattr(circuit_judging, "load_data", drawn)
    scores = {"scores": "eap"} if family == "circuit_evaluation" else {}
    scores |= {"variant": "eap", "check": 0, "claims": 0} if family == "attribution_patching" else {}
    scores |= {"tau": 0.002} if family == "acdc_edge" else {}

    def found(**more: Any) -> Any:
        return run(family, task="ioi", **scores, **FAST, **more).metrics["jaccard_seeds"]

    three = found(seeds=2)
    assert 0 < three.value < 1
    assert "3 draws of prompts" in three.method
    assert "asked for" in found(seeds=0).reason
    size = len(everything)
    assert "all prompts of the task" in found(seeds=2).reason
    assert (
        "not drawn"
        in run(family, prompt_pairs=records, seeds=2, **scores, **FAST).metrics["jaccard_seeds"].reason
    )


def test_areas_are_told_for_curves_that_reach_all_edges(run: Any, records: Any) -> None:
    given = {"prompt_pairs": records, "variant": "eap", "check": 0, "claims": 0, **FAST}
    part, whole = (
        run("attribution_patching", fractions=fractions, **given) for fractions in ([0.1, 0.5], [0.1, 1.0])
    )
    for key in ("cmd", "cpr"):
        assert part.metrics[key].value is None
        assert "ends at 50.0%" in part.metrics[key].reason
        assert whole.metrics[key].value is not None
    sentences = [
        [one.sentence for one in result.findings if "CMD" in one.sentence] for result in (part, whole)
    ]
    assert [len(found) for found in sentences] == [0, 1]


def test_a_feature_that_the_data_lack_is_refused(records: Any, model: Any) -> None:
    found: Any = get("causal_scrubbing")
    nodes = {"late": {"sites": ["m1"], "depends_on": ["subjekt"]}}
    given = {"prompt_pairs": records, "hypothesis": {"logits": ["late"], "nodes": nodes}}
    with pytest.raises(InputError, match="no feature 'subjekt'"):
        found.check(found.Params.model_validate(given), facts("gpt2"), model.tokenizer)


@pytest.mark.parametrize(
    ("family", "given", "words"),
    [
        ("circuit_evaluation", {}, "no circuit is given"),
        ("circuit_evaluation", {"nodes": ["m0"], "scores": "eap"}, "nodes and as scores"),
        ("attribution_patching", {"level": "nodes", "ablation": "zero"}, "ablation corrupt"),
        ("attribution_patching", {"qk_fix": True}, "level sites"),
        ("acdc_edge", {"tau": 0.0}, "greater than 0"),
        ("acdc_edge", {"taus": [0.1, -1.0]}, "above 0"),
        ("acdc_edge", {"fractions": [0.5, 0.1]}, "do not rise"),
    ],
)
def test_parameters_that_clash_are_refused(family: str, given: Any, words: str, records: Any) -> None:
    with pytest.raises(ValidationError, match=words):
        get(family).Params.model_validate({"prompt_pairs": records, **given})


def test_a_hypothesis_is_given_in_one_form(records: Any) -> None:
    with pytest.raises(ValidationError, match="together"):
        CausalScrubbingParams.model_validate({"prompt_pairs": records, "protected_sites": ["z.0.0"]})


@pytest.mark.parametrize("level", ["nodes", "sites"])
def test_nodes_and_sites_are_scored_and_checked(run: Any, records: Any, level: str) -> None:
    result = run("attribution_patching", prompt_pairs=records, level=level, check=4, claims=2)
    assert result.status == "complete"
    assert result.metrics["approximation_pearson"].n <= 4
    assert len(result.tables["top"]) == len(result.tensors["scores"])


@pytest.mark.parametrize("name", ["acdc_edge", "acdc_lite"])
def test_a_killed_search_goes_on_at_every_unit(
    model: Any, records: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped behind each unit in turn, the result is the undisturbed one to the last bit."""

    class Killed(Exception):
        pass

    class Dying(MemoryStore):
        left = 10**9

        def save_unit(self, *args: Any, **more: Any) -> Any:
            if self.left == 0:
                raise Killed
            self.left -= 1
            return super().save_unit(*args, **more)

    monkeypatch.setattr("mech_interp.experiments.acdc_running.PER_UNIT", 2)
    family: Any = get(name)
    params = family.Params.model_validate({"prompt_pairs": records, "tau": 0.02, **FAST, "fractions": [0.1]})

    def go(store: Any) -> Any:
        return family.run(Context(params, seed=3, load_model=lambda: model, units=store))

    whole = go(MemoryStore())
    store, kills = Dying(), 0
    while True:
        store.left = 1
        try:
            again = go(store)
            break
        except Killed:
            kills += 1
    assert kills > 3
    assert again.tables == whole.tables
    assert again.graphs == whole.graphs
    assert {n: m.to_dict() for n, m in again.metrics.items()} == {
        n: m.to_dict() for n, m in whole.metrics.items()
    }
