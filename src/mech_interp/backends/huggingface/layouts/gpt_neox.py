"""GPT-NeoX and Pythia: parallel sublayers with a norm each, fused qkv by head, partial rotary, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Layout, Port, Rotary, Sizes
from mech_interp.backends.huggingface.layouts.parts import FusedBlock, norm_weights


class GPTNeoXBlock(FusedBlock):
    """A `GPTNeoXLayer` of transformers, in pieces."""

    rotary_kind = "default"

    def __init__(self, module: Any, n_heads: int) -> None:
        super().__init__(module, module.attention, n_heads, n_heads)
        self.scale = float(module.attention.scaling)
        self.parallel = bool(module.use_parallel_residual)


class GPTNeoXLayout(Layout):
    """`GPTNeoXForCausalLM`."""

    model_type = "gpt_neox"
    title = "GPT-NeoX (Pythia)"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "rotary_pct": 0.5,
    }
    rotary_positions = True

    def __init__(self, module: Any) -> None:
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_attention_heads,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.num_attention_heads,
            d_mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        self.blocks = [GPTNeoXBlock(block, self.sizes.n_heads) for block in module.gpt_neox.layers]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.gpt_neox.embed_in(ids)
        return out

    def rotary(self, like: Tensor, positions: Tensor) -> Rotary | None:
        cos, sin = self.module.gpt_neox.rotary_emb(like, position_ids=positions)
        return {"default": (cos, sin)}

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.gpt_neox.final_layer_norm
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack = self.module.gpt_neox
        found = {"W_E": stack.embed_in.weight, "W_U": self.module.lm_head.weight.T}
        return found | norm_weights("ln_final", stack.final_layer_norm)

    def ports(self) -> dict[str, Port]:
        stack = self.module.gpt_neox
        return {
            "embed": Port(stack.embed_in),
            "ln_final": Port(stack.final_layer_norm),
            "logits": Port(self.module.lm_head),
        }
