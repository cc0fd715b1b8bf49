"""StableLM and StableLM 2: Llama's projections with LayerNorm, partial rotary, and options.

A checkpoint may add biases to q, k and v, put a LayerNorm on each head's queries and keys, or run its
sublayers in parallel under one norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from mech_interp.backends.huggingface.layouts.base import Port, Sizes, split_heads
from mech_interp.backends.huggingface.layouts.llama import LlamaBlock, LlamaLayout
from mech_interp.backends.huggingface.layouts.parts import head_biases, norm_weights


class StableLmBlock(LlamaBlock):
    """A `StableLmDecoderLayer` of transformers, in pieces."""

    def __init__(self, module: Any, sizes: Sizes) -> None:
        super().__init__(module, sizes)
        self.parallel = self.shared_norm = bool(module.use_parallel_residual)

    def norm_qk(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        own = self.attention
        if not own.qk_layernorm:
            return q, k
        # The library's norms, one for each head, expect the head axis first.
        q, k = own.q_layernorm(q.transpose(1, 2)), own.k_layernorm(k.transpose(1, 2))
        return q.transpose(1, 2), k.transpose(1, 2)

    def weights(self) -> dict[str, Tensor]:
        own, mlp = self.attention, self.module.mlp
        heads, kv_heads = self.sizes.n_heads, self.sizes.n_kv_heads
        found = {
            "W_Q": split_heads(own.q_proj.weight.T, heads),
            "W_K": split_heads(own.k_proj.weight.T, kv_heads),
            "W_V": split_heads(own.v_proj.weight.T, kv_heads),
            "W_O": own.o_proj.weight.T.reshape(heads, -1, self.sizes.d_model),
            "W_gate": mlp.gate_proj.weight.T,
            "W_in": mlp.up_proj.weight.T,
            "W_out": mlp.down_proj.weight.T,
        }
        found |= head_biases(heads, b_Q=own.q_proj) | head_biases(kv_heads, b_K=own.k_proj, b_V=own.v_proj)
        found |= norm_weights("ln1", self.module.input_layernorm)
        return found if self.parallel else found | norm_weights("ln2", self.module.post_attention_layernorm)

    def ports(self) -> dict[str, Port]:
        found = super().ports()
        if self.parallel:
            del found["resid_mid"], found["ln2"]
        return found


class StableLmLayout(LlamaLayout):
    """`StableLmForCausalLM`."""

    model_type = "stablelm"
    title = "StableLM and StableLM 2"
    tiny: ClassVar[Mapping[str, Any]] = {
        **LlamaLayout.tiny,
        "partial_rotary_factor": 0.5,
        "use_qkv_bias": True,
    }
    norm = "layer"

    def __init__(self, module: Any) -> None:
        super().__init__(module)
        self.blocks = [StableLmBlock(block, self.sizes) for block in module.model.layers]
