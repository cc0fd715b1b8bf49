"""Planted models by name, as checkpoints, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mech_interp import planted
from mech_interp.backends.huggingface.edges import graph_of
from mech_interp.backends.loading import load_model
from mech_interp.errors import InputError
from mech_interp.planted import Pairs


@pytest.mark.parametrize("name", planted.models())
@pytest.mark.parametrize("gap", planted.GAPS)
def test_every_model_opens_with_its_identities_checked(name: str, gap: float) -> None:
    made = planted.build(name, gap)
    model = made.open()
    assert (made.name, made.gap, made.seed) == (name, gap, 0)
    assert graph_of(model) == made.graph
    assert model.info.vocabulary == len(made.words)
    assert model.info.n_outputs == len(made.outputs or made.words)
    assert made.kind in ("circuit", "gate", "null")
    assert made.mechanism.endswith(".")


@pytest.mark.parametrize("name", ["reverse", "proportion", "null-random-weights"])
def test_a_saved_model_is_a_checkpoint(name: str, tmp_path: Path) -> None:
    made = planted.build(name, seed=2)
    made.save(tmp_path)
    model = load_model(str(tmp_path))
    pairs = made.pairs(3)
    loaded = model.forward(pairs.clean, logits="last").logits
    assert torch.equal(loaded, made.open().forward(pairs.clean, logits="last").logits)  # type: ignore[arg-type]
    facts = json.loads((tmp_path / "planted.json").read_text(encoding="utf-8"))
    assert facts["truths"] == {key: list(edges) for key, edges in made.truths.items()}
    assert (facts["name"], facts["seed"], facts["outputs"]) == (name, 2, list(made.outputs or made.words))


def test_prompts_can_be_words() -> None:
    made = planted.build("reverse")
    model = made.open()
    tokens = model.tokens("<bos> a b c <sep>")
    assert [made.words[i] for i in tokens.row(0)] == ["<bos>", "a", "b", "c", "<sep>"]
    assert model.generate(["<bos> a b c <sep>"], max_new_tokens=3).texts == ("c b a",)


def test_pairs_are_seeded() -> None:
    made = planted.build("induction")
    one, same, other = (made.pairs(5, seed=seed) for seed in (0, 0, 1))
    assert isinstance(one, Pairs)
    assert torch.equal(one.clean.ids, same.clean.ids)
    assert not torch.equal(one.clean.ids, other.clean.ids)
    assert torch.equal(made.pairs(3).clean.ids, one.clean.ids[:3])
    with pytest.raises(InputError, match="0 pairs were asked for"):
        made.pairs(0)


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"no planted model 'inductions'\. Did you mean induction"):
        planted.build("inductions")
    for gap in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="is impossible"):
            planted.build("induction", gap)
    with pytest.raises(InputError, match="no kind 'circuits'"):
        planted.models("circuits")  # type: ignore[arg-type]
    assert set(planted.models("circuit")) | set(planted.models("gate")) | set(planted.models("null")) == set(
        planted.models()
    )


def test_listing_needs_no_torch() -> None:
    code = "import sys; from mech_interp import planted; planted.models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
