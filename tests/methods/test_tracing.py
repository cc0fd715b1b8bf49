from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mech_interp.backends.protocol import RowResult
from mech_interp.datasets.pairs import PromptPair
from mech_interp.errors import InputError
from mech_interp.methods import causal_tracing
from mech_interp.methods.common import SanityError
from mech_interp.methods.tracing import _default_window
from mech_interp.methods.tracing_result import BINS
from mech_interp.methods.tracing_rows import Fact, subject_noise

SUBJECT = (2, 4)
SAMPLES = 2


class Slow:
    """Causal tracing of one fact by hooks on the library, one full run per cell and sample."""

    def __init__(
        self, tiny: Any, pair: PromptPair, pairs: list[PromptPair], *, interchange: bool = False
    ) -> None:
        self.tiny, self.pair = tiny, pair
        self.ids = tiny.ids(pair.clean)
        self.answer = tiny.ids(pair.clean + pair.answer)[-1]
        rows = [tiny.embedding.weight[tiny.ids(p.clean)[slice(*SUBJECT)]] for p in pairs]
        self.std = float(torch.stack(rows).detach().double().std())
        fact = Fact(0, pair, self.ids, None, *SUBJECT, self.answer, True)
        self.draws = [subject_noise(fact, sample, 0, 32) for sample in range(SAMPLES)]
        self.corrupt_ids = tiny.ids(str(pair.corrupt)) if interchange else None
        self.clean_states = self.states(self.ids, [])

    def out(self, kind: str, layer: int) -> Any:
        if kind == "resid_post":
            return self.tiny.blocks[layer]
        return self.tiny.part(layer, "mlp" if kind == "mlp_out" else "attention")

    def states(self, ids: list[int], edits: list[Any]) -> dict[Any, Tensor]:
        seen: dict[Any, Tensor] = {}
        looks = [
            self.tiny.edit(self.out(kind, layer), self.tiny.record(seen, (kind, layer)))
            for kind in ("resid_post", "mlp_out", "attn_out")
            for layer in range(3)
        ]
        self.tiny.logits(ids, *edits, *looks)
        return seen

    def corruption(self, sample: int) -> tuple[list[int], list[Any]]:
        if self.corrupt_ids is not None:
            return self.corrupt_ids, []
        noise = (3.0 * self.std * self.draws[sample]).float()

        def add(x: Tensor) -> None:
            x[slice(*SUBJECT)] += noise

        return self.ids, [self.tiny.edit(self.tiny.embedding, add)]

    def probability(self, ids: list[int], edits: list[Any]) -> float:
        return float(self.tiny.logits(ids, *edits)[-1].softmax(-1)[self.answer])

    def put(self, kind: str, layer: int, column: int, value: Tensor) -> Any:
        def function(x: Tensor) -> None:
            x[column] = value

        return self.tiny.edit(self.out(kind, layer), function)

    def effect(
        self,
        kind: str,
        layers: list[int],
        column: int,
        *,
        severed: str | None = None,
        states: dict[Any, Tensor] | None = None,
        source: int | None = None,
    ) -> float:
        """Mean over samples of P(restored) - P(corrupted)."""
        gains = []
        states = self.clean_states if states is None else states
        source = column if source is None else source
        for sample in range(SAMPLES):
            ids, edits = self.corruption(sample)
            corrupted = self.states(ids, edits)
            base = self.probability(ids, edits)
            changed = [*edits, *(self.put(kind, one, column, states[kind, one][source]) for one in layers)]
            if severed:
                later = range(layers[-1] + 1, 3)
                changed += [self.put(severed, one, column, corrupted[severed, one][column]) for one in later]
            gains.append(self.probability(ids, changed) - base)
        return float(np.mean(gains))


def window_of(layer: int, window: int) -> list[int]:
    return [one for one in range(layer - window // 2, layer - window // 2 + window) if 0 <= one < 3]


@pytest.mark.parametrize("mode", ["noise", "interchange"])
@pytest.mark.parametrize("kind", ["resid_post", "mlp_out", "attn_out"])
def test_equals_hooks_on_the_library(tiny: Any, pairs: list[PromptPair], kind: Any, mode: Any) -> None:
    some = pairs[:2]
    result = causal_tracing(
        tiny.model, some, kinds=[kind], samples=SAMPLES, window=2, mode=mode, only_known=False
    )
    for i, pair in enumerate(some):
        slow = Slow(tiny, pair, some, interchange=mode == "interchange")
        assert result.clean[i] == pytest.approx(slow.probability(slow.ids, []), abs=1e-6)
        for sample in range(1 if mode == "interchange" else SAMPLES):
            expected = slow.probability(*slow.corruption(sample))
            assert result.corrupted[i, sample] == pytest.approx(expected, abs=1e-6)
        for layer in range(3):
            layers = [layer] if kind == "resid_post" else window_of(layer, 2)
            for column in range(10):
                expected = slow.effect(kind, layers, column)
                assert result.effects[kind][i][layer, column] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("mode", ["noise", "interchange"])
@pytest.mark.parametrize("severed", ["mlp", "attn"])
def test_severed_traces_equal_hooks(tiny: Any, pairs: list[PromptPair], severed: Any, mode: Any) -> None:
    some = pairs[:2]
    options: dict[str, Any] = {"samples": SAMPLES, "mode": mode, "only_known": False}
    result = causal_tracing(tiny.model, some, severed=severed, **options)
    whole = causal_tracing(tiny.model, some, kinds=["resid_post"], **options)
    slow = Slow(tiny, some[1], some, interchange=mode == "interchange")
    for layer in range(3):
        for column in range(10):
            expected = slow.effect("resid_post", [layer], column, severed=f"{severed}_out")
            assert result.effects["resid_post"][1][layer, column] == pytest.approx(expected, abs=1e-5)
    early, plain = result.effects["resid_post"][1][0], whole.effects["resid_post"][1][0]
    assert np.abs(early - plain).max() > 1e-4
    np.testing.assert_allclose(
        result.effects["resid_post"][1][2], whole.effects["resid_post"][1][2], atol=1e-6
    )


def test_control_inserts_an_unrelated_facts_state(tiny: Any, pairs: list[PromptPair]) -> None:
    some = [pairs[0], replace(pairs[1], group="other")]
    result = causal_tracing(
        tiny.model, some, kinds=["resid_post", "mlp_out"], samples=SAMPLES, window=2, only_known=False
    )
    slow = Slow(tiny, some[0], some)
    foreign = slow.states(tiny.ids(some[1].clean), [])
    for layer in range(3):
        for kind, layers in (("resid_post", [layer]), ("mlp_out", window_of(layer, 2))):
            expected = slow.effect(kind, layers, 3, states=foreign)
            assert result.control[kind][0, layer] == pytest.approx(expected, abs=1e-5)
    alone = causal_tracing(tiny.model, some[:1], kinds=["mlp_out"], samples=SAMPLES, only_known=False)
    assert alone.control_estimates("mlp_out") is None
    assert alone.top_site("mlp_out") is None


def test_no_noise_has_no_effect(tiny: Any, pairs: list[PromptPair]) -> None:
    result = causal_tracing(tiny.model, pairs[:3], noise=0.0, samples=1, only_known=False)
    np.testing.assert_allclose(result.total_effects, 0, atol=1e-6)
    for kind in result.kinds:
        for effect in result.effects[kind]:
            np.testing.assert_allclose(effect, 0, atol=1e-6)


def test_the_last_state_is_all_that_is_read(tiny: Any, pairs: list[PromptPair]) -> None:
    """Restoring the last token after the last layer gives the clean answer; other tokens there, nothing."""
    result = causal_tracing(tiny.model, pairs, kinds=["resid_post"], samples=SAMPLES, only_known=False)
    for i, effect in enumerate(result.effects["resid_post"]):
        np.testing.assert_allclose(effect[-1, -1], result.total_effects[i], atol=1e-6)
        np.testing.assert_allclose(effect[-1, :-1], 0, atol=1e-6)
        np.testing.assert_array_equal(effect[:, :2], 0)
    assert set(result.sanity) == {"restore_all", "literal_rows", "zero_noise"}
    assert max(result.sanity.values()) <= 1e-5


def test_only_known_facts_are_kept(tiny: Any, more_pairs: Callable[..., list[PromptPair]]) -> None:
    known, unknown = [], []
    for pair in more_pairs(60):
        top = tiny.model.tokenizer.decode([int(tiny.logits(tiny.ids(pair.clean))[-1].argmax())])
        if top.startswith(" "):
            known.append(replace(pair, answer=top, answers=()))
            unknown.append(replace(pair, answer=" gave" if top != " gave" else " say", answers=()))
    facts = [known[0], unknown[1], known[2]]
    result = causal_tracing(tiny.model, facts, kinds=["resid_post"], samples=1)
    assert result.prompts == (facts[0].clean, facts[2].clean)
    assert (result.dropped, result.known.value, result.known.n) == (1, pytest.approx(2 / 3), 3)
    with pytest.raises(InputError, match="answer of none of the 1 facts"):
        causal_tracing(tiny.model, facts[1:2])


def test_effects_are_binned_by_role(tiny: Any, pairs: list[PromptPair]) -> None:
    result = causal_tracing(tiny.model, pairs[:2], kinds=["mlp_out"], samples=1, only_known=False)
    effect, binned = result.effects["mlp_out"][0], result.binned("mlp_out")[0]
    expected = {
        "first subject": effect[:, 2],
        "last subject": effect[:, 3],
        "first after": effect[:, 4],
        "further": effect[:, 5:9].mean(1),
        "last token": effect[:, 9],
    }
    for name, values in expected.items():
        np.testing.assert_allclose(binned[:, BINS.index(name)], values)
    assert np.isnan(binned[:, BINS.index("middle subject")]).all()
    assert result.tested_bins("mlp_out") == [0, 2, 3, 4, 5]
    one = [
        replace(pair, spans={"subject": (pair.spans["subject"][1] - 3, pair.spans["subject"][1])})
        for pair in pairs
    ]
    single = causal_tracing(tiny.model, one[:2], kinds=["mlp_out"], samples=1, only_known=False)
    assert single.subjects == ((3, 4), (3, 4))
    assert single.tested_bins("mlp_out") == [2, 3, 4, 5]


def test_a_single_carrying_state_is_found(
    make_tiny: Any, more_pairs: Callable[..., list[PromptPair]]
) -> None:
    """Only one head writes anything, so its layer at the last token is the only cell that can restore."""
    tiny = make_tiny("gpt2")
    with torch.no_grad():
        for i, block in enumerate(tiny.blocks):
            keep = block.attn.c_proj.weight[16:24].clone()
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
            if i == 1:
                block.attn.c_proj.weight[16:24] = 8 * keep
    facts = more_pairs(12)
    result = causal_tracing(tiny.model, facts, kinds=["attn_out"], samples=4, window=1, only_known=False)
    for i in range(len(facts)):
        effect = result.effects["attn_out"][i]
        np.testing.assert_allclose(effect[[0, 2]], 0, atol=1e-6)
        np.testing.assert_allclose(effect[1, :-1], 0, atol=1e-6)
        np.testing.assert_allclose(effect[1, -1], result.total_effects[i], atol=1e-6)


def test_noise_depends_on_seed_and_prompt_alone(tiny: Any, pairs: list[PromptPair]) -> None:
    options: dict[str, Any] = {"kinds": ["resid_post"], "samples": 3, "only_known": False}
    first = causal_tracing(tiny.model, pairs, **options)
    again = causal_tracing(tiny.model, pairs, **options)
    other = causal_tracing(tiny.model, pairs, seed=1, **options)
    np.testing.assert_array_equal(first.corrupted, again.corrupted)
    assert np.abs(first.corrupted - other.corrupted).max() > 1e-3
    assert np.abs(first.corrupted[:, 0] - first.corrupted[:, 1]).max() > 1e-3


def test_wrong_rows_void_the_call(tiny: Any, pairs: list[PromptPair], delegate: Any) -> None:
    def off(runs: Any, rows: Any, metric: Any, **options: Any) -> Any:
        for result in tiny.model.rows(runs, rows, metric, **options):
            edited = bool(rows[result.index].interventions)
            yield RowResult(result.index, result.value + (0.01 if edited else 0), True)

    with pytest.raises(SanityError, match="'restore_all'"):
        causal_tracing(delegate(tiny.model, rows=off), pairs[:2], samples=1, only_known=False)


def test_results_are_serialisable_and_drawn(tiny: Any, pairs: list[PromptPair]) -> None:
    from matplotlib.figure import Figure

    calls: list[tuple[int, int]] = []
    result = causal_tracing(
        tiny.model,
        pairs,
        samples=1,
        only_known=False,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[-1] == (12, 12)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(data["cells"]) == 3 * 3 * 6
    assert data["facts"][0]["subject"] == [2, 4]
    assert data["cells"][2]["control"]["n"] == 12
    assert isinstance(result.plot(), Figure)
    assert len(result.views()) == 5
    assert result.fact_view(1).to_dict()["row_labels"][2].endswith("*")
    top = result.top_site("attn_out")
    assert top is not None
    assert top.estimate.n == 6


def test_default_window_is_a_quarter_of_the_layers() -> None:
    assert [_default_window(n) for n in (3, 4, 12, 36, 48)] == [1, 1, 3, 9, 10]


def test_bad_input(tiny: Any, pairs: list[PromptPair]) -> None:
    def refused(message: str, items: Any = None, **options: Any) -> None:
        with pytest.raises(InputError, match=message):
            causal_tracing(tiny.model, pairs[:2] if items is None else items, only_known=False, **options)

    refused("There are no facts", [])
    refused("has no span 'topic'", span="topic")
    refused("does not restore z", kinds=["z"])
    refused("severed='all'", severed="all")
    refused("restores the residual stream only", severed="mlp", kinds=["mlp_out"])
    refused("window=4 is out of range", window=4)
    refused("samples=0", samples=0)
    refused("noise=-1", noise=-1)
    refused("has no corrupt prompt", [replace(pairs[0], corrupt=None, corrupt_spans={})], mode="interchange")
    refused("same clean and corrupt", [replace(pairs[0], corrupt=pairs[0].clean)], mode="interchange")
    longer = replace(pairs[0], corrupt=f"{pairs[0].corrupt} book", corrupt_spans={})
    refused("clean prompt has 10 tokens and its corrupt one 11", [longer], mode="interchange")
