"""Factual recall about real countries, in the setting of causal tracing (Meng et al. 2022,
arXiv:2202.05262): a subject, a relation, a one-token object that the prompt never mentions.

"The capital of France is" -> " Paris". The corrupt prompt is the same template with another country of
the same token length, whose own answer is the wrong answer, so the answer flips with the subject.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mech_interp.datasets.lexicon import COUNTRIES, Country, Split
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks.common import chosen_templates, collect, fill, generator, need, option
from mech_interp.datasets.templates import FACTS, Relation
from mech_interp.datasets.tokens import Tokenizer, answer_ids, encode

SOURCE = "setting of Meng et al. 2022, arXiv:2202.05262"
RELATIONS: tuple[Relation, ...] = ("capital", "continent", "language")


def facts(
    tokenizer: Tokenizer,
    n: int | None = None,
    seed: int = 0,
    split: Split = "test",
    *,
    relation: str = "capital",
    countries: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> TaskSet:
    """Fact pairs about `relation` ("capital", "continent" or "language").

    Countries come first: the first pairs are about different countries, so that n = 32 has 32 of them.
    Without `n`, every template with every country. Span: `subject`. Group: template x country.
    """
    rng = generator("facts", seed, split)
    option(relation, RELATIONS, "relation")
    texts = chosen_templates(templates, FACTS[_relation(relation)][split])
    known, drops = _countries(tokenizer, relation, countries, texts)
    need(len(known), 2, f"answers to the relation {relation!r}", drops)
    rng.shuffle(known)
    return collect(
        "facts",
        _candidates(rng, tokenizer, texts, known, relation, drops),
        tokenizer,
        n,
        drops=drops,
        split=split,
        source=SOURCE,
    )


def _relation(name: str) -> Relation:
    return next(relation for relation in RELATIONS if relation == name)


def answer_of(country: Country, relation: str) -> str | None:
    """The object of a relation, None where there is no single one."""
    value = {"capital": country.capital, "continent": country.continent, "language": country.language}[
        relation
    ]
    return None if value is None else str(value)


def _countries(
    tokenizer: Tokenizer, relation: str, names: Sequence[str] | None, templates: Sequence[str]
) -> tuple[list[Country], list[Drop]]:
    """The countries whose answer is one token after a prompt that does not mention it."""
    wanted = None if names is None else set(names)
    unknown = sorted((wanted or set()) - {country.name for country in COUNTRIES})
    drops = [Drop(name, "the country is not in the list") for name in unknown]
    kept = []
    for country in COUNTRIES:
        answer = answer_of(country, relation)
        if answer is None or (wanted is not None and country.name not in wanted):
            continue
        prompts = [fill(template, COUNTRY=country.name)[0] for template in templates]
        found = answer_ids(tokenizer, prompts[0], [f" {answer}"])[0]
        if any(answer.lower() in prompt.lower() for prompt in prompts):
            drops.append(Drop(country.name, f"the prompt contains the answer {answer!r}"))
        elif isinstance(found, str):
            drops.append(Drop(country.name, found))
        else:
            kept.append(country)
    return kept, drops


def _candidates(
    rng: Random,
    tokenizer: Tokenizer,
    templates: Sequence[str],
    countries: Sequence[Country],
    relation: str,
    drops: list[Drop],
) -> Iterator[PromptPair]:
    """Every country under one template, then under the next."""
    length = {country.name: len(encode(tokenizer, f"In {country.name}")) for country in countries}
    for turn in range(len(templates)):
        for index, country in enumerate(countries):
            template = templates[(index + turn) % len(templates)]
            answer = answer_of(country, relation)
            others = [
                (other, wrong)
                for other in countries
                if (wrong := answer_of(other, relation)) not in (None, answer)
                and length[other.name] == length[country.name]
            ]
            if not others:
                drops.append(Drop(country.name, "no other country has a name of as many tokens"))
                continue
            other, wrong = rng.choice(others)
            clean, spans = fill(template, COUNTRY=country.name)
            corrupt, corrupt_spans = fill(template, COUNTRY=other.name)
            yield PromptPair(
                clean=clean,
                corrupt=corrupt,
                answer=f" {answer}",
                wrong=f" {wrong}",
                group=f"{template}|{country.name}",
                spans={"subject": spans["COUNTRY"]},
                corrupt_spans={"subject": corrupt_spans["COUNTRY"]},
                metadata={
                    "template": template,
                    "relation": relation,
                    "country": country.name,
                    "corrupt_country": other.name,
                },
            )
