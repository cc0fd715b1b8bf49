"""Greater-than years (Hanna et al. 2023, arXiv:2305.00586).

"The war lasted from the year 1743 to the year 17" -> any two digits above 43. The metric is the
probability difference sum p(y > YY) - sum p(y <= YY) over two-digit tokens. The corrupt prompt starts in
the year 01 of the same century, after which nearly every end year is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from mech_interp.datasets.lexicon import CENTURIES, EVENTS, START_YEARS, Split
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks.common import chosen_templates, collect, fill, generator
from mech_interp.datasets.templates import GREATER_THAN
from mech_interp.datasets.tokens import Tokenizer, answer_ids, encode, shown, token_span

SOURCE = "Hanna et al. 2023, arXiv:2305.00586"
_YEARS = tuple(f"{year:02d}" for year in range(100))
_LEAST = 90  # of the hundred two-digit endings, at least so many must be single tokens


def greater_than(
    tokenizer: Tokenizer,
    n: int = 64,
    seed: int = 0,
    split: Split = "test",
    *,
    events: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
) -> TaskSet:
    """Greater-than pairs; `answers` and `wrongs` are the two-digit endings above and up to the start.

    `answer` and `wrong` are the nearest ones on either side. Endings that merge with the century into
    one token are in neither set. Spans: `event`, `century`, `year`. Group: template x event x century.
    """
    rng = generator("greater_than", seed, split)
    texts = chosen_templates(templates, GREATER_THAN[split])
    drops: list[Drop] = []
    candidates = _candidates(rng, tokenizer, texts, events or EVENTS[split], drops)
    pairs = collect(
        "greater_than",
        candidates,
        tokenizer,
        n,
        drops=drops,
        split=split,
        source=SOURCE,
        metric="probability_difference",
    )
    return pairs


def _candidates(
    rng: Random, tokenizer: Tokenizer, templates: Sequence[str], events: Sequence[str], drops: list[Drop]
) -> Iterator[PromptPair]:
    """Random years in the centuries whose endings are single tokens."""
    usable = {}
    for century in CENTURIES:
        endings = _endings(tokenizer, templates[0], events[0], century)
        if isinstance(endings, str):
            drops.append(Drop(f"years {century}00 to {century}99", endings))
        else:
            usable[century] = endings
    index = 0
    while usable:
        template = templates[index % len(templates)]
        index += 1
        century, start, event = rng.choice(list(usable)), rng.choice(START_YEARS), rng.choice(list(events))
        above = tuple(year for year in usable[century] if int(year) > start)
        below = tuple(year for year in usable[century] if int(year) <= start)
        words = {"EVENT": event, "XX": str(century)}
        clean, spans = _filled(template, f"{start:02d}", words)
        corrupt, corrupt_spans = _filled(template, "01", words)
        if not above or not below or not _year_is_a_token(tokenizer, clean, spans["year"]):
            continue
        if not _year_is_a_token(tokenizer, corrupt, corrupt_spans["year"]):
            continue
        yield PromptPair(
            clean=clean,
            corrupt=corrupt,
            answer=above[0],
            wrong=below[-1],
            answers=above,
            wrongs=below,
            group=f"{template}|{event}|{century}",
            spans=spans,
            corrupt_spans=corrupt_spans,
            metadata={"template": template, "event": event, "century": century, "year": start},
        )


def _filled(template: str, year: str, words: dict[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """The prompt; the century that stands last is the one being continued, the first has the year."""
    text, spans = fill(template, YY=year, **words)
    start = spans["YY"][0] - len(words["XX"])
    return text, {"event": spans["EVENT"], "century": (start, spans["YY"][0]), "year": spans["YY"]}


def _endings(tokenizer: Tokenizer, template: str, event: str, century: int) -> list[str] | str:
    """The two-digit endings that are single tokens after this century, or why it cannot be used."""
    prompt, _ = _filled(template, "34", {"EVENT": event, "XX": str(century)})
    found = answer_ids(tokenizer, prompt, _YEARS)
    good = [year for year, one in zip(_YEARS, found, strict=True) if not isinstance(one, str)]
    if len(good) >= _LEAST:
        return good
    ids = encode(tokenizer, f" {century}34")
    return f"only {len(good)} of 100 endings are single tokens ({century}34 is {shown(tokenizer, ids)})"


def _year_is_a_token(tokenizer: Tokenizer, text: str, span: tuple[int, int]) -> bool:
    """Whether century and start year are different tokens and the year is one."""
    year = token_span(tokenizer, text, span, special=False)
    century = token_span(tokenizer, text, (span[0] - 1, span[0]), special=False)
    return year[1] - year[0] == 1 and century[1] <= year[0]
