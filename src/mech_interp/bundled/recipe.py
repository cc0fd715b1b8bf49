"""The recipes of the bundled checkpoints: architecture, data mixture, optimiser, seed, and their hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any, Literal

from mech_interp.bundled.corpus import DEFAULT_SHARES
from mech_interp.errors import InputError, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Architecture = Literal["gpt2", "llama"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights of one checkpoint (on one machine and library version).

    A step reads `batch_tokens` tokens in windows of 64 tokens, every third step in windows of 128.
    Matrices inside the blocks are trained by Muon at `matrix_lr`, everything else by AdamW at `peak_lr`.
    The first `plain_steps` steps read the plain corpus, the others the varied one.
    `chat_share` is the share of windows that hold dialogues; `start` names the checkpoint to fine-tune.
    """

    name: str
    architecture: Architecture
    tokens: int
    seed: int = 0
    n_layers: int = 4
    d_model: int = 128
    n_heads: int = 8
    n_kv_heads: int = 8
    d_mlp: int = 512
    context: int = 128
    batch_tokens: int = 3072
    peak_lr: float = 1.2e-3
    matrix_lr: float = 0.01
    final_lr_fraction: float = 0.02
    warmup_steps: int = 100
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    chat_share: float = 0.0
    plain_steps: int = 2016
    start: str | None = None
    threads: int = 1
    shares: dict[str, float] = dataclasses.field(default_factory=lambda: dict(DEFAULT_SHARES))

    @property
    def steps(self) -> int:
        """Optimiser steps: whole batches in `tokens`, at least one."""
        return max(1, self.tokens // self.batch_tokens)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of all fields."""
        canonical = json.dumps(self.as_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("tinyworld", "gpt2", tokens=12_000_000),
        Recipe("tinyworld-llama", "llama", tokens=12_000_000, seed=1, n_kv_heads=4, d_mlp=352),
        Recipe(
            "tinyworld-chat",
            "gpt2",
            tokens=2_500_000,
            seed=2,
            peak_lr=4e-4,
            matrix_lr=0.003,
            warmup_steps=50,
            chat_share=0.7,
            plain_steps=0,
            start="tinyworld",
        ),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of a bundled checkpoint by name."""
    try:
        return RECIPES[name]
    except KeyError:
        raise InputError(
            f"There is no recipe called {name!r}.",
            nearest(name, RECIPES) or f"Recipes: {', '.join(RECIPES)}.",
        ) from None


def new_model(
    recipe: Recipe, vocabulary: int, *, end_id: int = 0, seed: int | None = None
) -> PreTrainedModel:
    """A freshly initialised model of the recipe's architecture (`seed` defaults to the recipe's own)."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(recipe.seed if seed is None else seed)
    if recipe.architecture == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary,
                n_positions=recipe.context,
                n_embd=recipe.d_model,
                n_layer=recipe.n_layers,
                n_head=recipe.n_heads,
                n_inner=recipe.d_mlp,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
                bos_token_id=end_id,
                eos_token_id=end_id,
                pad_token_id=end_id,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=recipe.d_model,
            intermediate_size=recipe.d_mlp,
            num_hidden_layers=recipe.n_layers,
            num_attention_heads=recipe.n_heads,
            num_key_value_heads=recipe.n_kv_heads,
            max_position_embeddings=recipe.context,
            tie_word_embeddings=True,
            bos_token_id=end_id,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
    )
