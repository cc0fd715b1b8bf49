"""Token batches: left-justified ids with true lengths, so that position p is column p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mech_interp.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A batch of tokenised prompts.

    Rows start at column 0 and are filled up on the right, so that a real-token position is a tensor
    column. Filled columns never influence real ones.

    Attributes:
        ids: [prompt, position] int64.
        lengths: number of real tokens of each prompt.
        texts: the prompts, where they came as text.
        convention: how special tokens were treated, e.g. ``no BOS``.
    """

    ids: Tensor
    lengths: tuple[int, ...]
    texts: tuple[str, ...] = ()
    convention: str = "ids as given"

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def mask(self) -> Tensor:
        """[prompt, position] bool, true on real tokens."""
        import torch

        columns = torch.arange(self.ids.shape[1], device=self.ids.device)
        return columns[None, :] < torch.tensor(self.lengths, device=self.ids.device)[:, None]

    def row(self, prompt: int) -> list[int]:
        """The real token ids of one prompt."""
        return [int(i) for i in self.ids[prompt, : self.lengths[prompt]].tolist()]

    def select(self, prompts: Sequence[int]) -> Tokens:
        """The batch of the chosen prompts, trimmed to their longest."""
        lengths = tuple(self.lengths[p] for p in prompts)
        width = max(lengths)
        texts = tuple(self.texts[p] for p in prompts) if self.texts else ()
        return Tokens(self.ids[list(prompts), :width], lengths, texts, self.convention)

    def to(self, device: str) -> Tokens:
        """The same batch on a device."""
        return Tokens(self.ids.to(device), self.lengths, self.texts, self.convention)

    def position(self, prompt: int, position: int) -> int:
        """The column of a real-token position; negative positions count from the prompt's end.

        Raises:
            InputError: when the prompt has no such token.
        """
        length = self.lengths[prompt]
        column = position + length if position < 0 else position
        if not 0 <= column < length:
            raise InputError(
                f"Position {position} does not exist in prompt {prompt}, which has {length} tokens.",
                f"Use 0 to {length - 1}, or -{length} to -1 counted from the end.",
            )
        return column

    @classmethod
    def from_lists(cls, rows: Sequence[Sequence[int]], fill: int = 0, **facts: object) -> Tokens:
        """From one list of ids per prompt."""
        import torch

        if not rows or any(len(row) == 0 for row in rows):
            empty = next((i for i, row in enumerate(rows) if len(row) == 0), 0)
            raise InputError(f"Prompt {empty} is empty.", "Give at least one token.")
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=torch.long)
        return cls(ids, tuple(len(row) for row in rows), **facts)  # type: ignore[arg-type]

    @classmethod
    def from_padded(cls, ids: Tensor, mask: Tensor) -> Tokens:
        """From ids and an attention mask padded on either side (as Hugging Face tokenizers return)."""
        return cls.from_lists([row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True)])


def concatenate(batches: Sequence[Tokens], fill: int = 0) -> Tokens:
    """One batch of all prompts of several batches, in order."""
    rows = [batch.row(i) for batch in batches for i in range(len(batch))]
    return Tokens.from_lists(rows, fill)
