"""Subject-verb agreement across an attractor (Linzen et al. 2016, TACL 4:521; Finlayson et al. 2021,
arXiv:2106.06087).

"The farmer near the trees" -> " is", not " are". The corrupt prompt has the subject in the other number
(same token length), so the answer flips; the attractor stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mech_interp.datasets.lexicon import ATTRACTORS, NOUNS, VERBS, Split
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks.common import chosen_templates, collect, fill, generator, need, option
from mech_interp.datasets.templates import AGREEMENT
from mech_interp.datasets.tokens import Tokenizer, answer_ids
from mech_interp.errors import InputError

SOURCE = "Linzen et al. 2016, TACL 4:521; Finlayson et al. 2021, arXiv:2106.06087"


def agreement(
    tokenizer: Tokenizer,
    n: int = 64,
    seed: int = 0,
    split: Split = "test",
    *,
    attractor: str = "opposite",
    verbs: Sequence[tuple[str, str]] | None = None,
    templates: Sequence[str] | None = None,
) -> TaskSet:
    """Agreement pairs, singular and plural subjects in turn.

    `attractor`: its number is the "opposite" of the clean subject's, the "same", "both" at random, or
    there is "none" (templates without one). Spans: `subject`, and `attractor` where there is one.
    Group: template x subject noun.
    """
    rng = generator("agreement", seed, split)
    option(attractor, ("opposite", "same", "both", "none"), "attractor")
    texts = chosen_templates(templates, AGREEMENT[split])
    fitting = [text for text in texts if ("{ATTRACTOR}" in text) != (attractor == "none")]
    if not fitting:
        raise InputError(
            f"No {split} template has {'no' if attractor == 'none' else 'an'} attractor.",
            "Use another split or attractor, or give templates.",
        )
    usable, drops = _verbs(tokenizer, verbs or VERBS)
    need(len(usable), 1, "verbs in both numbers", drops)
    candidates = _candidates(rng, fitting, usable, attractor)
    return collect("agreement", candidates, tokenizer, n, drops=drops, split=split, source=SOURCE)


def _verbs(
    tokenizer: Tokenizer, verbs: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[Drop]]:
    """The verbs whose two forms are single tokens."""
    kept, drops = [], []
    for pair in verbs:
        found = answer_ids(tokenizer, "The dog", [f" {form}" for form in pair])
        problem = next((one for one in found if isinstance(one, str)), None)
        if problem is None:
            kept.append(pair)
        else:
            drops.append(Drop("/".join(pair), problem))
    return kept, drops


def _candidates(
    rng: Random, templates: Sequence[str], verbs: Sequence[tuple[str, str]], attractor: str
) -> Iterator[PromptPair]:
    """Templates in turn, with random nouns and verbs."""
    index = 0
    while True:
        template = templates[index % len(templates)]
        plural = index // len(templates) % 2
        index += 1
        noun, verb = rng.choice(NOUNS), rng.choice(list(verbs))
        other = {"opposite": 1 - plural, "same": plural}.get(attractor, rng.randint(0, 1))
        words = {"ATTRACTOR": rng.choice(ATTRACTORS)[other]}
        clean, spans = fill(template, SUBJECT=noun[plural], **words)
        corrupt, corrupt_spans = fill(template, SUBJECT=noun[1 - plural], **words)
        yield PromptPair(
            clean=clean,
            corrupt=corrupt,
            answer=f" {verb[plural]}",
            wrong=f" {verb[1 - plural]}",
            group=f"{template}|{noun[0]}",
            spans={name.lower(): span for name, span in spans.items()},
            corrupt_spans={name.lower(): span for name, span in corrupt_spans.items()},
            metadata={
                "template": template,
                "number": "plural" if plural else "singular",
                "attractor": None if attractor == "none" else "plural" if other else "singular",
            },
        )
