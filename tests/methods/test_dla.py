from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.backends.protocol import Activations, ForwardResult
from mech_interp.errors import InputError
from mech_interp.methods import direct_logit_attribution
from mech_interp.methods.common import SanityError
from mech_interp.sites import Site

PROMPTS = ["The capital of France is", "Ann and Bob went to", "The old red cat ran to that city and then"]
CORRECT = [" Paris", " Rome", " home"]
WRONG = [" Madrid", " city", " land"]


def slow_terms(tiny: Any, text: str, correct: str, wrong: str, position: int) -> dict[str, float]:
    """Every term by hooks on the library's modules and its parameters, in float64."""
    ids = tiny.ids(text)
    c, w = tiny.ids(text + correct)[-1], tiny.ids(text + wrong)[-1]
    seen: dict[Any, torch.Tensor] = {}
    edits = [tiny.edit(tiny.embedding, tiny.record(seen, "embed"))]
    edits.append(tiny.edit(tiny.final_norm, tiny.record(seen, "final"), "input"))
    for i in range(len(tiny.blocks)):
        edits.append(tiny.edit(tiny.part(i, "attention_out"), tiny.record(seen, ("z", i)), "input"))
        edits.append(tiny.edit(tiny.part(i, "mlp"), tiny.record(seen, ("mlp", i))))
    tiny.logits(ids, *edits)
    norm, u = tiny.final_norm, (tiny.module.lm_head.weight[c] - tiny.module.lm_head.weight[w]).double()
    final = seen["final"][position].double()
    is_gpt2 = tiny.family == "gpt2"
    scale = (
        (final.var(unbiased=False) + norm.eps).sqrt()
        if is_gpt2
        else (final.pow(2).mean() + norm.variance_epsilon).sqrt()
    )

    def along(x: torch.Tensor) -> float:
        x = x.double()
        x = x - x.mean() if is_gpt2 else x
        return float((x / scale * norm.weight.double()) @ u)

    found = {"token embedding": along(seen["embed"][position])}
    if is_gpt2:
        where = position % len(ids)
        found["position embedding"] = along(tiny.module.transformer.wpe.weight[where])
    for i in range(len(tiny.blocks)):
        projection = tiny.part(i, "attention_out")
        weight = projection.weight if is_gpt2 else projection.weight.T
        for head in range(4):
            part = slice(8 * head, 8 * head + 8)
            found[f"L{i}H{head}"] = along(seen["z", i][position, part].double() @ weight[part].double())
        if is_gpt2:
            found[f"L{i} b_O"] = along(projection.bias)
        found[f"L{i} MLP"] = along(seen["mlp", i][position])
    if is_gpt2:
        found["final norm bias"] = float(norm.bias.double() @ u)
    return found


@pytest.mark.parametrize("position", [-1, [1, 3, -2]])
def test_equals_hooks_on_the_library(tiny: Any, position: Any) -> None:
    with torch.no_grad():
        result = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG, position=position)
        for i, texts in enumerate(zip(PROMPTS, CORRECT, WRONG, strict=True)):
            slow = slow_terms(tiny, *texts, position if isinstance(position, int) else position[i])
            assert [component.label for component in result.components] == list(slow)
            np.testing.assert_allclose(result.terms[i], list(slow.values()), atol=2e-5)


def test_terms_sum_to_the_models_logit_difference(tiny: Any) -> None:
    result = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    for i, (text, c, w) in enumerate(zip(PROMPTS, CORRECT, WRONG, strict=True)):
        logits = tiny.logits(tiny.ids(text))[-1]
        own = float(logits[tiny.ids(text + c)[-1]] - logits[tiny.ids(text + w)[-1]])
        assert result.logit_difference[i] == pytest.approx(own, abs=1e-5)
        assert result.terms[i].sum() == pytest.approx(own, abs=1e-4)
    assert result.gap <= 1e-4
    np.testing.assert_allclose(result.accumulated[:, -1], result.logit_difference, atol=1e-4)
    assert result.accumulated.shape == (3, 7)


def test_accumulated_difference_follows_the_residual_stream(tiny: Any) -> None:
    result = direct_logit_attribution(tiny.model, PROMPTS[0], CORRECT[0], WRONG[0])
    kinds = [f"{kind}.{layer}" for layer in range(3) for kind in ("resid_mid", "resid_post")]
    seen = tiny.model.forward(PROMPTS[0], capture=["resid_pre.0", *kinds]).activations
    c, w = (tiny.ids(PROMPTS[0] + text)[-1] for text in (CORRECT[0], WRONG[0]))
    unembed = tiny.model.weights("W_U")
    along = tiny.model.final_norm_direction(seen["resid_post.2"][0, -1], unembed[:, c] - unembed[:, w])
    expected = [float(seen[kind][0, -1] @ along) for kind in ("resid_pre.0", *kinds)]
    constant = sum(result.term(c.kind)[0] for c in result.components if c.kind == "norm_bias")
    np.testing.assert_allclose(result.accumulated[0], np.array(expected) + constant, atol=1e-4)


def test_unembedding_bias_is_its_own_term(make_tiny: Any, delegate: Any) -> None:
    tiny = make_tiny("gpt2")
    bias = torch.linspace(-1, 1, tiny.model.info.vocabulary)

    def weights(kind: str, layer: int | None = None, head: int | None = None) -> Any:
        return bias if kind == "b_U" else tiny.model.weights(kind, layer, head)

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = tiny.model.forward(*args, **kwargs)
        return ForwardResult(out.logits + bias, out.activations, out.tokens)

    biased = delegate(tiny.model, weights=weights, forward=forward)
    plain = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    result = direct_logit_attribution(biased, PROMPTS, CORRECT, WRONG)
    gained = result.logit_difference - plain.logit_difference
    assert result.components[-1].label == "unembedding bias"
    np.testing.assert_allclose(result.terms[:, -1], gained, atol=1e-5)


def test_one_writing_head_carries_everything(make_tiny: Any) -> None:
    tiny = make_tiny("gpt2")
    with torch.no_grad():
        for i, block in enumerate(tiny.blocks):
            keep = block.attn.c_proj.weight[16:24].clone()
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
                part.bias.zero_()
            if i == 1:
                block.attn.c_proj.weight[16:24] = 20 * keep
    result = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    silent = [c.kind in ("head", "mlp", "attn_bias") and c.label != "L1H2" for c in result.components]
    assert np.abs(result.terms[:, silent]).max() < 1e-9
    assert np.abs(result.term("head", 1, 2)).min() > 1e-3
    np.testing.assert_array_equal(result.heads[:, 1, 2], result.term("head", 1, 2))


def test_a_missing_component_is_refused(make_tiny: Any, delegate: Any) -> None:
    tiny = make_tiny("gpt2")

    def weights(kind: str, layer: int | None = None, head: int | None = None) -> Any:
        if kind == "b_O":
            raise InputError("none")
        return tiny.model.weights(kind, layer, head)

    with pytest.raises(SanityError, match=r"The terms sum to .* a gap of"):
        direct_logit_attribution(delegate(tiny.model, weights=weights), PROMPTS, CORRECT, WRONG)


def test_half_precision_keeps_the_remainder(make_tiny: Any) -> None:
    tiny = make_tiny("gpt2", dtype=torch.bfloat16)
    result = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    assert result.components[-1].label == "rounding remainder"
    np.testing.assert_allclose(result.terms.sum(1), result.logit_difference, atol=1e-9)
    assert 0 < np.abs(result.terms[:, -1]).max() < 0.5


def test_logits_before_a_softcap_are_attributed(tiny: Any, delegate: Any) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = tiny.model.forward(*args, **kwargs)
        return ForwardResult(2 * torch.tanh(out.logits / 2), out.activations, out.tokens)

    plain = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    capped = direct_logit_attribution(delegate(tiny.model, forward=forward), PROMPTS, CORRECT, WRONG)
    assert capped.softcapped
    assert not plain.softcapped
    assert "before the softcap" in str(capped.view().to_dict())
    np.testing.assert_allclose(capped.terms, plain.terms)
    np.testing.assert_allclose(capped.logit_difference, plain.logit_difference, atol=1e-4)


def test_logits_that_do_not_come_from_the_final_norm_are_refused(tiny: Any, delegate: Any) -> None:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = tiny.model.forward(*args, **kwargs)
        return ForwardResult(out.logits * 1.5, out.activations, out.tokens)

    with pytest.raises(SanityError, match="does not give the model's logits"):
        direct_logit_attribution(delegate(tiny.model, forward=forward), PROMPTS, CORRECT, WRONG)


def test_a_norm_after_attention_makes_its_output_one_term(tiny: Any, delegate: Any) -> None:
    """Where what is added differs from attention's own output, heads are not linear in it."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = tiny.model.forward(*args, **kwargs)
        values = {site: out.activations[site] for site in out.activations}
        values[Site("attn_out_own", 1)] = 3 * values[Site("attn_out_own", 1)]
        return ForwardResult(out.logits, Activations(values), out.tokens)

    result = direct_logit_attribution(delegate(tiny.model, forward=forward), PROMPTS, CORRECT, WRONG)
    plain = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    labels = [component.label for component in result.components]
    assert "L1 attention" in labels
    assert "L1H0" not in labels
    heads = sum(
        plain.term(c.kind, 1, c.head) for c in plain.components if c.label.startswith(("L1H", "L1 b"))
    )
    np.testing.assert_allclose(result.term("attn", 1), heads, atol=1e-5)
    assert np.isnan(result.heads[:, 1]).all()


def test_control_uses_other_answers(tiny: Any) -> None:
    result = direct_logit_attribution(tiny.model, PROMPTS, CORRECT, WRONG)
    np.testing.assert_allclose(result.control_terms.sum(1), result.control_difference, atol=1e-4)
    assert result.control_kind == "answers of other prompts"
    assert np.abs(result.control_difference - result.logit_difference).min() > 1e-3


def test_results_are_serialisable_and_drawn(tiny: Any) -> None:
    from matplotlib.figure import Figure

    result = direct_logit_attribution(tiny.model, PROMPTS * 3, CORRECT * 3, WRONG * 3)
    data = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert data["components"][1]["contribution"]["n"] == 9
    assert len(data["prompts"][0]["terms"]) == len(result.components)
    top = result.top(3)
    means = np.abs(result.terms.mean(0))
    assert means[top[0]] == means.max()
    assert isinstance(result.plot(), Figure)
    assert len(result.views()) == 4


def test_bad_input(tiny: Any) -> None:
    with pytest.raises(InputError, match="Prompt 1 has the same correct and wrong"):
        direct_logit_attribution(tiny.model, PROMPTS, CORRECT, [" land", " Rome", " land"])
    with pytest.raises(InputError, match="2 tokens"):
        direct_logit_attribution(tiny.model, PROMPTS, CORRECT, " Paris Rome")
