"""The adapter of the `mlx` backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.adapter import Adapter
from mech_interp.backends.mlx.convert import to_mlx, to_torch
from mech_interp.backends.mlx.decoder import Decoder, MLXTaps
from mech_interp.backends.mlx.generation import CachedSteps
from mech_interp.backends.mlx.weights import block_weights, outside_weights
from mech_interp.backends.protocol import ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, nearest
from mech_interp.interventions import Intervention


class MLXModel(Adapter):
    """A decoder in MLX; tensors cross as torch tensors on the CPU. Use `mlx.open_folder` to make one.

    `device` is where MLX computes.
    """

    def __init__(
        self, info: ModelInfo, tokenizer: Any, decoder: Decoder, device: Any, stop_ids: Sequence[int] = ()
    ) -> None:
        super().__init__(info, tokenizer)
        self.decoder, self.device = decoder, device
        self._stop_ids = list(stop_ids)

    @property
    def stop_ids(self) -> Sequence[int]:
        """The end-of-text ids of the checkpoint."""
        return self._stop_ids

    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        """One forward; see `Adapter.run`. Gradients are never computed (the capability is missing)."""
        with mx.stream(self.device):
            taps = MLXTaps(tap)
            return to_torch(self.decoder.finish(self._stream(tokens, taps), taps))

    def evaluate(self, tokens: Tokens, tap: ed.Tap, positions: Sequence[int]) -> Tensor:
        """Logits [prompt, n, vocabulary] at chosen positions of a batch of rows.

        Unless an edit reads or writes past the last block, only those positions are unembedded.
        """
        if tap.wants("ln_final", None) or tap.wants("logits", None):
            return super().evaluate(tokens, tap, positions)
        columns = [[tokens.position(i, p) for p in positions] for i in range(len(tokens))]
        with mx.stream(self.device):
            taps = MLXTaps(tap)
            x = self._stream(tokens, taps)
            x = x[mx.arange(len(tokens))[:, None], mx.array(columns)]
            out = to_torch(self.decoder.finish(x, taps))
        tap.check_all_fired()
        return out

    def _stream(self, tokens: Tokens, taps: MLXTaps) -> mx.array:
        ids = tokens.ids.numpy()
        return self.decoder.stream(ids, np.arange(ids.shape[1])[None], taps)

    def steps(
        self, tokens: Tokens, interventions: Sequence[Intervention], max_new_tokens: int
    ) -> CachedSteps:
        """Generation keeps keys and values."""
        return CachedSteps(self, tokens, interventions, max_new_tokens)

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Final norm, unembedding and softcap of [..., d_model]; see `InstrumentedModel.unembed`."""
        with mx.stream(self.device):
            normed = self.decoder.final_norm(to_mlx(resid).astype(self.decoder.dtype))
            table = self.decoder.parts.outside["unembed"]
            if token_ids is None:
                logits = normed @ table.T
            else:
                logits = (table[mx.array(token_ids.cpu().numpy())] @ normed[..., None])[..., 0]
            return to_torch(self.decoder.softcap(logits))

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """The gradient of <final_norm(x), direction> at frozen scale; see `InstrumentedModel`."""
        gain = direction * self.weights("ln_final.w")
        if self.info.norm == "layer":
            centred = resid - resid.mean(-1, keepdim=True)
            scale = (centred.pow(2).mean(-1, keepdim=True) + self.info.norm_eps).sqrt()
            return (gain - gain.mean(-1, keepdim=True)) / scale
        return gain / (resid.pow(2).mean(-1, keepdim=True) + self.info.norm_eps).sqrt()

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """One weight tensor in the convention of `InstrumentedModel.weights`.

        Raises:
            InputError: naming the kinds there are, when the model has no such weight.
        """
        name, n_layers = self.info.name, self.info.n_layers
        if layer is not None and not 0 <= layer < n_layers:
            raise InputError(
                f"There is no layer {layer}: {name} has {n_layers} layers.", f"Use 0 to {n_layers - 1}."
            )
        facts, parts = self.decoder.facts, self.decoder.parts
        found = outside_weights(facts, parts) if layer is None else block_weights(facts, parts, layer)
        if kind not in found:
            where = "outside the blocks" if layer is None else f"in layer {layer}"
            raise InputError(
                f"{name} has no weight {kind!r} {where}.",
                nearest(kind, found) or f"There are: {', '.join(found)}.",
            )
        weight = found[kind]
        if head is None:
            return weight
        if kind not in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            raise InputError(f"{kind} is not divided into heads.", "Leave out head=.")
        if not 0 <= head < weight.shape[0]:
            raise InputError(f"{kind} has no head {head}.", f"Use 0 to {weight.shape[0] - 1}.")
        return weight[head]
