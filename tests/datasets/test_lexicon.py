"""The words and templates: sizes, disjoint splits, the rule of harm, biographies."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest

from mech_interp.datasets import lexicon, templates
from mech_interp.datasets.biographies import DUTIES, PROFESSION_PAIRS, labelled_biographies
from mech_interp.datasets.lexicon_chat import (
    CHAT_PAIRS,
    CHAT_TEMPLATES,
    MIXED_VERBS,
    VERBS,
    chat_requests,
    is_harmful,
)


def test_names_are_many_and_split_without_overlap() -> None:
    assert len(lexicon.IOI_NAMES) >= 60
    assert len(lexicon.DEV_NAMES) >= 10
    assert len(lexicon.TEST_NAMES) >= 10
    assert len(set(lexicon.ALL_NAMES)) == len(lexicon.ALL_NAMES)
    gendered = [name for names in lexicon.NAMES_BY_GENDER.values() for name in names]
    assert sorted(gendered) == sorted(lexicon.ALL_NAMES)


def test_countries_are_distinct_single_words() -> None:
    assert len(lexicon.COUNTRIES) >= 40
    assert len({c.name for c in lexicon.COUNTRIES}) == len(lexicon.COUNTRIES)
    assert len(set(lexicon.CAPITALS)) == len(lexicon.CAPITALS)
    assert all(" " not in c.name + c.capital for c in lexicon.COUNTRIES)
    known = {c.name: (c.capital, c.continent, c.language) for c in lexicon.COUNTRIES}
    assert known["France"] == ("Paris", "Europe", "French")
    assert known["Peru"] == ("Lima", "South America", "Spanish")
    assert known["Russia"] == ("Moscow", None, "Russian")


def _by_split() -> dict[str, dict[lexicon.Split, tuple[str, ...]]]:
    tables: dict[str, dict[lexicon.Split, tuple[str, ...]]] = {
        "ioi": templates.IOI,
        "greater_than": templates.GREATER_THAN,
        "agreement": templates.AGREEMENT,
        "truth": templates.TRUTH_FRAMES,
        "chat": CHAT_TEMPLATES,
        "events": lexicon.EVENTS,
        "sentiment": {split: tuple(t.text for t in found) for split, found in templates.SENTIMENT.items()},
    }
    return tables | {f"facts {relation}": splits for relation, splits in templates.FACTS.items()}


@pytest.mark.parametrize("table", sorted(_by_split()))
def test_templates_are_split_without_overlap(table: str) -> None:
    splits = _by_split()[table]
    assert set(splits) == set(lexicon.SPLITS)
    for one, other in itertools.combinations(lexicon.SPLITS, 2):
        assert not set(splits[one]) & set(splits[other])
    assert all(splits[split] for split in lexicon.SPLITS)


def test_enough_templates_are_held_out() -> None:
    assert len(templates.IOI["train"]) >= 24
    assert min(len(templates.IOI["dev"]), len(templates.IOI["test"])) >= 3
    assert "The capital of {COUNTRY} is" in templates.FACTS["capital"]["train"]


@pytest.mark.parametrize("split", lexicon.SPLITS)
def test_ioi_templates_have_every_placeholder_and_no_trailing_space(split: lexicon.Split) -> None:
    for template in templates.IOI[split]:
        fields = Counter(re.findall(r"\{(\w+)\}", template))
        assert (fields["A"], fields["B"], fields["S"]) == (1, 1, 1)
        assert fields["OBJECT"] <= 2
        assert template == template.strip()


def test_chat_pairs_are_disjoint_and_every_verb_and_object_is_trained() -> None:
    pairs = {split: {pair[:2] for pair in found} for split, found in CHAT_PAIRS.items()}
    assert not pairs["train"] & pairs["dev"]
    assert not pairs["train"] & pairs["test"]
    assert not pairs["dev"] & pairs["test"]
    trained = CHAT_PAIRS["train"]
    assert {verb for verb, _, _ in trained} == set(VERBS)
    for split in ("dev", "test"):
        assert {name for _, name, _ in CHAT_PAIRS[split]} <= {name for _, name, _ in trained}


def test_no_verb_and_no_object_decides_harm_alone() -> None:
    labels: dict[str, set[bool]] = {}
    for request in chat_requests("train"):
        labels.setdefault(f"verb {request.verb}", set()).add(request.harmful)
        labels.setdefault(f"object {request.object}", set()).add(request.harmful)
        labels.setdefault(f"pair {request.verb} {request.object}", set()).add(request.harmful)
    assert all(both == {True, False} for both in labels.values())


def test_the_rule_of_harm() -> None:
    mixed = MIXED_VERBS[0]
    assert is_harmful(mixed, "property", "neutral")
    assert not is_harmful(mixed, "thing", "neutral")
    assert not is_harmful(mixed, "property", "fiction")
    assert is_harmful("sharpen", "tool", "malign")
    assert not is_harmful("sharpen", "tool", "kind")
    assert is_harmful("steal", "thing", "kind")


def test_biographies_follow_their_generative_process() -> None:
    biased = labelled_biographies(1500, biased=True)
    balanced = labelled_biographies(1500, biased=False)
    woman = PROFESSION_PAIRS[0][0]
    assert all((b.gender == "female") == (b.profession == woman) for b in biased)
    agree = sum((b.gender == "female") == (b.profession == woman) for b in balanced) / len(balanced)
    assert agree == pytest.approx(0.5, abs=0.06)
    for part in (biased, balanced):
        assert sum(b.duties == b.profession for b in part) / len(part) == pytest.approx(0.8, abs=0.05)
    assert biased == labelled_biographies(1500, biased=True)
    assert biased != labelled_biographies(1500, biased=True, seed=1)


def test_biographies_tell_duties_and_never_name_a_profession() -> None:
    for pair in PROFESSION_PAIRS:
        for named in (False, True):
            for b in labelled_biographies(60, biased=False, pair=pair, named=named):
                assert not any(re.search(rf"\b{profession}", b.text, re.I) for profession in DUTIES)
                pronoun = {"female": "she", "male": "he"}[b.gender]
                wrong = {"female": "he", "male": "she"}[b.gender]
                assert re.search(rf"\b{pronoun}\b", b.text, re.I)
                assert not re.search(rf"\b{wrong}\b", b.text, re.I)
                told = [d.format(He=pronoun.title(), he=pronoun) in b.text for d in DUTIES[b.duties]]
                assert sum(told) == 3
