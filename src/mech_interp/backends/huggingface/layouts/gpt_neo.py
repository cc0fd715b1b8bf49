"""GPT-Neo: unscaled scores in float32, local and global attention, learned positions, LayerNorm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port, Sizes, in_heads, split_heads
from mech_interp.backends.huggingface.layouts.parts import activate, norm_weights, present


class GPTNeoBlock(Block):
    """A `GPTNeoBlock` of transformers, in pieces."""

    scale = 1.0
    wide_scores = True

    def __init__(self, module: Any, n_heads: int, window: int) -> None:
        self.module = module
        self.attention = module.attn.attention
        self.n_heads = n_heads
        self.window = window if module.attn.attention_type == "local" else None

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.ln_1(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, heads = self.attention, (self.n_heads, -1)
        return (
            own.q_proj(x).unflatten(-1, heads),
            own.k_proj(x).unflatten(-1, heads),
            own.v_proj(x).unflatten(-1, heads),
        )

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.out_proj(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.ln_2(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.module.mlp.c_fc(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        return activate(self.module.mlp.act, pre)

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.module.mlp.c_proj(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        own, mlp = self.attention, self.module.mlp
        found = {
            "W_Q": split_heads(own.q_proj.weight.T, self.n_heads),
            "W_K": split_heads(own.k_proj.weight.T, self.n_heads),
            "W_V": split_heads(own.v_proj.weight.T, self.n_heads),
            "W_O": own.out_proj.weight.T.reshape(self.n_heads, -1, own.out_proj.weight.shape[0]),
            "W_in": mlp.c_fc.weight.T,
            "W_out": mlp.c_proj.weight.T,
        }
        found |= present(b_O=own.out_proj.bias, b_in=mlp.c_fc.bias, b_out=mlp.c_proj.bias)
        return found | norm_weights("ln1", self.module.ln_1) | norm_weights("ln2", self.module.ln_2)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, own, mlp = self.module, self.attention, self.module.mlp
        heads = in_heads(self.n_heads)
        return {
            "resid_pre": Port(block, "input"),
            "ln1": Port(block.ln_1),
            "q": Port(own.q_proj, view=heads),
            "k": Port(own.k_proj, view=heads),
            "v": Port(own.v_proj, view=heads),
            "z": Port(own.out_proj, "input", heads),
            "attn_out_own": Port(own),
            "attn_out": Port(own),
            "resid_mid": Port(block.ln_2, "input"),
            "ln2": Port(block.ln_2),
            "mlp_pre": Port(mlp.c_fc),
            "mlp_post": Port(mlp.c_proj, "input"),
            "mlp_out_own": Port(mlp),
            "mlp_out": Port(mlp),
            "resid_post": Port(block),
        }


class GPTNeoLayout(Layout):
    """`GPTNeoForCausalLM`."""

    model_type = "gpt_neo"
    title = "GPT-Neo"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[["local", "global", "local"], 1]],
        "window_size": 5,
    }
    learned_positions = True

    def __init__(self, module: Any) -> None:
        config = module.config
        self.module = module
        self.sizes = Sizes(
            n_layers=config.num_layers,
            n_heads=config.num_heads,
            n_kv_heads=config.num_heads,
            d_model=config.hidden_size,
            d_head=config.hidden_size // config.num_heads,
            d_mlp=config.intermediate_size or 4 * config.hidden_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
        )
        blocks = module.transformer.h
        self.blocks = [GPTNeoBlock(block, config.num_heads, config.window_size) for block in blocks]

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.transformer.wte(ids)
        return out

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        out: Tensor = self.module.transformer.wpe(positions)
        return out

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.transformer.ln_f
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.lm_head
        return head

    def weights(self) -> dict[str, Tensor]:
        stack = self.module.transformer
        found = {"W_E": stack.wte.weight, "W_pos": stack.wpe.weight, "W_U": self.module.lm_head.weight.T}
        return found | norm_weights("ln_final", stack.ln_f)

    def ports(self) -> dict[str, Port]:
        stack = self.module.transformer
        return {
            "embed": Port(stack.wte),
            "pos_embed": Port(stack.wpe),
            "ln_final": Port(stack.ln_f),
            "logits": Port(self.module.lm_head),
        }
