"""The residual stream in named orthogonal subspaces, and the maps that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Read:
    """An affine map from the stream.

    Attributes:
        weight: [d_model, k].
        bias: [k].
    """

    weight: Tensor
    bias: Tensor

    def __neg__(self) -> Read:
        return Read(-self.weight, -self.bias)


class Stream:
    """Named orthogonal subspaces of the residual stream, turned at random.

    No coordinate of the stream means anything by itself: each subspace is spanned by some orthonormal
    rows of a random rotation. `stream[name]` is [size, d_model].

    Args:
        seed: of the rotation.
        sizes: dimension of each subspace.
    """

    def __init__(self, seed: int, **sizes: int) -> None:
        self.d_model = sum(sizes.values())
        self.generator = torch.Generator().manual_seed(seed)
        basis, start = self.rotation(self.d_model), 0
        self._parts: dict[str, Tensor] = {}
        for name, size in sizes.items():
            self._parts[name] = basis[start : start + size]
            start += size

    def __getitem__(self, name: str) -> Tensor:
        return self._parts[name]

    def size(self, name: str) -> int:
        """Dimension of a subspace."""
        return len(self[name])

    def read(self, name: str, members: Sequence[int] | None = None) -> Read:
        """The coordinates of a subspace: all, or some."""
        basis = self[name] if members is None else self[name][list(members)]
        return Read(basis.T, torch.zeros(len(basis), dtype=basis.dtype))

    def flag(self, name: str, members: Sequence[int] = (0,)) -> Read:
        """One number: the sum of some coordinates of a subspace (is the token one of these?)."""
        return Read(self[name][list(members)].sum(0)[:, None], torch.zeros(1, dtype=torch.float64))

    def constant(self) -> Read:
        """The number one, whatever the stream holds."""
        weight = torch.zeros(self.d_model, 1, dtype=torch.float64)
        return Read(weight, torch.ones(1, dtype=torch.float64))

    def shifted(self, name: str, by: int) -> Read:
        """A subspace's one-hot code of i read as that of i + `by`; codes that would leave it are lost."""
        basis = self[name]
        turned = torch.zeros_like(basis)
        for i in range(len(basis)):
            if 0 <= i + by < len(basis):
                turned[i + by] = basis[i]
        return Read(turned.T, torch.zeros(len(basis), dtype=basis.dtype))

    def rotation(self, size: int) -> Tensor:
        """A random rotation, [size, size], from this stream's generator."""
        q, r = torch.linalg.qr(self.noise(size, size))
        turned: Tensor = q * r.diagonal().sign()
        return turned

    def noise(self, *shape: int) -> Tensor:
        """Standard normal numbers from this stream's generator."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)
