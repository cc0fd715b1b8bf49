"""A decoder written out plainly from its weights, one prompt at a time: the oracle of forward passes.

It shares no code with the engine and calls no module of the library. `tap(kind, layer, tensor)` sees
each site's tensor, [position, ...] or [head, position, key], and may hand back another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

Tap = Callable[[str, int | None, Tensor], Tensor]


def untouched(kind: str, layer: int | None, value: Tensor) -> Tensor:
    """The tap that changes nothing."""
    return value


def run(module: Any, ids: list[int], tap: Tap = untouched) -> Tensor:
    """Logits [position, vocabulary] of one prompt."""
    return {"gpt2": _gpt2, "llama": _llama}[module.config.model_type](module, torch.tensor(ids), tap)


def _attend(q: Tensor, k: Tensor, v: Tensor, layer: int, tap: Tap) -> Tensor:
    n, n_heads, d_head = q.shape
    shared = n_heads // k.shape[1]
    scores = torch.empty(n_heads, n, n, dtype=q.dtype)
    for head in range(n_heads):
        scores[head] = q[:, head] @ k[:, head // shared].T / math.sqrt(d_head)
    future = torch.ones(n, n).triu(1).bool()
    scores = tap("attn_scores", layer, scores.masked_fill(future, torch.finfo(q.dtype).min))
    pattern = tap("pattern", layer, scores.softmax(-1))
    z = torch.stack([pattern[head] @ v[:, head // shared] for head in range(n_heads)], 1)
    return tap("z", layer, z)


def _attention_out(z: Tensor, w_o: Tensor, b_o: Tensor | None, layer: int, tap: Tap) -> Tensor:
    """w_o is [head * d_head, d_model]."""
    per_head = w_o.view(z.shape[1], z.shape[2], -1)
    result = tap("result", layer, torch.stack([z[:, h] @ per_head[h] for h in range(z.shape[1])], 1))
    out = result.sum(1) if b_o is None else result.sum(1) + b_o
    return tap("attn_out", layer, tap("attn_out_own", layer, out))


def _layer_norm(x: Tensor, norm: Any) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def _gpt2(module: Any, ids: Tensor, tap: Tap) -> Tensor:
    stack, n_heads = module.transformer, module.config.n_head
    x = tap("embed", None, stack.wte.weight[ids]) + tap("pos_embed", None, stack.wpe.weight[: len(ids)])
    for layer, block in enumerate(stack.h):
        x = tap("resid_pre", layer, x)
        normed = tap("ln1", layer, _layer_norm(x, block.ln_1))
        fused = (normed @ block.attn.c_attn.weight + block.attn.c_attn.bias).chunk(3, -1)
        q, k, v = (
            tap(name, layer, part.reshape(len(ids), n_heads, -1))
            for name, part in zip("qkv", fused, strict=True)
        )
        z = _attend(q, k, v, layer, tap)
        out = _attention_out(z, block.attn.c_proj.weight, block.attn.c_proj.bias, layer, tap)
        x = tap("resid_mid", layer, x + out)
        normed = tap("ln2", layer, _layer_norm(x, block.ln_2))
        pre = tap("mlp_pre", layer, normed @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)
        curve = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
        post = tap("mlp_post", layer, curve)
        out = tap("mlp_out_own", layer, post @ block.mlp.c_proj.weight + block.mlp.c_proj.bias)
        x = tap("resid_post", layer, x + tap("mlp_out", layer, out))
    normed = tap("ln_final", None, _layer_norm(x, stack.ln_f))
    return tap("logits", None, normed @ module.lm_head.weight.T)


def _rms_norm(x: Tensor, norm: Any) -> Tensor:
    return norm.weight * x / (x.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()


def _rotated(x: Tensor, theta: float) -> Tensor:
    """Each pair (i, i + d/2) turned by position * theta^(-2i/d), in the library's float32 angles."""
    n, _, d = x.shape
    rates = 1.0 / theta ** (torch.arange(0, d, 2).float() / d)
    angles = torch.arange(n).float()[:, None] * rates[None]
    cos, sin = angles.cos().to(x)[:, None], angles.sin().to(x)[:, None]
    a, b = x[..., : d // 2], x[..., d // 2 :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


def _llama(module: Any, ids: Tensor, tap: Tap) -> Tensor:
    stack, config = module.model, module.config
    theta = config.rope_parameters["rope_theta"]
    x = tap("embed", None, stack.embed_tokens.weight[ids])
    for layer, block in enumerate(stack.layers):
        x = tap("resid_pre", layer, x)
        normed = tap("ln1", layer, _rms_norm(x, block.input_layernorm))
        own, mlp = block.self_attn, block.mlp
        counts = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        q, k, v = (
            tap(name, layer, functional.linear(normed, p.weight, p.bias).reshape(len(ids), n, -1))
            for name, p, n in zip("qkv", (own.q_proj, own.k_proj, own.v_proj), counts, strict=True)
        )
        q = tap("rot_q", layer, _rotated(q, theta))
        k = tap("rot_k", layer, _rotated(k, theta))
        z = _attend(q, k, v, layer, tap)
        out = _attention_out(z, own.o_proj.weight.T, own.o_proj.bias, layer, tap)
        x = tap("resid_mid", layer, x + out)
        normed = tap("ln2", layer, _rms_norm(x, block.post_attention_layernorm))
        pre = tap("mlp_pre", layer, functional.linear(normed, mlp.gate_proj.weight, mlp.gate_proj.bias))
        linear = tap("mlp_pre_linear", layer, functional.linear(normed, mlp.up_proj.weight, mlp.up_proj.bias))
        post = tap("mlp_post", layer, pre * pre.sigmoid() * linear)
        out = tap("mlp_out_own", layer, functional.linear(post, mlp.down_proj.weight, mlp.down_proj.bias))
        x = tap("resid_post", layer, x + tap("mlp_out", layer, out))
    normed = tap("ln_final", None, _rms_norm(x, stack.norm))
    return tap("logits", None, normed @ module.lm_head.weight.T)
