"""The four methods on checkpoints that others trained, where this machine has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mech_interp.datasets.pairs import PromptPair
from mech_interp.methods import activation_patching, causal_tracing, direct_logit_attribution, logit_lens

NAMES = ["Lily", "Tim", "Sam", "Mia", "Ben", "Tom", "Sue", "Max", "Amy"]


@pytest.fixture(scope="module", params=["stories260k", "atome-vanilla-1m"])
def checkpoint(request: pytest.FixtureRequest, real_checkpoints: Path) -> Any:
    from mech_interp.backends.loading import load_model

    folder = real_checkpoints / request.param
    if not folder.is_dir():
        pytest.skip(f"{request.param} is not on this machine")
    return load_model(str(folder), device="cpu", dtype="float32")


def pairs_for(model: Any) -> list[PromptPair]:
    """One name against another of as many tokens, with the model's own likeliest tokens as answers."""
    pairs = []
    for first in NAMES:
        for second in NAMES:
            clean, corrupt = f"Once there was {first}. One day", f"Once there was {second}. One day"
            lengths = model.tokens([clean, corrupt]).lengths
            if first == second or lengths[0] != lengths[1] or len(pairs) == 10:
                continue
            top = model.forward(clean, logits="last").logits[0].topk(12).indices.tolist()
            texts = [model.tokenizer.decode([token]) for token in top]
            usable = [text for text in texts if fits(model, clean, text)]
            if len(usable) < 2:
                continue
            spans = {"subject": (15, 15 + len(first))}
            pairs.append(
                PromptPair(
                    clean=clean,
                    corrupt=corrupt,
                    answer=usable[0],
                    wrong=usable[1],
                    spans=spans,
                    group=f"{first}-{second}",
                )
            )
    return pairs


def fits(model: Any, prompt: str, text: str) -> bool:
    before = model.tokenizer.encode(prompt, add_special_tokens=False)
    after = model.tokenizer.encode(prompt + text, add_special_tokens=False)
    return bool(after[:-1] == before)


def test_methods_agree_with_the_model(checkpoint: Any) -> None:
    pairs = pairs_for(checkpoint)
    assert len(pairs) >= 4
    prompts = [pair.clean for pair in pairs]
    lens = logit_lens(checkpoint, prompts, [pair.answer for pair in pairs])
    logits = checkpoint.forward(prompts, logits="last").logits
    own = logits.softmax(-1)[range(len(pairs)), list(lens.target.ids)]
    np.testing.assert_allclose(lens.target.probability[:, -1], own.numpy(), atol=1e-5)

    dla = direct_logit_attribution(
        checkpoint, prompts, [pair.answer for pair in pairs], [pair.wrong for pair in pairs]
    )
    assert dla.gap <= 1e-4
    np.testing.assert_allclose(dla.terms.sum(1), dla.logit_difference, atol=1e-3)

    patch = activation_patching(checkpoint, pairs[:4], sites=["resid_pre.0", "z.1.0"], normalise=False)
    np.testing.assert_allclose(patch.effects[:, 0], patch.denominators, atol=1e-4)

    trace = causal_tracing(checkpoint, pairs[:2], kinds=["resid_post"], samples=2, only_known=False)
    for i, effect in enumerate(trace.effects["resid_post"]):
        assert effect[-1, -1] == pytest.approx(trace.total_effects[i], abs=1e-5)
