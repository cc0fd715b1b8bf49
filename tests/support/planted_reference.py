"""A HookedTransformer written out plainly from its weights, one head at a time: the oracle of `mech-planted`.

It shares no code with the engine or the model class and calls none of its modules. `tap` is as in
`reference`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from reference import Tap, untouched
from torch import Tensor


def run(module: Any, ids: list[int], tap: Tap = untouched) -> Tensor:
    """Logits [position, outputs] of one prompt."""
    config, state = module.config, module.state_dict()
    x = tap("embed", None, state["embed.weight"][ids])
    x = x + tap("pos_embed", None, state["positions.weight"][: len(ids)])
    for layer in range(config.num_hidden_layers):
        own = {
            name.removeprefix(f"layers.{layer}."): value
            for name, value in state.items()
            if name.startswith(f"layers.{layer}.")
        }
        x = tap("resid_pre", layer, x)
        x = x + _attention(
            config, own, _normed("ln1", layer, config.norm, own, "norm1", config, x, tap), layer, tap
        )
        if config.intermediate_size:
            x = tap("resid_mid", layer, x)
            inner = _normed("ln2", layer, config.norm, own, "norm2", config, x, tap)
            pre = tap("mlp_pre", layer, inner @ own["mlp.up.weight"].T + own["mlp.up.bias"])
            post = tap("mlp_post", layer, _activated(config.hidden_act, pre))
            out = tap("mlp_out_own", layer, post @ own["mlp.down.weight"].T + own["mlp.down.bias"])
            x = x + tap("mlp_out", layer, out)
        x = tap("resid_post", layer, x)
    normed = _normed("ln_final", None, config.final_norm, state, "final_norm", config, x, tap)
    return tap("logits", None, normed @ state["unembed.weight"].T + state["unembed.bias"])


def _attention(config: Any, own: dict[str, Tensor], x: Tensor, layer: int, tap: Tap) -> Tensor:
    n, heads, size = len(x), config.num_attention_heads, config.head_dim
    split = {}
    for name in "qkv":
        weight, bias = own[f"attention.{name}.weight"], own[f"attention.{name}.bias"]
        columns = [range(h * size, (h + 1) * size) for h in range(heads)]
        split[name] = tap(name, layer, torch.stack([x @ weight[c].T + bias[c] for c in columns], 1))
    scores = torch.empty(heads, n, n, dtype=x.dtype)
    for head in range(heads):
        for query in range(n):
            for key in range(n):
                dot = (split["q"][query, head] * split["k"][key, head]).sum()
                hidden = config.causal and key > query
                scores[head, query, key] = -1e30 if hidden else dot * config.attention_scales[layer]
    pattern = tap("pattern", layer, tap("attn_scores", layer, scores).softmax(-1))
    z = tap("z", layer, torch.stack([pattern[h] @ split["v"][:, h] for h in range(heads)], 1))
    weight = own["attention.o.weight"]
    parts = [z[:, h] @ weight[:, h * size : (h + 1) * size].T for h in range(heads)]
    out = tap("result", layer, torch.stack(parts, 1)).sum(1) + own["attention.o.bias"]
    return tap("attn_out", layer, tap("attn_out_own", layer, out))


def _normed(
    kind: str, layer: int | None, norm: str, own: Any, name: str, config: Any, x: Tensor, tap: Tap
) -> Tensor:
    if norm == "none":
        return x
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + config.norm_eps).sqrt() * own[f"{name}.weight"]
    return tap(kind, layer, x + own[f"{name}.bias"] if norm == "layer" else x)


def _activated(name: str, x: Tensor) -> Tensor:
    if name == "relu":
        return torch.where(x > 0, x, torch.zeros_like(x))
    if name == "solu":
        return x * x.exp() / x.exp().sum(-1, keepdim=True)
    if name == "gelu":
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    assert name == "gelu_new"
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
