"""A model's parameters as torch tensors, in the convention of `InstrumentedModel.weights`."""

from __future__ import annotations

from torch import Tensor

from mech_interp.backends.mlx.convert import to_torch
from mech_interp.backends.mlx.facts import Facts
from mech_interp.backends.mlx.files import Parts


def outside_weights(facts: Facts, parts: Parts) -> dict[str, Tensor]:
    """W_E, W_pos, W_U, ln_final.*."""
    own = {key: to_torch(value) for key, value in parts.outside.items()}
    found = {"W_E": own["embed"]}
    if "positions" in own:
        found["W_pos"] = own["positions"]
    found |= {"W_U": own["unembed"].T, "ln_final.w": own["ln_final"]}
    return found | ({"ln_final.b": own["ln_final_b"]} if "ln_final_b" in own else {})


def block_weights(facts: Facts, parts: Parts, layer: int) -> dict[str, Tensor]:
    """A block's matrices, divided into heads where attention is, its biases and norm factors."""
    sizes = facts.sizes
    own = {key: to_torch(value) for key, value in parts.blocks[layer].items()}
    counts = {"q": sizes.n_heads, "k": sizes.n_kv_heads, "v": sizes.n_kv_heads}
    found = {
        f"W_{key.upper()}": own[key].view(sizes.d_model, n, sizes.d_head).permute(1, 0, 2)
        for key, n in counts.items()
    }
    found["W_O"] = own["o"].view(sizes.n_heads, sizes.d_head, sizes.d_model)
    found |= {
        f"b_{key.upper()}": own[f"b_{key}"].view(n, -1) for key, n in counts.items() if f"b_{key}" in own
    }
    if "b_o" in own:
        found["b_O"] = own["b_o"]
    for key in ("gate", "in", "out"):
        if key in own:
            found[f"W_{key}"] = own[key]
        if f"b_{key}" in own:
            found[f"b_{key}"] = own[f"b_{key}"]
    for key in ("ln1", "ln2", "ln1_post", "ln2_post", "q_norm", "k_norm"):
        if key in own:
            found[f"{key}.w"] = own[key]
        if f"{key}_b" in own:
            found[f"{key}.b"] = own[f"{key}_b"]
    return found
