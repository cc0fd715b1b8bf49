"""What the backends share that run the library's own forward and see its sites from outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mech_interp.backends.adapter import Adapter
from mech_interp.backends.huggingface.generation import default_stops
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.protocol import ModelInfo


class AroundLibrary(Adapter):
    """An adapter whose weights and unembedding are those of the default engine around the same model."""

    def __init__(self, engine: HuggingFaceModel, info: ModelInfo) -> None:
        super().__init__(info, engine.tokenizer)
        self._engine = engine

    @property
    def module(self) -> Any:
        """The library's model."""
        return self._engine.module

    @property
    def stop_ids(self) -> Sequence[int]:
        """The end-of-text ids at which generation stops by default."""
        return default_stops(self.module)

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Final norm, unembedding and softcap of [..., d_model]; see `InstrumentedModel.unembed`."""
        return self._engine.unembed(resid, token_ids)

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """See `InstrumentedModel.final_norm_direction`."""
        return self._engine.final_norm_direction(resid, direction)

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """One weight tensor; see `InstrumentedModel.weights`."""
        return self._engine.weights(kind, layer, head)
