"""Prompt pairs made ready for a model: aligned token batches, answers, named positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mech_interp.backends.metrics import (
    KLDivergence,
    LogitDifference,
    Metric,
    Probability,
    ProbabilityDifference,
)
from mech_interp.backends.protocol import InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.datasets.tokens import token_span
from mech_interp.errors import InputError, nearest
from mech_interp.methods.common import answer_id, token_text

Position = int | str
NamePositions = Callable[[PromptPair, list[str]], Mapping[str, Sequence[int]]]
"""A user's function: (pair, its tokens as text) to named positions, the same names for every pair."""
Positions = str | Sequence[Position] | NamePositions
METRICS = ("logit_difference", "probability", "probability_difference", "kl")


@dataclass(frozen=True)
class Paired:
    """Pairs tokenised: prompt i of `clean` and of `corrupt` have the same number of tokens."""

    model: InstrumentedModel
    pairs: tuple[PromptPair, ...]
    clean: Tokens
    corrupt: Tokens
    name: str
    default_metric: str

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def groups(self) -> list[str]:
        """The bootstrap group of every pair."""
        return [pair.group for pair in self.pairs]

    def answers(self, which: str) -> list[int]:
        """Token id of every pair's `answer` or `wrong`, after its clean prompt."""
        return [answer_id(self.model, pair.clean, getattr(pair, which)) for pair in self.pairs]

    def metric(self, metric: str | Metric | None) -> tuple[str, Metric]:
        """A metric by name (None: the task's own), read at the last token; or the one given."""
        if metric is not None and not isinstance(metric, str):
            return type(metric).__name__, metric
        name = metric or self.default_metric
        if name == "logit_difference":
            return name, LogitDifference(tuple(self.answers("answer")), tuple(self.answers("wrong")))
        if name == "probability":
            return name, Probability(tuple(self.answers("answer")))
        if name == "probability_difference":
            return name, ProbabilityDifference(self._sets("answers"), self._sets("wrongs"))
        if name == "kl":
            logits = self.model.forward(self.clean, logits="last").logits
            assert logits is not None
            return name, KLDivergence(logits)
        raise InputError(
            f"There is no metric {name!r}.", nearest(name, METRICS) or f"Metrics: {', '.join(METRICS)}."
        )

    def _sets(self, which: str) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(answer_id(self.model, pair.clean, text) for text in getattr(pair, which))
            for pair in self.pairs
        )

    def token_texts(self, pair: int) -> list[str]:
        """The clean prompt's tokens as text."""
        return [token_text(self.model, i) for i in self.clean.row(pair)]

    def resolve(self, positions: Positions | None) -> dict[str, list[tuple[int, ...]]]:
        """Named positions: label to the columns it means in every pair.

        "all": each position of prompts of one common length; integers (negative from the end); names:
        a span of the pairs ("subject"), its first or last token ("subject_first", "subject_last"), or
        "last" for the last token; or a function that names positions.

        Raises:
            InputError: for positions that a prompt lacks, unknown names, or lengths that differ.
        """
        if callable(positions):
            return self._named(positions)
        if positions is None or positions == "all":
            return self._every()
        wanted: list[Position] = [positions] if isinstance(positions, str | int) else list(positions)
        if not wanted:
            raise InputError("No positions were given.", 'Give "all", integers or names.')
        found: dict[str, list[tuple[int, ...]]] = {}
        for one in wanted:
            columns = [self._columns(pair, one) for pair in range(len(self))]
            found[str(one)] = columns
        return found

    def _every(self) -> dict[str, list[tuple[int, ...]]]:
        lengths = sorted(set(self.clean.lengths))
        if len(lengths) > 1:
            raise InputError(
                f"The prompts have {lengths[0]} to {lengths[-1]} tokens, so absolute positions do not align.",
                'Give positions counted from the end (-1, -2, …) or names such as "subject_last".',
            )
        texts = [self.token_texts(pair) for pair in range(len(self))]
        found: dict[str, list[tuple[int, ...]]] = {}
        for column in range(lengths[0]):
            here = {row[column] for row in texts}
            found[f"{column} {here.pop() if len(here) == 1 else '…'}"] = [(column,)] * len(self)
        return found

    def _columns(self, pair: int, position: Position) -> tuple[int, ...]:
        if isinstance(position, int | np.integer):
            return (self.clean.position(pair, int(position)),)
        if position == "last":
            return (self.clean.lengths[pair] - 1,)
        item = self.pairs[pair]
        span, _, end = position.rpartition("_")
        if position in item.spans:
            return self._span(item, position)
        if end in ("first", "last") and span in item.spans:
            columns = self._span(item, span)
            return columns[:1] if end == "first" else columns[-1:]
        known = ["last", *item.spans]
        raise InputError(
            f"Pair {pair} has no position named {position!r}.",
            nearest(position, known) or f"It has: {', '.join(known)}.",
        )

    def _span(self, item: PromptPair, name: str) -> tuple[int, ...]:
        clean = token_span(self.model.tokenizer, item.clean, item.spans[name])
        if item.corrupt is not None and name in item.corrupt_spans:
            corrupt = token_span(self.model.tokenizer, item.corrupt, item.corrupt_spans[name])
            if clean != corrupt:
                raise InputError(
                    f"{name!r} covers tokens {clean} of {item.clean!r} but {corrupt} of {item.corrupt!r}.",
                    "Use pairs whose named spans line up.",
                )
        return tuple(range(*clean))

    def _named(self, function: NamePositions) -> dict[str, list[tuple[int, ...]]]:
        found: dict[str, list[tuple[int, ...]]] = {}
        for pair, item in enumerate(self.pairs):
            named = function(item, self.token_texts(pair))
            if pair and set(named) != set(found):
                raise InputError(
                    f"Pair {pair} names the positions {sorted(named)}, pair 0 {sorted(found)}.",
                    "Name the same positions for every pair.",
                )
            for label, columns in named.items():
                checked = tuple(self.clean.position(pair, column) for column in columns)
                found.setdefault(str(label), []).append(checked)
        if not found:
            raise InputError("The function names no positions.", "Return at least one name.")
        return found


def prepare(model: InstrumentedModel, pairs: TaskSet | Sequence[PromptPair]) -> Paired:
    """Tokenise pairs and check that they line up.

    Raises:
        InputError: for no pairs, a pair without a corrupt prompt, or unequal token lengths.
    """
    items = tuple(pairs)
    if not items:
        raise InputError("There are no prompt pairs.", "Give at least one pair.")
    for number, pair in enumerate(items):
        if pair.corrupt is None:
            raise InputError(
                f"Pair {number} ({pair.clean!r}) has no corrupt prompt.", "Patching needs one per pair."
            )
    clean = model.tokens([pair.clean for pair in items])
    corrupt = model.tokens([pair.corrupt or "" for pair in items])
    for number, (a, b) in enumerate(zip(clean.lengths, corrupt.lengths, strict=True)):
        if a != b:
            raise InputError(
                f"Pair {number} does not line up: its clean prompt has {a} tokens and its corrupt one {b}.",
                "Use prompts with equally many tokens.",
            )
    if isinstance(pairs, TaskSet):
        return Paired(model, items, clean, corrupt, pairs.name, pairs.metric)
    return Paired(model, items, clean, corrupt, "pairs", "logit_difference")


def donors(pairs: Sequence[PromptPair], lengths: Sequence[int], seed: int) -> list[int | None]:
    """For each pair the number of an unrelated one: as many tokens, another group, another answer.

    Another answer is preferred, another group required; None where there is no such pair.
    """
    generator = np.random.default_rng(seed)
    chosen: list[int | None] = []
    for i, pair in enumerate(pairs):
        fit = [j for j, o in enumerate(pairs) if lengths[j] == lengths[i] and o.group != pair.group]
        better = [j for j in fit if pairs[j].answer != pair.answer]
        pool = better or fit
        chosen.append(pool[int(generator.integers(len(pool)))] if pool else None)
    return chosen
