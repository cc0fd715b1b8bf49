"""How specs name prompts: every source, other platforms' names, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mech_interp.errors import InputError
from mech_interp.experiments.data import DataParams, Need, PairRecord, load_data, target_positions, usable

OURS = {
    "clean": "The old Ann gave",
    "corrupt": "The old Bob gave",
    "answer": " book",
    "wrong": " say",
    "spans": {"subject": "Ann"},
    "corrupt_spans": {"subject": [8, 11]},
}
THEIRS = {
    "clean_prompt": "The old Ann gave",
    "corrupted_prompt": "The old Bob gave",
    "correct_token": " book",
    "incorrect_token": " say",
    "spans": {"subject": [8, 11]},
    "corrupt_spans": {"subject": "Bob"},
}


def params(**given: Any) -> DataParams:
    return DataParams.model_validate(given)


class Lens(DataParams):
    def need(self) -> Need:
        return "answer"


def test_both_sets_of_names_are_the_same_data(model: Any, tmp_path: Path) -> None:
    one = load_data(params(prompt_pairs=[OURS]), model.tokenizer, 0)
    other = load_data(params(prompt_pairs=[THEIRS]), model.tokenizer, 0)
    assert one.content_hash() == other.content_hash()
    assert one[0].span_text("subject") == "Ann"
    assert load_data(params(prompts=[THEIRS]), model.tokenizer, 0).content_hash() == one.content_hash()
    file = tmp_path / "prompts.jsonl"
    file.write_text("\ufeff" + json.dumps(THEIRS) + "\n\n", encoding="utf-8")
    assert load_data(params(dataset_path=str(file)), model.tokenizer, 0).pairs == one.pairs
    one.save(file)
    assert load_data(params(dataset_path=str(file)), model.tokenizer, 0).content_hash() == one.content_hash()


def test_fields_reach_the_pair() -> None:
    record = {**THEIRS, "id": "a", "target_position": -2, "patch_position": 3, "metadata": {"kind": "x"}}
    pair = PairRecord.model_validate(record).pair()
    assert pair.group == "a"
    assert pair.metadata == {"kind": "x", "id": "a", "patch_position": 3, "target_position": -2}
    assert target_positions([pair, PairRecord.model_validate(OURS).pair()]) == [-2, -1]
    assert PairRecord.model_validate({**record, "group": "g"}).pair().group == "g"


def test_the_file_s_hash_is_checked(model: Any, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(OURS) + "\n", encoding="utf-8")
    right = hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(load_data(params(dataset_path=str(file), dataset_sha256=right), model.tokenizer, 0)) == 1
    with pytest.raises(InputError, match=f"{right}, and the spec expects 0000"):
        load_data(params(dataset_path=str(file), dataset_sha256="0" * 64), model.tokenizer, 0)


def test_a_task_is_drawn_with_the_run_s_seed_or_its_own(model: Any) -> None:
    words = [f" {word}" for word in ("Ann", "Bob", "Tom", "Sue", "cat", "dog", "old", "new", "big", "red")]
    ids = model.tokenizer.convert_tokens_to_ids(words)
    given = {"task": "induction", "n": 4, "task_options": {"length": 4, "token_ids": ids}}
    first, same, other = (load_data(params(**given), model.tokenizer, seed) for seed in (1, 1, 2))
    assert first.content_hash() == same.content_hash() != other.content_hash()
    fixed = [load_data(params(**given, data_seed=1), model.tokenizer, seed) for seed in (1, 2)]
    assert fixed[0].content_hash() == fixed[1].content_hash() == first.content_hash()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({}, "no data are given"),
        ({"task": "ioi", "prompts": ["a"]}, "given as task and as prompts"),
        ({"prompts": ["a"], "n": 3}, "n belongs to a task"),
        ({"prompts": ["a"], "task_options": {"x": 1}}, "task_options belongs to a task"),
        ({"task": "ioi", "task_options": {"seed": 1}}, "write data_seed beside it"),
        ({"task": "ioi", "dataset_sha256": "0" * 64}, "without dataset_path"),
        ({"prompt_pairs": [{**OURS, "clean_prompt": "x"}]}, "clean is given twice"),
        ({"prompt_pairs": [{**OURS, "clena": "x"}]}, "Extra inputs"),
        ({"task": "no_task"}, "ioi"),
        ({"prompts": []}, "no data are given"),
        ({"task": "ioi", "n": "32"}, "valid integer"),
    ],
)
def test_one_source_and_no_stray_keys(given: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        params(**given)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"corrupt": None, "corrupt_spans": {}}, "has no corrupt prompt"),
        ({"wrong": None}, "has no wrong"),
        ({"answer": " book red"}, "2 tokens"),
        ({"answer": " unheard"}, "outside the vocabulary"),
        ({"wrong": " book"}, "share a token"),
        ({"corrupt": "The old Bob gave that"}, "4 tokens and the corrupt one 5"),
        ({"corrupt": "The old Ann gave", "corrupt_spans": {}}, "are the same"),
        ({"spans": {"subject": "Sue"}}, "is not in"),
        ({"spans": {"subject": [3]}}, "Give the words"),
        ({"spans": {"subject": [3, 300]}}, "lies outside"),
    ],
)
def test_pairs_that_do_not_suit_are_refused(model: Any, change: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        load_data(params(prompt_pairs=[OURS, {**OURS, **change}]), model.tokenizer, 0)


def test_a_family_that_needs_less_takes_less(model: Any) -> None:
    prompts = [{"prompt": "The old Ann gave", "target": " book"}]
    assert len(load_data(Lens.model_validate({"prompts": prompts}), model.tokenizer, 0)) == 1
    with pytest.raises(InputError, match="has no answer"):
        load_data(Lens.model_validate({"prompts": ["The old Ann gave"]}), model.tokenizer, 0)
    pair = PairRecord(clean="The old Ann gave", answer=" a", wrong=" a").pair()
    assert usable(model.tokenizer, pair, "answer") is None
    assert "same token" in str(usable(model.tokenizer, pair, "wrong"))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"clean_prompt": 3}', "Line 1 of bad.jsonl"),
        (
            '{"clean_prompt": "The old"}\n{"clean_prompt": "The", "spans": {"s": "Ann"}}',
            "Line 2 of bad.jsonl",
        ),
        ("not json", "not JSON"),
        ('{"clean_prompt": "a"}\n{', "not JSON"),
        ("", "no prompt pairs"),
        ("[" * 100_000, "nested too deeply"),
        ('{"clean": "The"}', "Prompt 0 of bad.jsonl"),
        ('{"task_set": {"name": "x"}}\n{"clean": "The"}', "Line 2"),
    ],
)
def test_files_that_do_not_read(model: Any, tmp_path: Path, text: str, match: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=match):
        load_data(params(dataset_path=str(file)), model.tokenizer, 0)


def test_absent_things(model: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_data(params(dataset_path=str(tmp_path / "none")), model.tokenizer, 0)
    with pytest.raises(InputError, match="without a tokenizer"):
        load_data(params(prompts=["The"]), None, 0)
    with pytest.raises(InputError, match="no option 'relaton'"):
        load_data(params(task="facts", task_options={"relaton": "capital"}), model.tokenizer, 0)
    with pytest.raises(InputError, match="do not read"):
        load_data(params(task="induction", task_options={"length": "ten"}), model.tokenizer, 0)
