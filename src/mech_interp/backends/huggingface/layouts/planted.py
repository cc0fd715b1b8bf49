"""Models in HookedTransformer form (`mech-planted`): with or without norms and MLPs, causal or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.layouts.plain import TINY, PlainLayout, SeparateBlock, sizes_of


class PlantedBlock(SeparateBlock):
    """A `DecoderLayer` of `huggingface.hooked`, in pieces."""

    def __init__(self, module: Any, n_heads: int) -> None:
        own, mlp = module.attention, module.mlp
        super().__init__(module, own, n_heads)
        self.scale = own.scaling
        self.first = module.norm1
        self.q, self.k, self.v, self.out = own.q, own.k, own.v, own.o
        self.attention_end = own.o
        self.attention_only = mlp is None
        if not self.attention_only:
            self.second = module.norm2
            self.up, self.act, self.down, self.mlp_end = mlp.up, mlp.act, mlp.down, mlp

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = self.act(pre)  # never the fused kernel: to the last bit as the model itself
        return out

    def ports(self) -> dict[str, Port]:
        normed, found = not isinstance(self.first, nn.Identity), super().ports()
        return found if normed else {kind: port for kind, port in found.items() if kind not in ("ln1", "ln2")}


class PlantedLayout(PlainLayout):
    """`PlantedForCausalLM`."""

    model_type = "mech-planted"
    title = "HookedTransformer"
    tiny: ClassVar[Mapping[str, Any]] = {
        **TINY,
        "intermediate_size": 40,
        "head_dim": 5,
        "hidden_act": "gelu",
        "norm": "layer",
        "attention_scales": [0.5, 1.0, 0.25],
    }
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config = module.config
        self.module = module
        self.causal = config.causal
        if not self.causal:
            self.notice = (
                "Every position of this model sees the whole prompt, so its logits are no predictions of a "
                "next token and it cannot continue a text."
            )
        self.norm = config.final_norm
        self.sizes = sizes_of(
            config, d_mlp=config.intermediate_size, d_head=config.head_dim, n_outputs=config.n_outputs
        )
        self.blocks = [PlantedBlock(layer, config.num_attention_heads) for layer in module.layers]
        self.embedding, self.positions = module.embed, module.positions
        self.final_norm, self.unembedding = module.final_norm, module.unembed

    @classmethod
    def register(cls) -> None:
        from mech_interp.backends.huggingface.hooked import register

        register()

    @property
    def missing(self) -> dict[str, str]:
        found = super().missing
        return found if self.norm != "none" else found | {"ln_final": f"this {self.title} has no final norm"}

    def missing_in(self, layer: int) -> dict[str, str]:
        found = super().missing_in(layer)
        if self.module.config.norm == "none":
            lacking = dict.fromkeys(("ln1", "ln2"), f"this {self.title} has no norms")
            return lacking | found
        return found

    def ports(self) -> dict[str, Port]:
        found = super().ports()
        if self.norm == "none":
            del found["ln_final"]
        return found
