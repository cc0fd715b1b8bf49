"""A transformer in the form in which toy models are published, as a model class of the library.

Attention-only or with an MLP; no norm, LayerNorm or RMSNorm; causal or bidirectional; any head size, any
scaling of the scores; as many logits as one likes. Parameters keep to the library's conventions, so that
`save_pretrained`, `from_pretrained`, `generate` and both attention implementations work as usual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mech_interp.errors import CapabilityError

MODEL_TYPE = "mech-planted"
# The library's names of activations, and one that it lacks.
ACTIVATIONS = ("relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "solu")


class PlantedConfig(PreTrainedConfig):  # type: ignore[misc]  # the library is untyped here
    """Options of `PlantedForCausalLM`.

    Attributes:
        head_dim: features of a head (None: `hidden_size` / `num_attention_heads`).
        intermediate_size: hidden units of the MLPs; 0 for an attention-only model.
        hidden_act: one of `ACTIVATIONS`.
        norm, final_norm: ``none``, ``layer`` or ``rms``; the final norm is by default like the others.
        norm_eps: what norms add to the variance.
        causal: whether a position sees earlier ones alone; otherwise it sees the whole prompt.
        attention_scales: what multiplies q·k in each layer (None: 1 / sqrt(head_dim) in all).
        n_outputs: number of logits (None: `vocab_size`).
    """

    model_type = MODEL_TYPE

    vocab_size: int = 64
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    head_dim: int | None = None
    intermediate_size: int = 0
    hidden_act: str = "relu"
    max_position_embeddings: int = 32
    norm: str = "none"
    final_norm: str | None = None
    norm_eps: float = 1e-5
    causal: bool = True
    attention_scales: list[float] | None = None
    n_outputs: int | None = None
    initializer_range: float = 0.2
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **options: Any) -> None:
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        self.final_norm = self.norm if self.final_norm is None else self.final_norm
        self.n_outputs = self.vocab_size if self.n_outputs is None else self.n_outputs
        if self.attention_scales is None:
            self.attention_scales = [float(self.head_dim) ** -0.5] * self.num_hidden_layers
        self.use_cache = self.use_cache and self.causal
        super().__post_init__(**options)


class Attention(nn.Module):
    """Attention with biases throughout; heads of any size."""

    num_key_value_groups = 1

    def __init__(self, config: PlantedConfig, layer: int) -> None:
        super().__init__()
        heads, d_head = config.num_attention_heads, cast(int, config.head_dim)
        self.config, self.layer_idx, self.d_head = config, layer, d_head
        self.is_causal = config.causal
        self.scaling = float(cast(list[float], config.attention_scales)[layer])
        self.q, self.k, self.v = (nn.Linear(config.hidden_size, heads * d_head) for _ in range(3))
        self.o = nn.Linear(heads * d_head, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> tuple[Tensor, Tensor | None]:
        """What attention adds, and the pattern where the implementation has it."""
        q, k, v = (
            part(x).unflatten(-1, (-1, self.d_head)).transpose(1, 2) for part in (self.q, self.k, self.v)
        )
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        z, pattern = attend(self, q, k, v, mask, scaling=self.scaling, dropout=0.0)
        return self.o(z.flatten(2)), pattern


def eager_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention step by step; q, k, v [row, head, position, d_head], `mask` added to the scores."""
    scores = q @ k.transpose(-1, -2) * scaling
    scores = scores if mask is None else scores + mask
    wide = torch.promote_types(q.dtype, torch.float32)
    pattern = nn.functional.softmax(scores, dim=-1, dtype=wide).to(q.dtype)
    return (pattern @ v).transpose(1, 2), pattern


class MLP(nn.Module):
    """One hidden layer."""

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = activation(config.hidden_act)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """What the MLP adds."""
        out: Tensor = self.down(self.act(self.up(x)))
        return out


class DecoderLayer(nn.Module):
    """Attention and, unless the model is attention-only, an MLP."""

    def __init__(self, config: PlantedConfig, layer: int) -> None:
        super().__init__()
        self.norm1 = make_norm(config.norm, config)
        self.attention = Attention(config, layer)
        self.mlp: MLP | None = None
        if config.intermediate_size:
            self.norm2 = make_norm(config.norm, config)
            self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """The stream leaving the layer."""
        x = x + self.attention(self.norm1(x), mask, cache)[0]
        return x if self.mlp is None else x + self.mlp(self.norm2(x))


def solu(x: Tensor) -> Tensor:
    """x * softmax(x) over the hidden units (Elhage et al. 2022, without the LayerNorm after it)."""
    return x * x.softmax(-1)


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """An activation by its name.

    Raises:
        CapabilityError: for another name.
    """
    if name not in ACTIVATIONS:
        raise CapabilityError(
            f"There is no activation {name!r} here.", f"There are: {', '.join(ACTIVATIONS)}."
        )
    if name == "solu":
        return solu
    found: Callable[[Tensor], Tensor] = ACT2FN[name]
    return found


def make_norm(kind: str, config: PlantedConfig) -> nn.Module:
    """A norm of a kind; the identity for ``none``.

    Raises:
        CapabilityError: for another kind.
    """
    if kind == "layer":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    if kind == "rms":
        return nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
    if kind != "none":
        raise CapabilityError(f"There is no norm {kind!r} here.", "There are: none, layer, rms.")
    return nn.Identity()


class PlantedForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]  # untyped bases
    """A HookedTransformer-style model; see `PlantedConfig`."""

    config_class = PlantedConfig
    config: PlantedConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _no_split_modules = ("DecoderLayer",)

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.final_norm = make_norm(cast(str, config.final_norm), config)
        self.unembed = nn.Linear(config.hidden_size, cast(int, config.n_outputs))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def set_input_embeddings(self, value: Any) -> None:
        self.embed = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [row, position, n_outputs]; with `labels` also the next-token loss."""
        x = self.embed(input_ids) if inputs_embeds is None else inputs_embeds
        if (self.config.use_cache if use_cache is None else use_cache) and self.config.causal:
            past_key_values = DynamicCache() if past_key_values is None else past_key_values
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(past, past + x.shape[1], device=x.device)[None]
        mask = self._mask(x, attention_mask, past_key_values, position_ids)
        x = x + self.positions(position_ids)
        states, patterns = [x], []
        for layer in self.layers:
            if output_attentions:
                patterns.append(self._pattern(layer, x, mask))
            x = layer(x, mask, past_key_values)
            states.append(x)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.unembed(self.final_norm(x)[:, kept])
        return CausalLMOutputWithPast(
            loss=None if labels is None else _next_token_loss(logits, labels),
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(patterns) if output_attentions else None,
        )

    def _mask(self, x: Tensor, given: Tensor | None, cache: Cache | None, positions: Tensor) -> Tensor | None:
        if self.config.causal:
            mask = create_causal_mask(
                config=self.config,
                inputs_embeds=x,
                attention_mask=given,
                past_key_values=cache,
                position_ids=positions,
            )
        else:
            mask = create_bidirectional_mask(config=self.config, inputs_embeds=x, attention_mask=given)
        return cast("Tensor | None", mask)

    def _pattern(self, layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
        """The layer's attention pattern, [row, head, query, key]; as the library, for eager attention."""
        if self.config._attn_implementation != "eager":
            raise CapabilityError(
                "Patterns are returned by eager attention alone.", "Load the model with it."
            )
        pattern: Tensor = layer.attention(layer.norm1(x), mask, None)[1]
        return pattern

    def generate(self, *arguments: Any, **options: Any) -> Any:
        """The library's `generate`, for models that can continue a text.

        Raises:
            CapabilityError: for a bidirectional model, or one whose logits are not over its tokens.
        """
        if not self.config.causal or self.config.n_outputs != self.config.vocab_size:
            raise CapabilityError(
                "This model cannot continue a text: its positions see the whole prompt, or its logits are "
                "not over its tokens.",
                "Read its logits instead.",
            )
        return super().generate(*arguments, **options)


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy in nats of each next label; -100 is left out."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1).to(wide), labels[:, 1:].flatten())


def register() -> None:
    """Make the library's automatic classes know `mech-planted`. May be called any number of times."""
    AutoConfig.register(MODEL_TYPE, PlantedConfig, exist_ok=True)
    AutoModelForCausalLM.register(PlantedConfig, PlantedForCausalLM, exist_ok=True)
