"""Indirect object identification (Wang et al. 2022, arXiv:2211.00593).

"When Mary and John went to the store, John gave a book to" -> " Mary". The names come in the orders
ABBA (the indirect object first) and BABA (the subject first).

Corruptions:
- `swap` (default): the second subject is replaced by the indirect object ("..., Mary gave a book to"),
  so that one token changes and the answer flips: symmetric token replacement (Zhang & Nanda 2023,
  arXiv:2309.16042).
- `abc`: all three names become unrelated names ("When Tom and Anna ..., Lucy gave ..."), the paper's
  p_ABC: the answer is no longer determined.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from mech_interp.datasets.lexicon import IOI_NAMES_BY_SPLIT, OBJECTS, PLACES, Split
from mech_interp.datasets.pairs import PromptPair, Span, TaskSet
from mech_interp.datasets.tasks.common import (
    chosen_templates,
    collect,
    fill,
    generator,
    need,
    option,
    single_tokens,
)
from mech_interp.datasets.templates import IOI
from mech_interp.datasets.tokens import Tokenizer

SOURCE = "Wang et al. 2022, arXiv:2211.00593"


def ioi(
    tokenizer: Tokenizer,
    n: int = 64,
    seed: int = 0,
    split: Split = "test",
    *,
    order: str = "both",
    corruption: str = "swap",
    names: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> TaskSet:
    """IOI pairs; `order` is "ABBA", "BABA" or "both", `corruption` "swap" or "abc".

    Spans: `io`, `s1`, `s2`. Group: template x the two names.
    """
    rng = generator("ioi", seed, split)
    option(corruption, ("swap", "abc"), "corruption")
    orders = ("ABBA", "BABA") if option(order, ("both", "ABBA", "BABA"), "order") == "both" else (order,)
    kept, drops = single_tokens(tokenizer, names or IOI_NAMES_BY_SPLIT[split])
    need(len(kept), 2 if corruption == "swap" else 5, "names", drops)
    texts = chosen_templates(templates, IOI[split])
    candidates = _candidates(rng, texts, kept, orders, corruption)
    return collect("ioi", candidates, tokenizer, n, drops=drops, split=split, source=SOURCE)


def _candidates(
    rng: random.Random, templates: Sequence[str], names: Sequence[str], orders: Sequence[str], corruption: str
) -> Iterator[PromptPair]:
    """Templates in turn, with random names, places and objects."""
    index = 0
    while True:
        number = index % len(templates)
        order = orders[index // len(templates) % len(orders)]
        index += 1
        io, subject = rng.sample(list(names), 2)
        rest = {"PLACE": rng.choice(PLACES), "OBJECT": rng.choice(OBJECTS)}
        clean, spans = _text(templates[number], order, io, subject, subject, rest)
        if corruption == "swap":
            corrupt, other = _text(templates[number], order, io, subject, io, rest)
        else:
            a, b, c = rng.sample([name for name in names if name not in (io, subject)], 3)
            corrupt, other = _text(templates[number], order, a, b, c, rest)
        yield PromptPair(
            clean=clean,
            corrupt=corrupt,
            answer=f" {io}",
            wrong=f" {subject}",
            group=f"{templates[number]}|{'/'.join(sorted((io, subject)))}",
            spans=spans,
            corrupt_spans=other,
            metadata={"template": templates[number], "order": order, "corruption": corruption, **rest},
        )


def _text(
    template: str, order: str, io: str, subject: str, again: str, rest: dict[str, str]
) -> tuple[str, dict[str, Span]]:
    first, second = (io, subject) if order == "ABBA" else (subject, io)
    text, spans = fill(template, A=first, B=second, S=again, **rest)
    io_key, s_key = ("A", "B") if order == "ABBA" else ("B", "A")
    return text, {"io": spans[io_key], "s1": spans[s_key], "s2": spans["S"]}
