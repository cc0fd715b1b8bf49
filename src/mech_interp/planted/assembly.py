"""From a stream and its parts to a module of the library, distractors included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mech_interp.planted.parts import (
    HeadWeights,
    Layer,
    Unit,
    distractor_head,
    distractor_unit,
    head_weights,
)
from mech_interp.planted.stream import Stream

# Hidden units of distraction in every MLP, and the least width of heads.
_UNITS, _WIDTH = 6, 4


@dataclass(frozen=True)
class Readout:
    """How logits are read: [d_model, outputs] and [outputs]."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Assembled:
    """A module, and where its named heads ended up (``a1.h2``)."""

    module: Any
    heads: Mapping[str, str]


def readout(
    stream: Stream, name: str, outputs: int, scale: float, members: Sequence[int] | None = None
) -> Readout:
    """Coordinate i of a subspace, times `scale`, is logit i (or logit `members[i]`)."""
    weight = torch.zeros(stream.d_model, outputs, dtype=torch.float64)
    weight[:, list(range(outputs) if members is None else members)] = scale * stream[name].T
    return Readout(weight, torch.zeros(outputs, dtype=torch.float64))


def assemble(
    stream: Stream,
    layers: Sequence[Layer],
    read: Readout,
    *,
    heads_per_layer: int,
    dtype: torch.dtype | None,
) -> Assembled:
    """A module with these parts and distractors up to `heads_per_layer` heads and six units per MLP.

    Every layer has an MLP. Tokens and positions are embedded in the subspaces ``token`` and
    ``position``. Heads stand in random order.
    """
    d_head = max(_WIDTH, *(head.width for layer in layers for head in layer.heads.values()))
    hidden = max(len(layer.units) for layer in layers) + _UNITS
    module = _empty(stream, len(layers), heads_per_layer, d_head, hidden, len(read.bias))
    names: dict[str, str] = {}
    weights: dict[str, Tensor] = {
        "embed.weight": stream["token"],
        "positions.weight": stream["position"],
        "unembed.weight": (read.weight + stream["shift"].T).T,
        "unembed.bias": read.bias,
    }
    for number, layer in enumerate(layers):
        order = torch.randperm(heads_per_layer, generator=stream.generator).tolist()
        places = dict(zip(layer.heads, order, strict=False))
        names |= {name: f"a{number}.h{at}" for name, at in places.items()}
        made = {at: head_weights(layer.heads[name], stream, d_head) for name, at in places.items()}
        heads = [made.get(at) or distractor_head(stream, d_head) for at in range(heads_per_layer)]
        units = [*layer.units, *(distractor_unit(stream) for _ in range(hidden - len(layer.units)))]
        weights |= {f"layers.{number}.{key}": value for key, value in _layer(heads, units).items()}
    module.to(dtype or torch.float32)
    module.load_state_dict(weights)
    return Assembled(module.eval(), names)


def _empty(stream: Stream, n_layers: int, n_heads: int, d_head: int, hidden: int, outputs: int) -> Any:
    from mech_interp.backends.huggingface.hooked import PlantedConfig, PlantedForCausalLM, register

    register()
    config = PlantedConfig(
        vocab_size=stream.size("token"),
        hidden_size=stream.d_model,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        head_dim=d_head,
        intermediate_size=hidden,
        max_position_embeddings=stream.size("position"),
        attention_scales=[1.0] * n_layers,
        n_outputs=outputs,
    )
    return PlantedForCausalLM(config)


def _layer(heads: Sequence[HeadWeights], units: Sequence[Unit]) -> dict[str, Tensor]:
    """The weights of a layer as the module stores them, linear maps as [out, in]."""
    found = {}
    for name in "qkv":
        reads = [getattr(head, name) for head in heads]
        found[f"attention.{name}.weight"] = torch.cat([read.weight for read in reads], 1).T
        found[f"attention.{name}.bias"] = torch.cat([read.bias for read in reads])
    found["attention.o.weight"] = torch.cat([head.o for head in heads]).T
    found["attention.o.bias"] = torch.zeros(found["attention.o.weight"].shape[0], dtype=torch.float64)
    found["mlp.up.weight"] = torch.stack([unit.read for unit in units])
    found["mlp.up.bias"] = torch.tensor([unit.bias for unit in units], dtype=torch.float64)
    found["mlp.down.weight"] = torch.stack([unit.write for unit in units]).T
    found["mlp.down.bias"] = torch.zeros_like(found["attention.o.bias"])
    return found
