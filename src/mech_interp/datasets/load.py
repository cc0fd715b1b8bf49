"""Prompt pairs from a file, checked against a tokenizer before anything runs on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mech_interp.datasets.pairs import MetricName, PromptPair, TaskSet, pair_problem
from mech_interp.datasets.tokens import Tokenizer
from mech_interp.errors import InputError

_METRICS: tuple[MetricName, ...] = ("logit_difference", "probability_difference")


def load_pairs(path: str | Path, tokenizer: Tokenizer | None = None) -> TaskSet:
    """Read prompt pairs from JSON lines (what `TaskSet.save` writes, or your own).

    Each line is an object with `clean`, `answer` and `wrong`, and optionally `corrupt`, `group`,
    `answers`, `wrongs`, `spans`, `corrupt_spans`, `metadata`. A first line `{"task_set": {...}}` may name
    the set and its metric. With a tokenizer, every pair must be usable as it stands.

    Raises:
        InputError: naming the line: not JSON, unknown fields, unequal lengths, an answer of several
            tokens (with its split), or no pairs at all.
    """
    source = Path(path)
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The pairs file {str(source)!r} cannot be read: {error}.", "Check the path."
        ) from error
    header: dict[str, Any] = {}
    pairs: list[PromptPair] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        record = _record(source, number, line)
        if "task_set" in record and not pairs and not header:
            header = dict(record["task_set"])
            continue
        pairs.append(_pair(source, number, record, tokenizer))
    if not pairs:
        raise InputError(f"{source.name} holds no prompt pairs.", "Write one JSON object per line.")
    metric = next((one for one in _METRICS if one == header.get("metric", _METRICS[0])), None)
    if metric is None:
        raise InputError(
            f"{source.name} names the metric {header['metric']!r}.", f"Use one of: {', '.join(_METRICS)}."
        )
    return TaskSet(
        name=str(header.get("name", source.stem)),
        pairs=tuple(pairs),
        metric=metric,
        split=str(header.get("split", "")),
        source=str(header.get("source", source.name)),
    )


def _record(source: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(
            f"Line {number} of {source.name} is not JSON: {error.msg}.", "Write one object per line."
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"Line {number} of {source.name} is not an object.", "Write one object per line.")
    return record


def _pair(source: Path, number: int, record: dict[str, Any], tokenizer: Tokenizer | None) -> PromptPair:
    try:
        pair = PromptPair.from_dict(record)
    except InputError as error:
        raise InputError(f"Line {number} of {source.name}: {error.message}", error.hint) from error
    problem = pair_problem(tokenizer, pair) if tokenizer is not None else None
    if problem is not None:
        raise InputError(
            f"Line {number} of {source.name}: {problem}.",
            "Change the words until lengths agree and answers are one token, or leave the line out.",
        )
    return pair
