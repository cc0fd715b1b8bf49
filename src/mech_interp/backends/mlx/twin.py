"""A tiny random model with a checkpoint's config: what is computed is checked without its weights."""

from __future__ import annotations

from typing import Any

from mech_interp.backends.checks import verify
from mech_interp.backends.huggingface.opening import library_logits
from mech_interp.backends.mlx.convert import to_mlx
from mech_interp.backends.mlx.decoder import Decoder
from mech_interp.backends.mlx.facts import facts_of
from mech_interp.backends.mlx.files import build_parts
from mech_interp.backends.mlx.model import MLXModel

WIDTH_OF_HEAD, VOCABULARY, WINDOW = 8, 61, 4


def check_twin(config: Any, name: str, place: Any, *, explicit: bool) -> None:
    """Compare this backend with the library on a tiny model that has the config's options.

    Raises:
        IdentityError: when logits or an identity differ, so that the config asks for something that this
            backend computes otherwise.
    """
    from mech_interp.backends.mlx.opening import describe

    module = library_twin(config)
    own = f"a tiny model with the config of {name}"
    facts = facts_of(module.config, own)
    tensors = {key: to_mlx(value) for key, value in module.state_dict().items()}
    decoder = Decoder(facts, build_parts(tensors, facts, "float32", own), explicit=explicit)
    model = MLXModel(describe(decoder, place, name=own, source="memory"), None, decoder, place)
    verify(model, lambda tokens: library_logits(module, tokens))


def library_twin(config: Any) -> Any:
    """The library's model of the shrunken config, every parameter random."""
    import torch
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    module = AutoModelForCausalLM.from_config(shrunken(config), attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
    return module.float()


def shrunken(config: Any) -> Any:
    """The config with small sizes: the same options, one layer (at least two in all) of every kind."""
    from transformers import AutoConfig

    options = config.to_dict()
    kind = options.pop("model_type")
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        options[token] = None
    options |= {"vocab_size": VOCABULARY, "dtype": "float32"}
    if kind == "gpt2":
        options |= {"n_embd": 4 * WIDTH_OF_HEAD, "n_head": 4, "n_layer": 2, "n_inner": 24}
        return AutoConfig.for_model(kind, **options)
    n_heads = 2 * (config.num_attention_heads // config.num_key_value_heads)
    options |= {
        "num_attention_heads": n_heads,
        "num_key_value_heads": 2,
        "hidden_size": n_heads * WIDTH_OF_HEAD,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
    }
    if options.get("head_dim") is not None:
        options["head_dim"] = WIDTH_OF_HEAD
    if options.get("layer_types") is not None:
        kinds = list(dict.fromkeys(options["layer_types"]))
        options["layer_types"] = (kinds * 2)[: max(2, len(kinds))]
    if options.get("sliding_window") is not None:
        options["sliding_window"] = WINDOW
    return AutoConfig.for_model(kind, **options)
