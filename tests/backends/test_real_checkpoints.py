"""Checkpoints trained by others, where this machine has them: identities, sweeps, text, recorded values."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import combinations, one_of_each
from safetensors.torch import load_file
from tiny_models import largest_gap

from mech_interp.backends.checks import measure_identities
from mech_interp.backends.huggingface.block import (
    Frame,
    attention_z,
)
from mech_interp.backends.huggingface.layouts.base import Block
from mech_interp.backends.huggingface.opening import library_logits
from mech_interp.backends.huggingface.stack import own_keys_values
from mech_interp.backends.loading import load_model
from mech_interp.backends.metrics import Logits
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens

PROMPTS = {
    "stories260k": ["Once upon a time, there was", "Lily", "The dog and the cat went to the"],
    "atome-vanilla-1m": ["Once upon a time there was a", "Tom said", "She liked to"],
    "llmviz-nano-sort": ["CBABCA", "AACBBC", "BCABAC"],
}


@pytest.fixture(scope="module", params=list(PROMPTS))
def checkpoint(request: pytest.FixtureRequest, real_checkpoints: Path) -> Any:
    folder = real_checkpoints / request.param
    if not folder.is_dir():
        pytest.skip(f"the checkpoint {request.param} is not on this machine")
    return load_model(str(folder), device="cpu")


def test_identities(checkpoint: Any) -> None:
    found = measure_identities(checkpoint, lambda tokens: library_logits(checkpoint.module, tokens))
    assert len(found) == 1 + 8 * checkpoint.info.n_layers
    assert max(identity.deviation for identity in found) < 1e-5


def test_rows_equal_the_naive_loop(checkpoint: Any) -> None:
    base = checkpoint.tokens(PROMPTS[checkpoint.info.name])
    vocabulary = checkpoint.info.vocabulary
    lists = [base.row(i) for i in range(3)]
    lists = [row if len(row) >= 5 else [*row, *lists[0][:5]] for row in lists]
    changed = [[(t + 1) % vocabulary if at == 2 else t for at, t in enumerate(row)] for row in lists]
    longer = [[(t + 2) % vocabulary for t in [*row, row[-1]]] for row in lists]
    # The longest of the runs is the one that values are read from at every position.
    longer[2] = (longer[2] * 9)[: max(map(len, lists)) + 1]
    runs = {"base": lists, "other": changed, "far": longer}
    tokens = {name: Tokens.from_lists(rows) for name, rows in runs.items()}
    rows = one_of_each(checkpoint, seed=1)[::6] + combinations(checkpoint, 15, seed=2)
    metric = Logits((-1, 3))
    slow = list(naive_rows(checkpoint, tokens, rows, metric))
    scale = max(1.0, max(float(result.value.abs().max()) for result in slow))
    for result in checkpoint.rows(tokens, rows, metric):
        assert largest_gap(result.value, slow[result.index].value) <= 1e-5 * scale, rows[result.index]


def test_greedy_generation_equals_the_library(checkpoint: Any) -> None:
    prompts = PROMPTS[checkpoint.info.name]
    new = 5 if checkpoint.info.name == "llmviz-nano-sort" else 20
    found = checkpoint.generate(prompts, max_new_tokens=new, stop_ids=())
    tokens = checkpoint.tokens(prompts)
    for i in range(len(prompts)):
        ids = torch.tensor([tokens.row(i)])
        out = checkpoint.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        assert list(found.ids[i]) == out[0, ids.shape[1] :].tolist()
    assert found.texts == tuple(checkpoint.tokenizer.decode(list(ids)) for ids in found.ids)


@pytest.fixture(scope="module")
def sorter(real_checkpoints: Path) -> Any:
    return _open(real_checkpoints, "llmviz-nano-sort")


def _open(folder: Path, name: str) -> Any:
    if not (folder / name).is_dir():
        pytest.skip(f"the checkpoint {name} is not on this machine")
    return load_model(str(folder / name), device="cpu")


def test_the_sorter_sorts_every_input(sorter: Any) -> None:
    """All 729 inputs: prompt of six letters, then each sorted letter predicted from those before it."""
    inputs = [list(letters) for letters in itertools.product(range(3), repeat=6)]
    whole = [letters + sorted(letters) for letters in inputs]
    logits = sorter.forward([row[:11] for row in whole], logits=list(range(5, 11))).logits
    assert logits.argmax(-1).tolist() == [row[6:] for row in whole]


def test_the_sorter_sorts_what_it_writes_itself(sorter: Any) -> None:
    words = ["CBABCA", "AACBBC", "BCABAC", "CCCCCC"]
    texts = sorter.generate(words, max_new_tokens=5, stop_ids=()).texts
    # The context of eleven holds five of the six letters written.
    assert [text.replace(" ", "") for text in texts] == ["".join(sorted(word))[:5] for word in words]


def test_the_story_model_tells_its_story(real_checkpoints: Path) -> None:
    model = _open(real_checkpoints, "stories260k")
    text = model.generate("Once upon a time", max_new_tokens=24).texts[0]
    assert "there was a little girl" in text


class Recorded(Block):
    """Attention alone, with queries and keys that give recorded scores: q = scores, k = the identity."""

    def __init__(self, scores: torch.Tensor, scale: float) -> None:
        self.scores, self.scale = scores, scale

    def norm1(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def qkv(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        heads, n, _ = self.scores.shape
        eye = torch.eye(n).unsqueeze(1).expand(n, heads, n)[None]
        return self.scores.transpose(0, 1)[None], eye, eye

    def _unused(self, *_: Any) -> Any:
        raise AssertionError("only attention runs")

    attention_output = norm2 = mlp_in = mlp_activation = mlp_out = weights = _unused
    attention_module = property(_unused)
    ports = _unused


class Watch:
    """Taps that record scores and patterns."""

    def __init__(self, explicit: bool) -> None:
        self.explicit = explicit
        self.seen: dict[str, torch.Tensor] = {}

    def wants(self, kind: str, layer: int | None) -> bool:
        return self.explicit and kind == "pattern"

    def __call__(self, kind: str, layer: int | None, value: torch.Tensor) -> torch.Tensor:
        self.seen[kind] = value
        return value

    def narrow(self) -> None:
        raise AssertionError("nothing is narrowed")


def test_recorded_scores_give_the_recorded_patterns(real_checkpoints: Path) -> None:
    """GPT-2 small, five prompts, 144 heads each: scale, mask and softmax of the engine's own attention."""
    folder = real_checkpoints / "gpt2-small-examples"
    if not folder.is_dir():
        pytest.skip("the recorded examples of GPT-2 small are not on this machine")
    tensors = load_file(folder / "examples.safetensors")
    examples = json.loads((folder / "examples.json").read_text())["examples"]
    assert len(examples) == 5
    for example in examples:
        prefix = next(k for k in tensors if str(example["index"]) in k and k.endswith("qk_scores"))
        scores, patterns = tensors[prefix], tensors[prefix.replace("qk_scores", "attention")]
        n = scores.shape[-1]
        assert n == len(example["token_ids"])
        for layer in range(12):
            block = Recorded(scores[layer], scale=1 / 8)
            frame = Frame(None, torch.arange(n)[None], own_keys_values)
            watch = Watch(explicit=True)
            # With the identity as values, z is the pattern itself: both ways of attention are seen.
            z, _ = attention_z(block, layer, torch.zeros(1, n, 1), frame, watch)
            fused, _ = attention_z(block, layer, torch.zeros(1, n, 1), frame, Watch(explicit=False))
            for found in (watch.seen["pattern"][0], z[0].transpose(0, 1), fused[0].transpose(0, 1)):
                assert largest_gap(found, patterns[layer]) < 2e-6
    previous = patterns[4, 11].diagonal(-1)
    assert float(previous.min()) > 0.98, "head 4.11 looks at the previous token"
