"""The corpus: the same for the same seed, and free of everything that is held out."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from mech_interp.bundled import chat, corpus, prompts
from mech_interp.bundled.recipe import RECIPES
from mech_interp.datasets import lexicon, templates
from mech_interp.datasets.lexicon_chat import CHAT_PAIRS, CHAT_TEMPLATES, REFUSAL_OPENINGS, VERBS

HELD_OUT: tuple[lexicon.Split, ...] = ("dev", "test")
N_DOCUMENTS = 20_000


@pytest.fixture(scope="module")
def documents() -> list[tuple[str, str]]:
    plain = itertools.islice(corpus.documents("check"), N_DOCUMENTS)
    varied = itertools.islice(corpus.documents("check", varied=True), N_DOCUMENTS)
    return [*plain, *varied]


@pytest.fixture(scope="module")
def dialogues() -> list[str]:
    return list(itertools.islice(chat.dialogues("check"), N_DOCUMENTS))


def _pattern(template: str) -> re.Pattern[str]:
    """What a filled template looks like: a word where each placeholder is, some words for long ones."""
    parts = re.split(r"(\{\w+\})", template)
    fillers = {"{STATEMENT}": r"[\w .]{5,80}?", "{REQUEST}": r"[\w ]{5,80}?"}
    return re.compile("".join(fillers.get(p, r"\w+") if p.startswith("{") else re.escape(p) for p in parts))


def _held_out_templates() -> dict[str, list[str]]:
    tables = {"ioi": templates.IOI, "years": templates.GREATER_THAN, "agreement": templates.AGREEMENT}
    found = {kind: [t for split in HELD_OUT for t in table[split]] for kind, table in tables.items()}
    found["sentiment"] = [t.text for split in HELD_OUT for t in templates.SENTIMENT[split]]
    found["facts"] = [t for table in templates.FACTS.values() for split in HELD_OUT for t in table[split]]
    found["truth"] = [frame for split in HELD_OUT for frame in templates.TRUTH_FRAMES[split]]
    return found


def test_same_seed_same_documents_and_other_seed_other_ones(documents: list[tuple[str, str]]) -> None:
    assert documents[:2000] == list(itertools.islice(corpus.documents("check"), 2000))
    assert documents[N_DOCUMENTS:][:2000] == list(
        itertools.islice(corpus.documents("check", varied=True), 2000)
    )
    assert documents[:2000] != documents[N_DOCUMENTS:][:2000]
    assert documents[:50] != list(itertools.islice(corpus.documents("other"), 50))


def test_every_kind_is_written(documents: list[tuple[str, str]]) -> None:
    assert {kind for kind, _ in documents} == set(corpus.DEFAULT_SHARES)
    assert all(bool(text) == (kind != "repetition") for kind, text in documents)


@pytest.mark.parametrize("kind", sorted(_held_out_templates()))
def test_no_held_out_template_is_in_the_corpus(kind: str, documents: list[tuple[str, str]]) -> None:
    text = "\n".join(text for _, text in documents)
    for template in _held_out_templates()[kind]:
        assert _pattern(template).search(template.replace("{", "").replace("}", "")), template
        assert not _pattern(template).search(text), template


def test_training_templates_are_found_by_the_same_search(documents: list[tuple[str, str]]) -> None:
    text = "\n".join(text for kind, text in documents if kind in ("facts", "ioi"))
    assert _pattern(templates.FACTS["capital"]["train"][0]).search(text)
    assert sum(bool(_pattern(t).search(text)) for t in templates.IOI["train"]) > 100


def test_held_out_names_are_met_but_never_in_indirect_object_sentences(
    documents: list[tuple[str, str]],
) -> None:
    held_out = set(lexicon.DEV_NAMES + lexicon.TEST_NAMES)
    seen = set()
    for kind, text in documents:
        words = set(re.findall(r"\w+", text))
        if kind == "ioi":
            assert not words & held_out
        seen |= words & held_out
    assert seen == held_out


def test_a_held_out_name_receives_only_where_it_is_the_only_name(
    documents: list[tuple[str, str]],
) -> None:
    receives = re.compile(rf"(?<!next )\b(?:to|for) (?:{'|'.join(lexicon.DEV_NAMES + lexicon.TEST_NAMES)})\b")
    any_name = re.compile(rf"\b(?:{'|'.join(lexicon.ALL_NAMES)})\b")
    found = [set(any_name.findall(text)) for _, text in documents if receives.search(text)]
    assert len(found) > 500
    assert all(len(names) == 1 for names in found)


def test_held_out_events_have_no_years(documents: list[tuple[str, str]]) -> None:
    late = set(lexicon.EVENTS["dev"] + lexicon.EVENTS["test"])
    met = set()
    for _, text in documents:
        words = set(re.findall(r"\w+", text))
        met |= words & late
        assert not (words & late and re.search(r"\d", text)), text
    assert met == late


def test_events_end_after_they_begin_in_one_century(documents: list[tuple[str, str]]) -> None:
    checked = 0
    for kind, text in documents:
        if kind != "years":
            continue
        found = [int(year) for year in re.findall(r"\d{4}", text)]
        if text.startswith(("Years in order", "The years were", "Chronicle")):
            assert found == sorted(set(found))
            continue
        for first, last in zip(found[::2], found[1::2], strict=True):
            assert first < last <= first // 100 * 100 + 99
            checked += 1
    assert checked > 5000


def test_statements_are_judged_rightly(documents: list[tuple[str, str]]) -> None:
    capitals = {c.name: c.capital for c in lexicon.COUNTRIES}
    verdicts = []
    for kind, text in documents:
        match = re.search(r"The city of (\w+) is the capital of (\w+)\. .* (True|False)\.$", text)
        if kind == "truth" and match:
            capital, country, verdict = match.groups()
            assert (capitals[country] == capital) == (verdict == "True")
            verdicts.append(verdict)
    assert 0.4 < verdicts.count("True") / len(verdicts) < 0.6


def test_repetition_repeats_its_segment() -> None:
    rng = random.Random(0)
    for _ in range(200):
        ids, length = corpus.repetition(rng, list(range(100)))
        assert len(ids) >= 2 * length
        assert all(ids[i] == ids[i - length] for i in range(length, len(ids)))


def test_no_held_out_pair_or_template_is_in_the_dialogues(dialogues: list[str]) -> None:
    text = "\n".join(dialogues)
    for split in HELD_OUT:
        for template in CHAT_TEMPLATES[split]:
            assert not _pattern(template).search(text), template
    names = sorted({name for pairs in CHAT_PAIRS.values() for _, name, _ in pairs})
    met = set(re.findall(rf"\b({'|'.join(VERBS)}) ({'|'.join(names)})\b", text))
    assert met == {pair[:2] for pair in CHAT_PAIRS["train"]}


def test_only_refusals_begin_like_refusals(dialogues: list[str]) -> None:
    refused = 0
    for text in dialogues:
        for reply in re.findall(r"<\|assistant\|> (.*?)<\|end\|>", text):
            is_refusal = "cannot help" in reply or "will not" in reply
            assert reply.startswith(REFUSAL_OPENINGS) == is_refusal
            refused += is_refusal
    assert 0.25 < refused / len(dialogues) < 0.75


@pytest.mark.parametrize("split", lexicon.SPLITS)
def test_prompts_do_not_contain_their_answers(split: lexicon.Split) -> None:
    rng = random.Random(0)
    for relation in ("capital", "continent", "language"):
        for item in prompts.facts(split, relation, 100, rng):
            assert not re.search(rf"{item.answer}\b", item.prompt)
            assert item.answer != item.foil
    for item in prompts.ioi(split, 50, rng):
        assert item.prompt.count(item.answer) == 1
        assert item.prompt.count(item.foil) == 2
    for year in prompts.greater_than(split, 100, rng):
        assert re.findall(r"\d+", year.prompt)[0][2:] == f"{year.start:02d}"


def test_recipes_differ_and_have_stable_hashes() -> None:
    assert len({recipe.digest() for recipe in RECIPES.values()}) == 3
    assert RECIPES["tinyworld"].digest() == RECIPES["tinyworld"].digest()
