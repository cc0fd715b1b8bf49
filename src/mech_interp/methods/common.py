"""What all methods share: answer tokens, positions, batches, tolerances, control tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mech_interp.backends.protocol import InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.tokens import answer_id as text_answer_id
from mech_interp.errors import InputError, MechError
from mech_interp.statistics import Estimate, EstimateArray
from mech_interp.statistics.estimate import rounded

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Text = str | int
"""A token as text (with its leading space) or as its id."""

_BATCH_BYTES = 256 * 2**20
_ROUNDING = {"float64": 1e-9, "float32": 1e-5, "bfloat16": 5e-2, "float16": 1e-2}


class SanityError(MechError):
    """A check whose answer is known came out wrong, so the numbers of this call are void."""


def rounding(model: InstrumentedModel) -> float:
    """Relative size of harmless rounding in this model's dtype (1e-5 in float32)."""
    return _ROUNDING.get(model.info.dtype.removeprefix("torch."), 5e-2)


def is_exact(model: InstrumentedModel) -> bool:
    """Whether the model computes in float32 or better."""
    return rounding(model) <= 1e-5


def token_text(model: InstrumentedModel, token: int) -> str:
    """A token as it reads in text, leading space included."""
    if model.tokenizer is None:
        return f"#{token}"
    piece = model.tokenizer.convert_ids_to_tokens(int(token))
    if isinstance(piece, str) and "▁" in piece:
        return piece.replace("▁", " ")
    return str(model.tokenizer.decode([int(token)]))


def answer_ids(
    model: InstrumentedModel, tokens: Tokens, answers: Text | Sequence[Text], what: str
) -> list[int]:
    """One token id per prompt, from texts or ids; a single answer serves all prompts.

    A text must be exactly one token where it follows its prompt.

    Raises:
        InputError: for a wrong number of answers, an id outside the vocabulary, or a text that is not
            one token (shown split).
    """
    given = [answers] * len(tokens) if isinstance(answers, str | int) else list(answers)
    if len(given) != len(tokens):
        raise InputError(
            f"There are {len(given)} {what} answers for {len(tokens)} prompts.", "Give one per prompt."
        )
    texts: Sequence[str | None] = tokens.texts or [None] * len(tokens)
    return [answer_id(model, prompt, one) for prompt, one in zip(texts, given, strict=True)]


def answer_id(model: InstrumentedModel, prompt: str | None, answer: Text) -> int:
    """The id of the single token that continues `prompt` (None: stands on its own) with `answer`."""
    if isinstance(answer, str):
        if model.tokenizer is None:
            raise InputError(
                f"{model.info.name} has no tokenizer, so {answer!r} cannot be looked up.",
                "Give the token's id.",
            )
        return text_answer_id(model.tokenizer, prompt or "", answer)
    if not 0 <= int(answer) < model.info.vocabulary:
        raise InputError(
            f"Token id {answer} is outside the vocabulary of {model.info.vocabulary}.",
            "Give an id from 0 up or the token's text.",
        )
    return int(answer)


def prompt_positions(tokens: Tokens, positions: int | Sequence[int]) -> list[int]:
    """One position per prompt as given (negative allowed), checked against every length."""
    given = [positions] * len(tokens) if isinstance(positions, int) else [int(p) for p in positions]
    if len(given) != len(tokens):
        raise InputError(
            f"There are {len(given)} positions for {len(tokens)} prompts.", "Give one per prompt."
        )
    for prompt, position in enumerate(given):
        tokens.position(prompt, position)
    return given


def batches(
    tokens: Tokens, positions: Sequence[int], floats_per_token: int
) -> Iterator[tuple[list[int], int]]:
    """(prompt numbers, position) of batches that share a position and fit a memory budget."""
    room = max(1, _BATCH_BYTES // (4 * max(1, floats_per_token)))
    for position in sorted(set(positions)):
        batch: list[int] = []
        width = 0
        for prompt in (i for i, p in enumerate(positions) if p == position):
            wider = max(width, tokens.lengths[prompt])
            if batch and wider * (len(batch) + 1) > room:
                yield batch, position
                batch, wider = [], tokens.lengths[prompt]
            batch.append(prompt)
            width = wider
        if batch:
            yield batch, position


def at_position(values: Tensor, tokens: Tokens, position: int) -> Tensor:
    """[prompt, position, ...] at one real-token position of every prompt: [prompt, ...]."""
    import torch

    columns = [tokens.position(prompt, position) for prompt in range(len(tokens))]
    return values[
        torch.arange(len(tokens), device=values.device), torch.tensor(columns, device=values.device)
    ]


def other_choice(
    ids: Sequence[tuple[int, ...]], vocabulary: int, seed: int
) -> tuple[list[tuple[int, ...]], str]:
    """For each prompt the answer token(s) of another prompt, sharing none with its own; and how.

    Prompts for which no other prompt qualifies get random tokens of the vocabulary.
    """
    generator = np.random.default_rng(seed)
    chosen: list[tuple[int, ...]] = []
    drawn = 0
    for own in ids:
        others = sorted({other for other in ids if not set(other) & set(own)})
        if others:
            chosen.append(others[int(generator.integers(len(others)))])
            continue
        free = np.setdiff1d(np.arange(vocabulary), own)
        chosen.append(tuple(int(i) for i in generator.choice(free, len(own), replace=len(free) < len(own))))
        drawn += 1
    if drawn == len(ids):
        return chosen, "random vocabulary tokens"
    if drawn:
        return chosen, f"answers of other prompts ({drawn} prompts: random vocabulary tokens)"
    return chosen, "answers of other prompts"


def as_floats(values: Tensor) -> Floats:
    """A float64 array on the host."""
    return np.asarray(values.detach().cpu().double().numpy(), dtype=np.float64)


def widest(values: Tensor) -> Tensor:
    """The same values in the widest float of their device."""
    return values.float() if values.device.type == "mps" else values.double()


def prompt_texts(tokens: Tokens) -> tuple[str, ...]:
    """The prompts as text, or as ids where no text was given."""
    return tokens.texts or tuple(str(tokens.row(i)) for i in range(len(tokens)))


def check_groups(groups: Sequence[str] | None, n: int) -> None:
    """Refuse a wrong number of group labels."""
    if groups is not None and len(groups) != n:
        raise InputError(f"There are {len(groups)} groups for {n} prompts.", "Give one per prompt.")


def optional(values: Floats) -> list[float | None]:
    """Plain numbers for a view; NaN becomes None."""
    return [None if np.isnan(v) else float(v) for v in values]


def count_note(n: int, groups: Sequence[str] | None, what: str = "prompt") -> str:
    """How many prompts in how many groups."""
    text = f"n = {n} {what}{'' if n == 1 else 's'}"
    return text if groups is None else f"{text} in {len(set(groups))} groups"


def brief(estimate: Estimate, digits: int = 2) -> str:
    """`0.13 [0.09, 0.18]` for a table whose note states n and why an interval may be missing."""
    value = rounded(estimate.value, digits)
    if estimate.interval is None:
        return value
    low, high = (rounded(bound, digits) for bound in estimate.interval)
    return f"{value} [{low}, {high}]"


def interval_note(estimate: EstimateArray) -> str:
    """What the intervals are, or why there are none."""
    reasons = sorted({str(reason) for reason in estimate.reasons.ravel()})
    if reasons and all(reasons):
        return f"no interval: {reasons[0]}"
    return f"{estimate.level:.0%} intervals by cluster bootstrap"
