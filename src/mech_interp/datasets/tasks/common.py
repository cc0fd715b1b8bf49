"""What the task generators share: filling templates with spans, choosing words, collecting pairs."""

from __future__ import annotations

import random
import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from mech_interp.datasets.lexicon import SPLITS, Split
from mech_interp.datasets.pairs import Drop, MetricName, PromptPair, Span, TaskSet, keep_usable
from mech_interp.datasets.tokens import Tokenizer, answer_ids
from mech_interp.errors import InputError, nearest

_ATTEMPTS_PER_PAIR = 20


def fill(template: str, **words: str) -> tuple[str, dict[str, Span]]:
    """The template with its placeholders filled, and the span of each by name."""
    text, spans = "", {}
    for literal, name, _, _ in string.Formatter().parse(template):
        text += literal
        if name is None:
            continue
        if name not in words:
            known = ", ".join("{" + key + "}" for key in words)
            raise InputError(
                f"Template {template!r} has the placeholder {{{name}}}.", f"This task has {known}."
            )
        spans[name] = (len(text), len(text) + len(words[name]))
        text += words[name]
    return text, spans


def generator(name: str, seed: int, split: Split) -> random.Random:
    """Random numbers that depend on task, seed and split alone."""
    if split not in SPLITS:
        raise InputError(f"Unknown split {split!r}.", f"Use one of: {', '.join(SPLITS)}.")
    return random.Random(f"{name}:{seed}:{split}")


def option(value: str, allowed: Sequence[str], what: str) -> str:
    """A checked choice."""
    if value not in allowed:
        raise InputError(
            f"Unknown {what} {value!r}.", nearest(value, allowed) or f"Use {', '.join(allowed)}."
        )
    return value


def chosen_templates(templates: Sequence[str] | None, default: Sequence[str]) -> tuple[str, ...]:
    """The caller's templates or the split's own."""
    if templates is not None and (isinstance(templates, str) or not templates):
        raise InputError("The templates are not a list of texts.", "Give a list with at least one template.")
    return tuple(default if templates is None else templates)


def single_tokens(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[str], list[Drop]]:
    """The words that are one token after a space, and the others with their split."""
    found = answer_ids(tokenizer, "The", [f" {word}" for word in words])
    kept = [word for word, one in zip(words, found, strict=True) if not isinstance(one, str)]
    drops = [Drop(word, one) for word, one in zip(words, found, strict=True) if isinstance(one, str)]
    return kept, drops


def need(count: int, least: int, what: str, drops: Sequence[Drop]) -> None:
    """Refuse a tokenizer that leaves too few words to build the task."""
    if count < least:
        example = f": {drops[0].reason}" if drops else ""
        raise InputError(
            f"This tokenizer keeps {count} {what} as single tokens, and the task needs {least}{example}.",
            "Use another model, or give your own words and templates.",
        )


def collect(
    name: str,
    candidates: Iterable[PromptPair],
    tokenizer: Tokenizer,
    n: int | None,
    *,
    drops: Sequence[Drop] = (),
    split: str = "",
    source: str = "",
    metric: MetricName = "logit_difference",
) -> TaskSet:
    """The task set of the first `n` usable, distinct candidates; refused when there is none."""
    if n is not None and n < 1:
        raise InputError(f"{n} prompt pairs were asked for.", "Ask for at least one.")
    stream = _distinct(candidates)
    if n is not None:
        stream = islice(stream, _ATTEMPTS_PER_PAIR * n + 200)
    kept, dropped = keep_usable(stream, tokenizer, n)
    if not kept:
        reason = dropped[0].reason if dropped else drops[0].reason if drops else "there is no candidate"
        raise InputError(
            f"No item of the task {name!r} suits this tokenizer: {reason}.",
            "Use another task, or another model.",
        )
    return TaskSet(name, tuple(kept), (*drops, *dropped), metric, split, source)


def _distinct(pairs: Iterable[PromptPair]) -> Iterator[PromptPair]:
    """Every prompt once; ends after many repetitions in a row, when a random stream is exhausted."""
    seen: set[tuple[str, str | None, str]] = set()
    stale = 0
    for pair in pairs:
        key = (pair.clean, pair.corrupt, pair.answer)
        stale = stale + 1 if key in seen else 0
        if stale > 500:
            return
        if key not in seen:
            seen.add(key)
            yield pair
