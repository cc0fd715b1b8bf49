"""Tiny random checkpoints, small enough that every test can afford a slow obvious way."""

from __future__ import annotations

import types
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.tokens import Tokens

VOCABULARY, CONTEXT, LAYERS, D_MODEL, HEADS, D_MLP = 97, 24, 3, 32, 4, 40
ARCHITECTURES = ("gpt2", "llama")


def hf_gpt2(seed: int = 0, attention: str = "sdpa", **changes: Any) -> Any:
    """A random `GPT2LMHeadModel` whose every parameter, biases and norms included, is generic."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_inner": D_MLP, "n_positions": CONTEXT}
    config = GPT2Config(
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
        **{**sizes, **changes},
    )
    return randomise(GPT2LMHeadModel(config), seed)


def hf_llama(seed: int = 0, attention: str = "sdpa", **changes: Any) -> Any:
    """A random `LlamaForCausalLM` with two key/value heads under four query heads."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {
        "hidden_size": D_MODEL,
        "intermediate_size": D_MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation=attention,
        **{**sizes, **changes},
    )
    return randomise(LlamaForCausalLM(config), seed)


def hf_model(architecture: str, **options: Any) -> Any:
    """A random library model of one of `ARCHITECTURES`."""
    return {"gpt2": hf_gpt2, "llama": hf_llama}[architecture](**options)


def randomise(module: Any, seed: int) -> Any:
    """Give every parameter generic values, large enough that attention is far from uniform."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            draw = torch.randn(parameter.shape, generator=generator)
            norm = "ln_" in name or "norm" in name
            parameter.copy_(1 + 0.2 * draw if norm and name.endswith("weight") else 0.25 * draw)
    return module.eval()


def in_float64(module: Any) -> Any:
    """The model in double precision throughout: the library's RMSNorm itself would go through float32."""
    for part in module.modules():
        if type(part).__name__ == "LlamaRMSNorm":
            part.forward = types.MethodType(_plain_rms_norm, part)
    return module.double()


def _plain_rms_norm(self: Any, x: Tensor) -> Tensor:
    return self.weight * x / (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).sqrt()


def opened(architecture: str, *, double: bool = False, **options: Any) -> HuggingFaceModel:
    """A tiny random model, opened (which verifies its identities)."""
    module = hf_model(architecture, **options)
    return open_module(in_float64(module) if double else module, name=f"tiny-{architecture}")


def random_ids(lengths: tuple[int, ...], seed: int, vocabulary: int = VOCABULARY) -> list[list[int]]:
    """One list of random ids for each length."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]


def three_runs() -> dict[str, Tokens]:
    """`base` (ragged), `other` (one token changed at position 2), `far` (all changed, one token longer)."""
    base = random_ids((7, 5, 9), seed=1)
    other = [[(token + 1) % VOCABULARY if at == 2 else token for at, token in enumerate(row)] for row in base]
    far = random_ids((8, 6, 10), seed=2)
    return {name: Tokens.from_lists(rows) for name, rows in (("base", base), ("other", other), ("far", far))}


def largest_gap(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference, infinite where shapes or finiteness differ."""
    if left.shape != right.shape or not bool(torch.isfinite(left).all()):
        return float("inf")
    return float((left - right).detach().abs().max()) if left.numel() else 0.0
