"""Models in HookedTransformer form (`mech-planted`): with or without norms and MLPs, causal or not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor, nn

from mech_interp.backends.huggingface.layouts.base import Block, Layout, Port, Sizes, in_heads, split_heads


class PlantedBlock(Block):
    """A `DecoderLayer` of `huggingface.hooked`, in pieces."""

    def __init__(self, module: Any, sizes: Sizes) -> None:
        self.module, self.attention, self.mlp = module, module.attention, module.mlp
        self.sizes = sizes
        self.scale = module.attention.scaling
        self.attention_only = module.mlp is None
        self.normed = not isinstance(module.norm1, nn.Identity)

    def norm1(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.norm1(x)
        return out

    def qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own, shape = self.attention, (self.sizes.n_heads, self.sizes.d_head)
        return own.q(x).unflatten(-1, shape), own.k(x).unflatten(-1, shape), own.v(x).unflatten(-1, shape)

    def attention_output(self, z: Tensor) -> Tensor:
        out: Tensor = self.attention.o(z.flatten(-2))
        return out

    def norm2(self, x: Tensor) -> Tensor:
        out: Tensor = self.module.norm2(x)
        return out

    def mlp_in(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.mlp.up(x), None

    def mlp_activation(self, pre: Tensor, linear: Tensor | None) -> Tensor:
        out: Tensor = self.mlp.act(pre)
        return out

    def mlp_out(self, post: Tensor) -> Tensor:
        out: Tensor = self.mlp.down(post)
        return out

    def weights(self) -> dict[str, Tensor]:
        heads, own = self.sizes.n_heads, self.attention
        found = {f"W_{name.upper()}": split_heads(getattr(own, name).weight.T, heads) for name in "qkv"}
        found["W_O"] = own.o.weight.T.reshape(heads, -1, self.sizes.d_model)
        found |= {f"b_{name.upper()}": getattr(own, name).bias.view(heads, -1) for name in "qkv"}
        found["b_O"] = own.o.bias
        if not self.attention_only:
            up, down = self.mlp.up, self.mlp.down
            found |= {"W_in": up.weight.T, "b_in": up.bias, "W_out": down.weight.T, "b_out": down.bias}
        found |= _norm_weights("ln1", self.module.norm1)
        return found if self.attention_only else found | _norm_weights("ln2", self.module.norm2)

    @property
    def attention_module(self) -> nn.Module:
        module: nn.Module = self.attention
        return module

    def ports(self) -> dict[str, Port]:
        block, own, heads = self.module, self.attention, in_heads(self.sizes.n_heads)
        found = {
            "resid_pre": Port(block, "input"),
            "q": Port(own.q, view=heads),
            "k": Port(own.k, view=heads),
            "v": Port(own.v, view=heads),
            "z": Port(own.o, "input", heads),
            "attn_out_own": Port(own.o),
            "attn_out": Port(own.o),
            "resid_post": Port(block),
        }
        if self.normed:
            found["ln1"] = Port(block.norm1)
        if self.attention_only:
            return found
        if self.normed:
            found["ln2"] = Port(block.norm2)
        return found | {
            "resid_mid": Port(block.norm2, "input"),
            "mlp_pre": Port(self.mlp.up),
            "mlp_post": Port(self.mlp.down, "input"),
            "mlp_out_own": Port(self.mlp),
            "mlp_out": Port(self.mlp),
        }


def _norm_weights(name: str, norm: nn.Module) -> dict[str, Tensor]:
    found = {f"{name}.w": getattr(norm, "weight", None), f"{name}.b": getattr(norm, "bias", None)}
    return {key: value for key, value in found.items() if value is not None}


class PlantedLayout(Layout):
    """`PlantedForCausalLM`."""

    model_type = "mech-planted"
    title = "HookedTransformer"
    tiny: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 97,
        "max_position_embeddings": 24,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
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
        self.sizes = Sizes(
            n_layers=config.num_hidden_layers,
            n_heads=config.num_attention_heads,
            n_kv_heads=config.num_attention_heads,
            d_model=config.hidden_size,
            d_head=config.head_dim,
            d_mlp=config.intermediate_size,
            vocabulary=config.vocab_size,
            context=config.max_position_embeddings,
            n_outputs=config.n_outputs,
        )
        self.blocks = [PlantedBlock(layer, self.sizes) for layer in module.layers]

    @classmethod
    def register(cls) -> None:
        from mech_interp.backends.huggingface.hooked import register

        register()

    def embed(self, ids: Tensor) -> Tensor:
        out: Tensor = self.module.embed(ids)
        return out

    def pos_embed(self, positions: Tensor) -> Tensor | None:
        out: Tensor = self.module.positions(positions)
        return out

    @property
    def final_norm(self) -> nn.Module:
        norm: nn.Module = self.module.final_norm
        return norm

    @property
    def unembedding(self) -> nn.Linear:
        head: nn.Linear = self.module.unembed
        return head

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

    def weights(self) -> dict[str, Tensor]:
        return {
            "W_E": self.module.embed.weight,
            "W_pos": self.module.positions.weight,
            "W_U": self.module.unembed.weight.T,
            "b_U": self.module.unembed.bias,
            **_norm_weights("ln_final", self.module.final_norm),
        }

    def ports(self) -> dict[str, Port]:
        found = {
            "embed": Port(self.module.embed),
            "pos_embed": Port(self.module.positions),
            "logits": Port(self.module.unembed),
        }
        return found if self.norm == "none" else found | {"ln_final": Port(self.module.final_norm)}
