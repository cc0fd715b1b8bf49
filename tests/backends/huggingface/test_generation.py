"""Generation: the library's own tokens, reproducible samples, interventions against a loop without cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import hf_gpt2, largest_gap, random_ids
from torch import Tensor

from mech_interp.backends.huggingface import generation
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.errors import InputError
from mech_interp.interventions import Add, Custom, FromRun, Intervention, Mean, Noise, Replace, Scale, Zero

PROMPTS = random_ids((6, 1, 9, 3), seed=12)


def library(module: Any, ids: list[int], new: int, stop: list[int] | None = None) -> tuple[int, ...]:
    out = module.generate(
        torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids)),
        max_new_tokens=new,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=stop,
    )
    return tuple(out[0, len(ids) :].tolist())


def test_greedy_equals_the_library_token_for_token(model: Any) -> None:
    expected = [library(model.module, ids, 12) for ids in PROMPTS]
    found = model.generate(PROMPTS, max_new_tokens=12, stop_ids=())
    assert list(found.ids) == expected
    assert found.finished == ("length",) * 4
    assert len(set(expected)) == 4


def test_stop_tokens_equal_the_library(model: Any) -> None:
    free = model.generate(PROMPTS, max_new_tokens=12, stop_ids=()).ids
    stops = [free[0][4], free[2][2]]
    expected = [library(model.module, ids, 12, stops) for ids in PROMPTS]
    found = model.generate(PROMPTS, max_new_tokens=12, stop_ids=stops)
    assert list(found.ids) == expected
    assert len({len(ids) for ids in expected}) > 1
    for ids, finished in zip(found.ids, found.finished, strict=True):
        assert finished == ("stop" if ids[-1] in stops else "length")


def test_the_checkpoints_own_stop_tokens_are_the_default() -> None:
    module = hf_gpt2()
    free = open_module(module).generate(PROMPTS[:1], max_new_tokens=8).ids[0]
    module.generation_config.eos_token_id = [free[3], 96]
    found = open_module(module).generate(PROMPTS[:1], max_new_tokens=8)
    assert found.ids[0] == free[: free.index(free[3]) + 1]
    assert found.finished == ("stop",)


def test_sampling_is_reproducible_and_independent_of_companions(model: Any) -> None:
    options: dict[str, Any] = {"max_new_tokens": 10, "temperature": 1.3, "stop_ids": ()}
    one = model.generate(PROMPTS, seed=3, **options).ids
    assert model.generate(PROMPTS, seed=3, **options).ids == one
    others = [PROMPTS[0], *random_ids((2, 8), seed=99)]
    assert model.generate(others, seed=3, **options).ids[0] == one[0]
    assert model.generate(PROMPTS, seed=4, **options).ids != one
    # Two copies of a prompt in one batch are two samples.
    two = model.generate([PROMPTS[0]] * 2, seed=3, **options).ids
    assert two[0] == one[0] != two[1]


def chosen(logits: Tensor, n: int = 4000, **options: Any) -> Tensor:
    """Frequencies of what is drawn from given logits."""
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, **options}
    generator = torch.Generator().manual_seed(1)
    draws = [generation._choose(logits, **settings, generator=generator) for _ in range(n)]
    return torch.bincount(torch.tensor(draws), minlength=len(logits)) / n


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.2, 0.3, 0.4]),
        ({"temperature": 0.5}, [1 / 30, 4 / 30, 9 / 30, 16 / 30]),
        ({"top_k": 2}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_k": 9}, [0.1, 0.2, 0.3, 0.4]),
        ({"top_p": 0.69}, [0, 0, 3 / 7, 4 / 7]),
        ({"top_p": 0.71}, [0, 2 / 9, 3 / 9, 4 / 9]),
        ({"top_p": 0.01}, [0, 0, 0, 1]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0, 3 / 7, 4 / 7]),
    ],
)
def test_samples_follow_the_distribution(options: dict[str, Any], expected: list[float]) -> None:
    found = chosen(torch.tensor([0.1, 0.2, 0.3, 0.4]).log(), **options)
    assert largest_gap(found, torch.tensor(expected)) < 0.03
    assert all((f == 0) == (e == 0) for f, e in zip(found.tolist(), expected, strict=True))


def naive(model: Any, ids: list[int], row: int, new: int, edits: Sequence[Intervention]) -> tuple[int, ...]:
    """Greedy continuation by whole forwards: interventions become explicit positions of the tokens so far."""
    length, so_far = len(ids), list(ids)
    for _ in range(new):
        now = []
        for edit in edits:
            if edit.prompts is not None and row not in edit.prompts:
                continue
            inside = {
                "all": range(len(so_far)),
                "prompt": range(length),
                "generated": range(length, len(so_far)),
            }[edit.phase]
            positions = [p for p in inside if edit.positions is None or p in wanted(edit, length)]
            if positions:
                now.append(replace_positions(edit, positions))
        logits = model.forward([so_far], interventions=now, logits="last", prompt_ids=[row]).logits[0]
        so_far.append(int(logits.argmax()))
    return tuple(so_far[length:])


def wanted(edit: Intervention, length: int) -> set[int]:
    assert edit.positions is not None
    return {p + length if p < 0 else p for p in edit.positions}


def replace_positions(edit: Intervention, positions: list[int]) -> Intervention:
    return Intervention(edit.site, edit.operation, positions=positions, heads=edit.heads)


VECTOR = torch.linspace(-3, 3, 32)


@pytest.mark.parametrize(
    "edits",
    [
        [Intervention("resid_post.1", Add(VECTOR))],
        [Intervention("resid_post.1", Add(VECTOR), phase="prompt")],
        [Intervention("resid_post.1", Add(VECTOR), phase="generated")],
        [Intervention("z.1", Zero(), heads=(1, 2))],
        [Intervention("k.2", Scale(-1.0), phase="prompt")],
        [Intervention("v.0", Scale(2.0), phase="generated", heads=1)],
        [Intervention("pattern.1", Scale(0.3))],
        [Intervention("attn_scores.0", Scale(2.0), phase="generated")],
        [Intervention("mlp_post.1", Noise(1.0, seed=4))],
        [Intervention("embed", Replace(VECTOR), positions=-1)],
        [Intervention("resid_mid.2", Add(VECTOR), prompts=(0, 2))],
        [Intervention("logits", Add(torch.linspace(0, 20, 97)), phase="generated")],
        [Intervention("ln_final", Custom(lambda x, c: x.flip(-1)))],
        [
            Intervention("resid_pre.1", Scale(0.1)),
            Intervention("resid_pre.1", Add(VECTOR), phase="generated"),
        ],
    ],
)
def test_interventions_equal_a_loop_without_cache(exact: Any, edits: list[Intervention]) -> None:
    found = exact.generate(PROMPTS, max_new_tokens=6, stop_ids=(), interventions=edits).ids
    assert list(found) == [naive(exact, ids, row, 6, edits) for row, ids in enumerate(PROMPTS)]


def test_interventions_change_what_is_generated(exact: Any) -> None:
    """The comparison above means something only if the interventions matter."""
    plain = exact.generate(PROMPTS, max_new_tokens=6, stop_ids=()).ids
    for phase in ("all", "prompt", "generated"):
        edit = Intervention("resid_post.1", Add(VECTOR), phase=phase)
        assert exact.generate(PROMPTS, max_new_tokens=6, stop_ids=(), interventions=[edit]).ids != plain
    # What happens to generated tokens cannot change the first of them.
    first = [
        ids[0] for ids in exact.generate(PROMPTS, max_new_tokens=6, stop_ids=(), interventions=[edit]).ids
    ]
    assert first == [ids[0] for ids in plain]


def test_a_position_behind_the_prompt_is_edited_when_it_is_read(exact: Any) -> None:
    edit = Intervention("embed", Replace(VECTOR), positions=8)
    ids = PROMPTS[0]
    found = exact.generate([ids], max_new_tokens=6, stop_ids=(), interventions=[edit]).ids[0]
    assert found == naive(exact, ids, 0, 6, [edit])
    plain = exact.generate([ids], max_new_tokens=6, stop_ids=()).ids[0]
    assert found[:3] == plain[:3]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Intervention("embed", Zero(), positions=11), "Position 11 .* would never fire"),
        (Intervention("embed", Zero(), positions=6, phase="prompt"), "Position 6 .* would never fire"),
        (Intervention("embed", Zero(), positions=5, phase="generated"), "Position 5 .* would never fire"),
        (Intervention("embed", Zero(), positions=-7), "Position -7 .* would never fire"),
        (Intervention("embed", Zero(), prompts=1), "no prompt 1 in a batch of 1"),
        (Intervention("z.9", Zero()), "has 3 layers"),
        (Intervention("z.9", Zero(), phase="generated"), "has 3 layers"),
        (Intervention("z.0.7", Zero()), "names head 7"),
        (Intervention("embed", Replace(FromRun("base"))), "reads another run, but generation has none"),
        (Intervention("embed", Mean("base")), "reads another run, but generation has none"),
    ],
)
def test_interventions_that_cannot_fire_are_refused(model: Any, edit: Intervention, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model.generate(PROMPTS[:1], max_new_tokens=6, interventions=[edit])
    assert caught.value.hint


def test_generated_tokens_need_to_be_read_to_be_edited(model: Any) -> None:
    edit = Intervention("embed", Zero(), phase="generated")
    with pytest.raises(InputError, match="no generated token is read"):
        model.generate(PROMPTS[:1], max_new_tokens=1, interventions=[edit])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0 does not fit"),
        ({"max_new_tokens": 16}, "max_new_tokens=16 does not fit: the longest prompt has 9 tokens"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"top_k": 0}, "temperature must be"),
        ({"top_p": 0.0}, "temperature must be"),
        ({"top_p": 1.1}, "temperature must be"),
    ],
)
def test_bad_options(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(PROMPTS, **{"max_new_tokens": 4, **options})


def test_the_whole_context_can_be_filled(model: Any) -> None:
    ids = model.generate(PROMPTS, max_new_tokens=15, stop_ids=()).ids
    assert ids[2] == library(model.module, PROMPTS[2], 15)


def test_an_eager_model_generates_the_same(gpt2: Any) -> None:
    eager = open_module(hf_gpt2(attention="eager"))
    assert replace(eager.info, attention="sdpa").attention == gpt2.info.attention
    options: dict[str, Any] = {"max_new_tokens": 8, "stop_ids": ()}
    assert eager.generate(PROMPTS, **options).ids == gpt2.generate(PROMPTS, **options).ids
