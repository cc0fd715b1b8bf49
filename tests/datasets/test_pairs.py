"""Pairs and task sets: checks, hashes, splits, files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mech_interp.datasets import PromptPair, TaskSet, load_pairs
from mech_interp.datasets.pairs import Drop, pair_problem
from mech_interp.errors import InputError

PAIR = PromptPair(
    clean="The capital of France is",
    corrupt="The capital of Italy is",
    answer=" Paris",
    wrong=" Rome",
    group="capital|France",
    spans={"subject": (15, 21)},
    corrupt_spans={"subject": (15, 20)},
    metadata={"country": "France"},
)
SET = TaskSet("facts", tuple(replace(PAIR, group=f"g{i % 5}") for i in range(20)), split="test", source="me")


def test_pair_defaults_and_spans() -> None:
    assert (PAIR.answers, PAIR.wrongs) == ((" Paris",), (" Rome",))
    assert PAIR.span_text("subject") == "France"
    assert PromptPair(clean="a", answer=" b", wrong=" c").group == "a"
    with pytest.raises(InputError, match="no span 'verb'"):
        PAIR.span_text("verb")
    with pytest.raises(InputError, match="lies outside"):
        replace(PAIR, spans={"subject": (15, 99)})


def test_files_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    bare = PromptPair(clean="a", answer=" b", wrong=" c", answers=(" b", " d"))
    tasks = replace(SET, pairs=(PAIR, bare), metric="probability_difference")
    tasks.save(path)
    again = load_pairs(path)
    assert again == tasks
    assert again.content_hash() == tasks.content_hash()
    with pytest.raises(InputError, match="no corrupt prompt"):
        _ = again.corrupt


def test_content_hash_depends_on_content_alone() -> None:
    assert replace(SET, dropped=(Drop("x", "y"),)).content_hash() == SET.content_hash()
    changed = [
        replace(SET, pairs=SET.pairs[:-1]),
        replace(SET, name="other"),
        replace(SET, metric="probability_difference"),
        replace(SET, pairs=(replace(SET.pairs[0], wrong=" Oslo"), *SET.pairs[1:])),
        replace(SET, pairs=(SET.pairs[1], SET.pairs[0], *SET.pairs[2:])),
    ]
    assert len({one.content_hash() for one in (SET, *changed)}) == 6


def test_groups_are_never_torn_apart() -> None:
    first, second = SET.split_groups(0.4, seed=1)
    assert len(first) + len(second) == len(SET)
    assert set(first.groups).isdisjoint(second.groups)
    assert len(set(first.groups)) == 2
    with pytest.raises(InputError, match="cannot be split"):
        replace(SET, pairs=(PAIR,)).split_groups()


def test_slices_stay_task_sets() -> None:
    assert isinstance(SET[:3], TaskSet)
    assert len(SET[:3]) == 3
    assert SET[0].clean == PAIR.clean


def test_summary_counts_reasons() -> None:
    drops = (
        Drop("a", "the answer ' x' is 3 tokens here: 'a' | 'b'"),
        Drop("b", "the answer ' y' is 2 tokens here"),
    )
    assert replace(SET, dropped=drops).summary() == (
        "facts: 20 pairs in 5 groups, 2 items dropped (2 because the answer is not one token)"
    )
    assert SET.summary().endswith("none dropped")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        (
            {"corrupt": "The capital of the United Kingdom is", "corrupt_spans": {}},
            "5 tokens and the corrupt one 7",
        ),
        ({"corrupt": PAIR.clean}, "are the same"),
        ({"answer": " Ulaanbaatar", "answers": ()}, "tokens here: "),
        ({"wrong": " Paris", "wrongs": ()}, "share a token"),
        ({"wrongs": (" Rome", " Ouagadougou")}, "tokens here: "),
        ({"corrupt": None, "corrupt_spans": {}}, None),
    ],
)
def test_unusable_pairs_are_named(gpt2: Any, change: dict[str, Any], problem: str | None) -> None:
    found = pair_problem(gpt2, replace(PAIR, **change))
    if problem is None:
        assert found is None
    else:
        assert problem in str(found)


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


GOOD = {
    "clean": "The capital of France is",
    "corrupt": "The capital of Italy is",
    "answer": " Paris",
    "wrong": " Rome",
}


def test_own_files_load_with_the_least(tmp_path: Path, gpt2: Any) -> None:
    tasks = load_pairs(write(tmp_path / "mine.jsonl", GOOD, "", {**GOOD, "group": "g"}), gpt2)
    assert (tasks.name, len(tasks), tasks.metric) == ("mine", 2, "logit_difference")
    assert tasks.groups == ["The capital of France is", "g"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([GOOD, {**GOOD, "answer": " Ulaanbaatar"}], "Line 2 of x.jsonl: the answer ' Ulaanbaatar' is"),
        (
            [{**GOOD, "corrupt": "The big capital of Italy is"}],
            "has 5 tokens and the corrupt one 6",
        ),
        ([{**GOOD, "corupt": "x"}], "unknown field 'corupt'"),
        ([{"clean": "a", "answer": " b"}], "no text field 'wrong'"),
        ([{**GOOD, "spans": {"subject": 3}}], "does not read"),
        ([{**GOOD, "clean": ""}], "the prompt is empty"),
        (["[1, 2]"], "not an object"),
        (["{"], "Line 1 of x.jsonl is not JSON"),
        ([""], "no prompt pairs"),
        ([{"task_set": {"metric": "accuracy"}}, GOOD], "metric 'accuracy'"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path: Path, gpt2: Any, lines: list[Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_pairs(write(tmp_path / "x.jsonl", *lines), gpt2)
    assert message in caught.value.message
    assert caught.value.hint


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_pairs(tmp_path / "none.jsonl")
