"""Statistics of captured activations, against tensors taken by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from mech_interp.errors import InputError
from mech_interp.experiments import parts

PROMPTS = [
    "The old Ann gave that book",
    "The dog",
    "a red cat say 12 7 .",
    "The new Tom gave a book to Sue",
] * 2


def by_hand(model: Any, site: str, keep: Any) -> list[torch.Tensor]:
    """Per prompt the vectors [tokens, features] that count, each prompt run alone."""
    found = [model.forward(prompt, capture=[site], logits="none").activations[site][0] for prompt in PROMPTS]
    return [keep(values.flatten(1)) for values in found]


@pytest.mark.parametrize(
    ("options", "keep"),
    [
        ({}, lambda values: values),
        ({"positions": "last"}, lambda values: values[-1:]),
        ({"positions": [0, -1]}, lambda values: values[[0, -1]]),
        ({"skip_first": True}, lambda values: values[1:]),
    ],
)
@pytest.mark.parametrize("site", ["blocks.1.hook_resid_post", "blocks.0.attn.hook_z", "z.1.1"])
def test_statistics(
    options: dict[str, Any], keep: Any, site: str, model: Any, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.portions, "__defaults__", (3,))
    result = run("activation_capture", prompts=PROMPTS, hook_site=site, sample_prompts=4, **options)
    rows = by_hand(model, site, keep)
    every = torch.cat(rows)
    (row,) = result.tables["sites"]
    assert row["tokens"] == len(every)
    assert row["mean_norm"] == pytest.approx(float(every.norm(dim=1).mean()))
    assert row["mean"] == pytest.approx(float(every.mean()))
    assert row["std"] == pytest.approx(float(every.std(correction=0)))
    assert row["largest"] == pytest.approx(float(every.abs().max()))
    assert row["mean_vector_share"] == pytest.approx(
        float(every.mean(0).norm() ** 2 / (every**2).sum(1).mean())
    )
    (name,) = [key for key in result.metrics if key.startswith("norm.")]
    assert result.metrics[name].value == pytest.approx(row["mean_norm"])
    (tensor,) = [key for key in result.tensors if key.startswith("activations.")]
    last = by_hand(model, site, lambda values: values[-1])
    np.testing.assert_allclose(result.tensors[tensor], torch.stack(last[:4]).float(), rtol=1e-6)
    assert result.status == "complete"


def test_zeros_are_counted(model: Any, run: Any) -> None:
    result = run("activation_capture", prompts=PROMPTS, sites=["resid_post"], sample_prompts=0)
    assert [row["zero_share"] for row in result.tables["sites"]] == [0, 0]
    assert not result.tensors
    assert [row["site"] for row in result.tables["sites"]] == [
        "blocks.0.hook_resid_post",
        "blocks.1.hook_resid_post",
    ]


def test_a_backend_that_depends_on_the_batch_voids_the_run(model: Any, run: Any) -> None:
    class Leaky:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def forward(self, tokens: Any, **options: Any) -> Any:
            found = model.forward(tokens, **options)
            for site in found.activations:
                found.activations[site].add_(0.01 * len(tokens))
            return found

    result = run("activation_capture", prompts=PROMPTS, on=Leaky())
    assert result.status == "void"
    assert [control.name for control in result.failed] == ["batching"]


def test_a_prompt_without_tokens_that_count(run: Any) -> None:
    with pytest.raises(InputError, match="No token of prompt 1"):
        run("activation_capture", prompts=["The dog", "The"], skip_first=True)
    with pytest.raises(InputError, match="Position 5 does not exist"):
        run("activation_capture", prompts=["The dog"], positions=[5])
