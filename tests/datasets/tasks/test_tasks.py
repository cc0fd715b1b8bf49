"""Every generator on several tokenizers: usable pairs, right answers, honest reports."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest

from mech_interp import datasets
from mech_interp.datasets import lexicon, templates
from mech_interp.datasets.tokens import token_span
from mech_interp.errors import InputError


def made(name: str, tokenizer: Any, n: int = 24, **options: Any) -> datasets.TaskSet:
    """The task, skipped where the tokenizer cannot have it (which `test_refusal...` checks)."""
    try:
        return datasets.task(name, tokenizer, n, **options)
    except InputError as error:
        if name in ("greater_than", "induction") and "<unk>" in tokenizer.get_vocab():
            pytest.skip(f"word-level tokenizer: {error.message}")
        raise


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", list(datasets.TASKS))
def test_pairs_are_usable_by_definition(name: str, tokenizer: Any) -> None:
    tasks = made(name, tokenizer)
    assert len(tasks) >= 12
    for pair in tasks:
        clean, corrupt = ids(tokenizer, pair.clean), ids(tokenizer, pair.corrupt)  # type: ignore[arg-type]
        assert len(clean) == len(corrupt)
        assert clean != corrupt
        for answer in (*pair.answers, *pair.wrongs):
            after = ids(tokenizer, pair.clean + answer)
            assert after[:-1] == clean
            assert after[-1] != tokenizer.unk_token_id or tokenizer.unk_token_id == tokenizer.eos_token_id
        assert set(pair.answers).isdisjoint(pair.wrongs)
        assert pair.spans.keys() == pair.corrupt_spans.keys()
        for span in pair.spans.values():
            start, stop = token_span(tokenizer, pair.clean, span, special=False)
            words = pair.clean[slice(*span)]
            assert words in tokenizer.decode(clean[start:stop])


@pytest.mark.parametrize("name", list(datasets.TASKS))
def test_same_seed_same_pairs_and_splits_differ(name: str, tokenizer: Any) -> None:
    first = made(name, tokenizer)
    assert made(name, tokenizer).content_hash() == first.content_hash()
    assert made(name, tokenizer, seed=1).content_hash() != first.content_hash()
    assert made(name, tokenizer, n=6).pairs == first.pairs[:6]
    if "<unk>" not in tokenizer.get_vocab():
        dev = made(name, tokenizer, split="dev")
        assert {pair.clean for pair in dev}.isdisjoint(first.clean)
        mine, other = ({pair.metadata.get("template") for pair in one} for one in (first, dev))
        assert mine.isdisjoint(other) or mine == other == {None}


@pytest.mark.parametrize("name", list(datasets.TASKS))
def test_no_prompt_comes_twice_and_groups_are_many(name: str, tokenizer: Any) -> None:
    tasks = made(name, tokenizer)
    assert max(Counter((pair.clean, pair.answer, pair.corrupt) for pair in tasks).values()) == 1
    assert len(set(tasks.groups)) >= 8


# --- indirect object identification --------------------------------------------------------------


def test_ioi_orders_and_swap(tokenizer: Any) -> None:
    tasks = made("ioi", tokenizer)
    assert {pair.metadata["order"] for pair in tasks} == {"ABBA", "BABA"}
    for pair in tasks:
        io, subject = pair.answer.strip(), pair.wrong.strip()
        assert pair.span_text("io") == io
        assert pair.span_text("s1") == pair.span_text("s2") == subject
        assert pair.clean.count(io) == 1
        assert pair.clean.count(subject) == 2
        assert (pair.spans["io"] < pair.spans["s1"]) == (pair.metadata["order"] == "ABBA")
        clean, corrupt = ids(tokenizer, pair.clean), ids(tokenizer, pair.corrupt)  # type: ignore[arg-type]
        changed = [i for i, (a, b) in enumerate(zip(clean, corrupt, strict=True)) if a != b]
        start, stop = token_span(tokenizer, pair.clean, pair.spans["s2"], special=False)
        assert changed == [start]
        assert stop == start + 1
        assert pair.corrupt is not None
        assert pair.corrupt[slice(*pair.corrupt_spans["s2"])] == io


def test_ioi_abc_has_three_other_names(tokenizer: Any) -> None:
    for pair in made("ioi", tokenizer, corruption="abc", order="BABA"):
        assert pair.metadata["order"] == "BABA"
        assert pair.corrupt is not None
        others = {pair.corrupt[slice(*span)] for span in pair.corrupt_spans.values()}
        assert len(others) == 3
        assert others.isdisjoint({pair.answer.strip(), pair.wrong.strip()})


def test_ioi_names_are_held_out_and_can_be_given(gpt2: Any) -> None:
    for split, names in lexicon.IOI_NAMES_BY_SPLIT.items():
        tasks = datasets.task("ioi", gpt2, 30, split=split)
        assert {pair.answer.strip() for pair in tasks} <= set(names)
    mine = datasets.task("ioi", gpt2, 8, names=["Mary", "John", "Xqzzy"], templates=["{A}, {B}, {S} to"])
    assert {pair.answer for pair in mine} == {" Mary", " John"}
    assert [drop.item for drop in mine.dropped] == ["Xqzzy"]
    assert "tokens here" in mine.dropped[0].reason


# --- facts ---------------------------------------------------------------------------------------


def test_facts_are_true_and_never_mention_the_answer(tokenizer: Any) -> None:
    capital = {country.name: country.capital for country in lexicon.COUNTRIES}
    for pair in made("facts", tokenizer):
        assert pair.answer.strip() == capital[pair.metadata["country"]]
        assert pair.wrong.strip() == capital[pair.metadata["corrupt_country"]]
        assert pair.answer.strip().lower() not in pair.clean.lower()
        assert pair.span_text("subject") == pair.metadata["country"]
        assert pair.clean.replace(pair.metadata["country"], pair.metadata["corrupt_country"]) == pair.corrupt


def test_facts_cover_32_countries_before_repeating(gpt2: Any) -> None:
    tasks = datasets.task("facts", gpt2, 32)
    assert len({pair.metadata["country"] for pair in tasks}) == 32
    assert len({pair.metadata["template"] for pair in tasks}) == 2
    dropped = {drop.item: drop.reason for drop in tasks.dropped}
    assert "contains the answer" in dropped["Tunisia"]
    assert "tokens here" in dropped["Mongolia"]
    everything = datasets.TASKS["facts"](gpt2)
    assert len(everything) == 2 * len({pair.metadata["country"] for pair in everything})


@pytest.mark.parametrize("relation", ["continent", "language"])
def test_other_relations(gpt2: Any, relation: str) -> None:
    truth = {country.name: getattr(country, relation) for country in lexicon.COUNTRIES}
    tasks = datasets.task("facts", gpt2, 20, relation=relation)
    for pair in tasks:
        assert pair.answer.strip() == truth[pair.metadata["country"]]
        assert pair.wrong.strip() == truth[pair.metadata["corrupt_country"]]


def test_the_demo_prompt_is_possible(tokenizer: Any) -> None:
    tasks = made("facts", tokenizer, n=100, templates=["the capital of {COUNTRY} is"])
    assert "the capital of France is" in tasks.clean


# --- greater-than --------------------------------------------------------------------------------


def test_greater_than_answers_are_the_later_years(tokenizer: Any) -> None:
    tasks = made("greater_than", tokenizer)
    assert tasks.metric == "probability_difference"
    for pair in tasks:
        year, century = pair.metadata["year"], str(pair.metadata["century"])
        assert pair.span_text("year") == f"{year:02d}"
        assert pair.span_text("century") == century
        assert pair.clean.endswith(century)
        assert all(int(answer) > year for answer in pair.answers)
        assert all(int(wrong) <= year for wrong in pair.wrongs)
        assert len(pair.answers) + len(pair.wrongs) >= 90
        assert pair.answer == min(pair.answers)
        assert pair.wrong == max(pair.wrongs)
        assert pair.corrupt == pair.clean.replace(f"{century}{year:02d}", f"{century}01")


# --- induction -----------------------------------------------------------------------------------


def test_induction_copies_what_came_before(tokenizer: Any) -> None:
    for pair in made("induction", tokenizer, length=8):
        clean, corrupt = ids(tokenizer, pair.clean), ids(tokenizer, pair.corrupt)  # type: ignore[arg-type]
        again = pair.metadata["repeated"]
        assert len(clean) == 8 + again
        assert clean[:again] == clean[8:]
        assert len(set(clean[:8])) == 8
        answer = ids(tokenizer, pair.clean + pair.answer)[-1]
        wrong = ids(tokenizer, pair.clean + pair.wrong)[-1]
        assert clean[again] == answer
        assert corrupt == [*clean[:again], wrong, *clean[again + 1 :]]
        assert wrong not in clean
        assert pair.span_text("source") == pair.answer.strip()
        assert pair.span_text("previous") == pair.span_text("end")


def test_induction_draws_from_given_tokens(gpt2: Any) -> None:
    allowed = [gpt2.encode(f" {word}")[0] for word in (*lexicon.PLACES, *lexicon.OBJECTS)]
    tasks = datasets.task("induction", gpt2, 10, token_ids=allowed, length=5, repeated=2)
    assert {i for pair in tasks for i in ids(gpt2, pair.clean)} <= set(allowed)
    assert {pair.metadata["repeated"] for pair in tasks} == {2}


# --- sentiment and agreement ---------------------------------------------------------------------


def test_sentiment_follows_the_adjective(tokenizer: Any) -> None:
    positive = {"positive", "happy", "good"}
    tasks = made("sentiment", tokenizer)
    assert {pair.metadata["sentiment"] for pair in tasks} == {"positive", "negative"}
    for pair in tasks:
        good = pair.span_text("adjective") in lexicon.POSITIVE_ADJECTIVES
        assert (pair.answer.strip() in positive) == good
        assert (pair.wrong.strip() in positive) != good
        assert pair.corrupt is not None
        foil = pair.corrupt[slice(*pair.corrupt_spans["adjective"])]
        assert foil in (lexicon.NEGATIVE_ADJECTIVES if good else lexicon.POSITIVE_ADJECTIVES)


def test_articles_stay_grammatical(gpt2: Any) -> None:
    for split in lexicon.SPLITS:
        for pair in datasets.task("sentiment", gpt2, 80, split=split):
            for text in (pair.clean, pair.corrupt or ""):
                for first, second in pairwise(text.lower().split()):
                    assert first != "a" or second[0] not in "aeiou"


@pytest.mark.parametrize("attractor", ["opposite", "same"])
def test_agreement_is_with_the_subject(tokenizer: Any, attractor: str) -> None:
    tasks = made("agreement", tokenizer, n=16, attractor=attractor)
    singular = {pair[0] for pair in (*lexicon.NOUNS, *lexicon.ATTRACTORS)}
    assert {pair.metadata["number"] for pair in tasks} == {"singular", "plural"}
    for pair in tasks:
        one = pair.span_text("subject") in singular
        forms = (pair.answer.strip(), pair.wrong.strip())
        assert (forms if one else forms[::-1]) in lexicon.VERBS
        assert (pair.span_text("attractor") in singular) == (one if attractor == "same" else not one)


def test_agreement_without_attractor(gpt2: Any) -> None:
    tasks = datasets.task("agreement", gpt2, 10, split="train", attractor="none")
    assert all("attractor" not in pair.spans for pair in tasks)
    assert {pair.metadata["template"] for pair in tasks} <= {
        text for text in templates.AGREEMENT["train"] if "ATTRACTOR" not in text
    }
    with pytest.raises(InputError, match="No test template has no attractor"):
        datasets.task("agreement", gpt2, 10, attractor="none")


# --- refusals ------------------------------------------------------------------------------------


def test_refusal_shows_the_split(tiny: Any) -> None:
    with pytest.raises(InputError, match=r"greater_than.*endings are single tokens"):
        datasets.task("greater_than", tiny, 4)
    with pytest.raises(InputError, match="keeps 1 names as single tokens"):
        datasets.task("ioi", tiny, 4, names=["Bella", "Zed"])


def test_what_is_outside_the_vocabulary_is_dropped_by_name(tiny: Any) -> None:
    tasks = datasets.task("facts", tiny, 60)
    dropped = {drop.item: drop.reason for drop in tasks.dropped}
    assert "outside the vocabulary" in dropped["Poland"]
    assert "France" not in dropped
    assert "items dropped" in tasks.summary()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oio", {}, "Unknown task 'oio'"),
        ("ioi", {"split": "valid"}, "Unknown split 'valid'"),
        ("ioi", {"corruption": "cba"}, "Unknown corruption 'cba'"),
        ("ioi", {"colour": 1}, "has no option 'colour'"),
        ("ioi", {"templates": ["{A} and {X}"]}, "placeholder {X}"),
        ("ioi", {"templates": "The {A}"}, "not a list"),
        ("facts", {"relation": "river"}, "Unknown relation 'river'"),
        ("facts", {"countries": ["Atlantis"]}, "keeps 0 answers"),
        ("induction", {"length": 1}, "cannot be repeated"),
        ("sentiment", {"n": 0}, "0 prompt pairs"),
    ],
)
def test_bad_options_are_refused(gpt2: Any, name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        datasets.task(name, gpt2, **{"n": 4, **options})
    assert message in caught.value.message
    assert caught.value.hint
