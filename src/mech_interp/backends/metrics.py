"""Metrics that a sweep reads off the logits: they say which positions and token ids they need.

Only those logits are computed. Every metric is differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Metric(Protocol):
    """One value (or vector) per row from its logits.

    `positions` are the real-token positions read (negative from the prompt's end).
    """

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions whose logits are read."""
        ...

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        """[rows, k] vocabulary ids read, or None for the whole vocabulary."""
        ...

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        """[rows, len(positions), k or vocabulary] logits to one value or vector per row."""
        ...


@dataclass(frozen=True)
class LogitDifference:
    """Logit of the correct token minus that of the wrong one, in nats; `correct`, `wrong` per prompt."""

    correct: tuple[int, ...]
    wrong: tuple[int, ...]
    position: int = -1

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.position,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        import torch

        return torch.tensor([[self.correct[p], self.wrong[p]] for p in prompts])

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        return logits[:, 0, 0] - logits[:, 0, 1]


@dataclass(frozen=True)
class Probability:
    """Probability of one token per prompt (softmax over the whole vocabulary)."""

    token: tuple[int, ...]
    position: int = -1

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.position,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        import torch

        ids = torch.tensor([self.token[p] for p in prompts], device=logits.device)
        return logits[:, 0].float().softmax(-1).gather(1, ids[:, None])[:, 0]


@dataclass(frozen=True)
class ProbabilityDifference:
    """Summed probability of one token set minus that of another, per prompt (Hanna et al. 2023)."""

    correct: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    position: int = -1

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.position,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        import torch

        probabilities = logits[:, 0].float().softmax(-1)
        return torch.stack(
            [
                row[list(self.correct[p])].sum() - row[list(self.wrong[p])].sum()
                for row, p in zip(probabilities, prompts, strict=True)
            ]
        )


@dataclass(frozen=True)
class KLDivergence:
    """KL(reference ‖ row) of next-token distributions in nats; `reference` is logits [prompt, vocabulary]."""

    reference: Tensor
    position: int = -1

    @property
    def positions(self) -> tuple[int, ...]:
        return (self.position,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        wanted = self._known.to(logits.device)[list(prompts)]
        found = logits[:, 0].double().log_softmax(-1)
        return (wanted.exp() * (wanted - found)).sum(-1)

    @cached_property
    def _known(self) -> Tensor:
        """Log-probabilities of the reference: a search asks for them once per row."""
        return self.reference.double().log_softmax(-1)


@dataclass(frozen=True)
class Logits:
    """The logits themselves at chosen positions, [rows, len(positions), vocabulary]."""

    positions: tuple[int, ...] = (-1,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        return logits
