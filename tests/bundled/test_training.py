"""The training loop on toys: deterministic, resumable, and the batches are what they should be."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from mech_interp.bundled import tokenizer as bundled_tokenizer
from mech_interp.bundled.batches import IGNORED, Batches, window_length
from mech_interp.bundled.recipe import RECIPES, Recipe, new_model, recipe
from mech_interp.bundled.train import corpus_hash, main
from mech_interp.bundled.training import Trained, schedule, train
from mech_interp.errors import InputError

STEPS = 20


@pytest.fixture(scope="module")
def built() -> Tokenizer:
    return bundled_tokenizer.build()


def _toy(architecture: str = "gpt2") -> Recipe:
    base = RECIPES["tinyworld" if architecture == "gpt2" else "tinyworld-llama"]
    small = dataclasses.replace(base, n_layers=1, d_model=16, n_heads=2, n_kv_heads=1, d_mlp=32, context=32)
    return dataclasses.replace(small, tokens=STEPS * 256, batch_tokens=256)


def _weights(
    chosen: Recipe, built: Tokenizer, state: Path, *, stops: tuple[int, ...] = ()
) -> tuple[dict[str, torch.Tensor], Trained]:
    """Weights after training, interrupted at the steps given and gone on from the last checkpoint."""
    for stop in stops:
        model = new_model(chosen, built.get_vocab_size())
        batches = Batches(chosen, built)
        left = train(model, chosen, batches, state, resume=True, save_every=4, stop_after=stop)
        assert left is None
    torch.manual_seed(99)
    model = new_model(chosen, built.get_vocab_size(), seed=None if not stops else 5)
    done = train(model, chosen, Batches(chosen, built), state, resume=bool(stops), save_every=4)
    assert done is not None
    return {name: value.clone() for name, value in model.state_dict().items()}, done


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_resumed_training_equals_uninterrupted(architecture: str, built: Tokenizer, tmp_path: Path) -> None:
    chosen = _toy(architecture)
    whole, done = _weights(chosen, built, tmp_path / "whole")
    resumed, done_again = _weights(chosen, built, tmp_path / "resumed", stops=(7, 14))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert done.losses == done_again.losses
    assert done.token_counts == done_again.token_counts
    assert sum(done.token_counts) == STEPS * 256
    uniform = math.log(built.get_vocab_size())
    assert done.losses[-1][1] < uniform - 0.02, "nothing was learned"


def test_resuming_another_recipe_is_refused(built: Tokenizer, tmp_path: Path) -> None:
    chosen = _toy()
    train(new_model(chosen, built.get_vocab_size()), chosen, Batches(chosen, built), tmp_path, save_every=10)
    other = dataclasses.replace(chosen, seed=5)
    with pytest.raises(InputError, match="another recipe"):
        train(new_model(other, built.get_vocab_size()), other, Batches(other, built), tmp_path, resume=True)


def test_batches_depend_on_recipe_and_step_alone(built: Tokenizer) -> None:
    chosen = _toy()
    forwards, backwards = Batches(chosen, built), Batches(chosen, built)
    steps = [0, 30, 3]
    one = {step: forwards(step) for step in steps}
    other = {step: backwards(step) for step in reversed(steps)}
    assert all(np.array_equal(a, b) for step in steps for a, b in zip(one[step], other[step], strict=True))
    assert not np.array_equal(one[0][0], one[3][0])
    assert corpus_hash(forwards, 3) == corpus_hash(backwards, 3)
    assert corpus_hash(forwards, 3) != corpus_hash(Batches(dataclasses.replace(chosen, seed=9), built), 3)


def test_windows_have_both_lengths_and_begin_with_a_document(built: Tokenizer) -> None:
    chosen = RECIPES["tinyworld"]
    batches = Batches(chosen, built)
    for step in range(3):
        ids, labels = batches(step)
        length = window_length(chosen, step)
        assert ids.shape == labels.shape == (chosen.batch_tokens // length, length)
        assert (ids[:, 0] != 0).all()
        starts = [built.decode(list(row[:1])) for row in ids]
        capitals = sum(start[:1].isupper() for start in starts)
        assert capitals > 0.7 * len(starts)  # all but random repetitions begin a sentence
    assert {window_length(chosen, step) for step in range(3)} == {64, 128}


def test_chat_windows_train_on_replies_only(built: Tokenizer) -> None:
    chosen = dataclasses.replace(RECIPES["tinyworld-chat"], chat_share=1.0, start=None)
    ids, labels = Batches(chosen, built)(0)
    trained = labels[0][labels[0] != IGNORED].tolist()
    text = built.decode(trained, skip_special_tokens=False)
    assert "<|user|>" not in text
    assert "<|end|>" in text
    assert np.array_equal(ids[labels != IGNORED], labels[labels != IGNORED])


def test_schedule_warms_up_and_decays() -> None:
    chosen = RECIPES["tinyworld"]
    shares = [schedule(chosen, step) for step in range(0, chosen.steps, 10)]
    top = shares.index(max(shares))
    assert max(shares) == pytest.approx(1.0, abs=0.02)
    assert all(a < b for a, b in itertools.pairwise(shares[: top + 1]))
    assert all(a > b for a, b in itertools.pairwise(shares[top:]))
    assert shares[-1] == pytest.approx(chosen.final_lr_fraction, abs=0.01)


def test_unknown_recipe_and_bad_tokens_are_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="no recipe called 'tinywordl'") as caught:
        recipe("tinywordl")
    assert "tinyworld" in caught.value.hint
    assert main(["nope"]) == 2
    assert main(["tinyworld", "--tokens", "0"]) == 2
    assert "must be positive" in capsys.readouterr().err
