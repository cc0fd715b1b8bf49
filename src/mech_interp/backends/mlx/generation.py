"""Continuation with a key/value cache in MLX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import mlx.core as mx
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.generation import Phase, add_phase
from mech_interp.backends.mlx.convert import to_torch
from mech_interp.backends.mlx.decoder import MLXTaps
from mech_interp.backends.tokens import Tokens
from mech_interp.interventions import Intervention

if TYPE_CHECKING:
    from mech_interp.backends.mlx.model import MLXModel


class CachedSteps:
    """`Steps` of the shared generation loop: each token is computed once, keys and values are kept.

    They are kept at true positions, [row, position, kv_head, d_head]; what lies past a row's own position
    is padding or zeros, which causality hides.
    """

    def __init__(
        self, model: MLXModel, tokens: Tokens, interventions: Sequence[Intervention], max_new_tokens: int
    ) -> None:
        self.model, self.tokens, self.interventions = model, tokens, interventions
        self.width = tokens.ids.shape[1] + max_new_tokens
        self.filled = 0
        self._kept: dict[int, tuple[mx.array, mx.array]] = {}

    def __call__(self, ids: Tensor, positions: Tensor, phase: Phase) -> Tensor:
        model = self.model
        edits = ed.Edits(model.info.windows)
        add_phase(edits, model.info, self.tokens, positions, self.interventions, phase)
        tap = ed.Tap(edits)
        if phase == "generated":
            tap.read_positions = positions
        taps, where = MLXTaps(tap), positions.numpy()
        self.filled = max(self.filled, int(where.max()) + 1)
        at = (mx.arange(len(where))[:, None], mx.array(where))

        def join(layer: int, k: mx.array, v: mx.array) -> tuple[mx.array, mx.array]:
            if layer not in self._kept:
                shape = (k.shape[0], self.width, *k.shape[2:])
                self._kept[layer] = (mx.zeros(shape, k.dtype), mx.zeros(shape, v.dtype))
            keys, values = self._kept[layer]
            keys[at], values[at] = k, v
            self._kept[layer] = (keys, values)
            return keys[:, : self.filled], values[:, : self.filled]

        with mx.stream(model.device):
            x = model.decoder.stream(ids.numpy(), where, taps, join)
            logits = to_torch(model.decoder.finish(x, taps))
        tap.check_all_fired()
        return logits
