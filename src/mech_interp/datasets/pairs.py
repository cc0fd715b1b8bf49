"""Prompt pairs: a clean prompt, its counterfactual, the answers that tell them apart."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from mech_interp.datasets.tokens import Tokenizer, answer_ids, encode, prompt_problem, shown
from mech_interp.errors import InputError

Span = tuple[int, int]
MetricName = Literal["logit_difference", "probability_difference"]


class Drop(NamedTuple):
    """An item that a tokenizer could not represent, and why."""

    item: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class PromptPair:
    """One item of a task.

    Attributes:
        clean: the prompt; its right answer is `answer`.
        corrupt: the same prompt with the counterfactual words, equally many tokens; None without one.
        answer: right continuation of `clean`, with its leading space.
        wrong: the foil; where the corruption flips the answer, the right continuation of `corrupt`.
        answers, wrongs: sets of continuations for probability metrics; `(answer,)` and `(wrong,)` by
            default.
        group: template x item; the bootstrap resamples groups.
        spans: named character spans [start, stop) of `clean`, such as "subject".
        corrupt_spans: the same names in `corrupt`.
        metadata: plain facts about the item (template, order, country).
    """

    clean: str
    answer: str
    wrong: str
    corrupt: str | None = None
    answers: tuple[str, ...] = ()
    wrongs: tuple[str, ...] = ()
    group: str = ""
    spans: Mapping[str, Span] = field(default_factory=dict)
    corrupt_spans: Mapping[str, Span] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, single in (("answers", self.answer), ("wrongs", self.wrong)):
            object.__setattr__(self, name, tuple(getattr(self, name)) or (single,))
        for name, text in (("spans", self.clean), ("corrupt_spans", self.corrupt or "")):
            spans = {str(key): (int(low), int(high)) for key, (low, high) in getattr(self, name).items()}
            for key, (low, high) in spans.items():
                if not 0 <= low < high <= len(text):
                    raise InputError(f"Span {key!r} ({low}, {high}) lies outside {text!r}.", "Correct it.")
            object.__setattr__(self, name, spans)
        object.__setattr__(self, "metadata", dict(self.metadata))
        if not self.group:
            object.__setattr__(self, "group", self.clean)

    def __hash__(self) -> int:
        return hash((self.clean, self.corrupt, self.answer, self.wrong))

    def span_text(self, name: str) -> str:
        """The words of `clean` under a named span."""
        if name not in self.spans:
            known = ", ".join(self.spans) or "none"
            raise InputError(f"This pair has no span {name!r}.", f"It has: {known}.")
        low, high = self.spans[name]
        return self.clean[low:high]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        record = dataclasses.asdict(dataclasses.replace(self, metadata=dict(self.metadata)))
        for name in ("spans", "corrupt_spans"):
            record[name] = {key: list(span) for key, span in record[name].items()}
        record["answers"], record["wrongs"] = list(self.answers), list(self.wrongs)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> PromptPair:
        """The inverse of `to_dict`; unknown or missing fields are refused."""
        names = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(record) - names)
        missing = [name for name in ("clean", "answer", "wrong") if not isinstance(record.get(name), str)]
        if unknown or missing:
            problem = f"unknown field {unknown[0]!r}" if unknown else f"no text field {missing[0]!r}"
            raise InputError(f"A prompt pair has {problem}.", f"Its fields are: {', '.join(sorted(names))}.")
        try:
            return cls(**record)
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"A prompt pair does not read: {error}.", "Correct the field.") from error


@dataclass(frozen=True)
class TaskSet:
    """Prompt pairs of one task with what was left out.

    `metric` names the natural metric: the logit difference answer - wrong, or the probability
    difference sum(answers) - sum(wrongs).
    """

    name: str
    pairs: tuple[PromptPair, ...]
    dropped: tuple[Drop, ...] = ()
    metric: MetricName = "logit_difference"
    split: str = ""
    source: str = ""

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[PromptPair]:
        return iter(self.pairs)

    @overload
    def __getitem__(self, index: int) -> PromptPair: ...

    @overload
    def __getitem__(self, index: slice) -> TaskSet: ...

    def __getitem__(self, index: int | slice) -> PromptPair | TaskSet:
        if isinstance(index, slice):
            return dataclasses.replace(self, pairs=self.pairs[index])
        return self.pairs[index]

    @property
    def clean(self) -> list[str]:
        """The clean prompts."""
        return [pair.clean for pair in self.pairs]

    @property
    def corrupt(self) -> list[str]:
        """The corrupt prompts; refused when a pair has none."""
        missing = [pair.clean for pair in self.pairs if pair.corrupt is None]
        if missing:
            raise InputError(f"{missing[0]!r} has no corrupt prompt.", "This experiment needs one per pair.")
        return [pair.corrupt for pair in self.pairs if pair.corrupt is not None]

    @property
    def groups(self) -> list[str]:
        """The bootstrap group of every pair."""
        return [pair.group for pair in self.pairs]

    def content_hash(self) -> str:
        """SHA-256 of the name, metric and pairs (order included; what was dropped is not)."""
        content = {"name": self.name, "metric": self.metric, "pairs": [pair.to_dict() for pair in self.pairs]}
        text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def summary(self) -> str:
        """One line: how many kept, how many dropped, the commonest reasons."""
        groups = len(set(self.groups))
        text = f"{self.name}: {len(self.pairs)} pairs in {groups} groups"
        if not self.dropped:
            return f"{text}, none dropped"
        kinds = Counter(_kind(drop.reason) for drop in self.dropped)
        reasons = "; ".join(f"{count} because {reason}" for reason, count in kinds.most_common(3))
        return f"{text}, {len(self.dropped)} items dropped ({reasons})"

    def split_groups(self, fraction: float = 0.5, *, seed: int = 0) -> tuple[TaskSet, TaskSet]:
        """Two sets that share no group; the first has about `fraction` of the groups."""
        names = list(dict.fromkeys(self.groups))
        if not 0 < fraction < 1 or len(names) < 2:
            raise InputError(
                f"{len(names)} group(s) cannot be split at {fraction}.", "Use 2 groups or more and 0 < f < 1."
            )
        random.Random(seed).shuffle(names)
        first = set(names[: min(max(round(fraction * len(names)), 1), len(names) - 1)])
        kept = tuple(pair for pair in self.pairs if pair.group in first)
        rest = tuple(pair for pair in self.pairs if pair.group not in first)
        return dataclasses.replace(self, pairs=kept), dataclasses.replace(self, pairs=rest)

    def save(self, path: str | Path) -> None:
        """Write JSON lines: one header, then one pair per line. `load_pairs` reads it."""
        header = {"task_set": {"name": self.name, "metric": self.metric, "split": self.split}}
        header["task_set"]["source"] = self.source
        records: list[Any] = [header, *(pair.to_dict() for pair in self.pairs)]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def pair_problem(tokenizer: Tokenizer, pair: PromptPair) -> str | None:
    """Why this tokenizer cannot represent a pair, or None.

    Needs: both prompts inside the vocabulary and of equal token length, every answer one token after
    the clean prompt (and the single ones after the corrupt prompt, with the same id), answers and wrong
    answers different.
    """
    prompts = [pair.clean] if pair.corrupt is None else [pair.clean, pair.corrupt]
    for prompt in prompts:
        problem = prompt_problem(tokenizer, prompt)
        if problem:
            return problem
    if pair.corrupt is not None:
        clean, corrupt = encode(tokenizer, pair.clean), encode(tokenizer, pair.corrupt)
        if len(clean) != len(corrupt):
            return (
                f"the clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}: "
                f"{shown(tokenizer, clean)} against {shown(tokenizer, corrupt)}"
            )
        if clean == corrupt:
            return "the clean and the corrupt prompt are the same"
    ids = answer_ids(tokenizer, pair.clean, [*pair.answers, *pair.wrongs])
    for found in ids:
        if isinstance(found, str):
            return found
    split = len(pair.answers)
    if set(ids[:split]) & set(ids[split:]):
        return f"the answer {pair.answer!r} and the wrong answer {pair.wrong!r} share a token"
    if pair.corrupt is not None:
        both = [pair.answer, pair.wrong]
        if answer_ids(tokenizer, pair.corrupt, both) != answer_ids(tokenizer, pair.clean, both):
            return f"the answers {both} are other tokens after the corrupt prompt"
    return None


def keep_usable(
    candidates: Iterable[PromptPair], tokenizer: Tokenizer, n: int | None
) -> tuple[list[PromptPair], list[Drop]]:
    """The first `n` candidates (all, for None) that the tokenizer can represent, and the others met."""
    kept: list[PromptPair] = []
    dropped: list[Drop] = []
    for pair in candidates:
        if n is not None and len(kept) == n:
            break
        problem = pair_problem(tokenizer, pair)
        if problem is None:
            kept.append(pair)
        else:
            dropped.append(Drop(pair.clean, problem))
    return kept, dropped


def _kind(reason: str) -> str:
    """A reason without its particulars, for counting."""
    for key, kind in _KINDS:
        if key in reason:
            return kind
    return reason


_KINDS: Sequence[tuple[str, str]] = (
    ("merges with", "the answer merges with the prompt"),
    ("tokens here", "the answer is not one token"),
    ("outside the vocabulary", "words are outside the vocabulary"),
    ("and the corrupt one", "clean and corrupt differ in length"),
    ("contains the answer", "the prompt contains the answer"),
)
