"""Checkpoints in HookedTransformer form, and saved `mech-planted` folders, opened from disk."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import largest_gap, random_ids
from torch import Tensor

from mech_interp.backends.huggingface.checkpoint import open_folder
from mech_interp.backends.huggingface.hooked_convert import config_of, from_hooked
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.loading import load_model
from mech_interp.errors import CapabilityError, MechError, ModelError

IDS = random_ids((6, 3), seed=2, vocabulary=11)
BARE: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 12,
    "d_head": 5,
    "n_heads": 3,
    "n_ctx": 9,
    "d_vocab": 11,
    "d_vocab_out": 4,
    "attn_only": True,
    "normalization_type": None,
    "attention_dir": "bidirectional",
    "seed": 0,
}
FULL: dict[str, Any] = {
    **BARE,
    "d_vocab_out": -1,
    "attn_only": False,
    "d_mlp": 7,
    "act_fn": "relu",
    "normalization_type": "LN",
    "attention_dir": "causal",
    "positional_embedding_type": "standard",
    "eps": 1e-3,
}
FORMS: dict[str, dict[str, Any]] = {
    "bare": BARE,
    "full": FULL,
    "folded": {**FULL, "normalization_type": "LNPre", "act_fn": "gelu_new"},
    "rms": {**FULL, "normalization_type": "RMS", "act_fn": "solu"},
    "rms folded": {**FULL, "normalization_type": "RMSPre", "act_fn": "silu"},
    "final rms": {**FULL, "final_rms": True, "use_attn_scale": False},
    "own scale": {**FULL, "attn_scale": 3.0, "scale_attn_by_inverse_layer_idx": True},
}


def state_of(options: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Generic tensors under the names and shapes of such a model, its mask buffers included."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 0.4 * torch.randn(*shape, generator=generator)

    d, h, e, n = options["d_model"], options["n_heads"], options["d_head"], options["n_ctx"]
    outputs = options["d_vocab"] if options["d_vocab_out"] == -1 else options["d_vocab_out"]
    state = {"embed.W_E": draw(options["d_vocab"], d), "pos_embed.W_pos": draw(n, d)}
    state |= {"unembed.W_U": draw(d, outputs), "unembed.b_U": draw(outputs)}
    kind = options["normalization_type"]
    for layer in range(options["n_layers"]):
        own = f"blocks.{layer}"
        for part in "QKV":
            state |= {f"{own}.attn.W_{part}": draw(h, d, e), f"{own}.attn.b_{part}": draw(h, e)}
        state |= {f"{own}.attn.W_O": draw(h, e, d), f"{own}.attn.b_O": draw(d)}
        state |= {f"{own}.attn.mask": torch.ones(n, n).tril().bool()}
        state |= {f"{own}.attn.IGNORE": torch.tensor(-torch.inf)}
        if not options["attn_only"]:
            m = options["d_mlp"]
            state |= {f"{own}.mlp.W_in": draw(d, m), f"{own}.mlp.b_in": draw(m)}
            state |= {f"{own}.mlp.W_out": draw(m, d), f"{own}.mlp.b_out": draw(d)}
    names = ["ln_final", *(f"blocks.{i}.ln{j}" for i in range(options["n_layers"]) for j in (1, 2))]
    for name in names if kind in ("LN", "RMS") else []:
        state[f"{name}.w"] = 1 + draw(d)
        rms = kind == "RMS" or (name == "ln_final" and options.get("final_rms"))
        state |= {} if rms else {f"{name}.b": draw(d)}
    return state


def published(options: dict[str, Any], state: dict[str, Tensor], ids: list[int]) -> Tensor:
    """Logits by the published definition of such a model, in its own names and index order."""
    n, kind = len(ids), options["normalization_type"]

    def norm(x: Tensor, name: str) -> Tensor:
        if kind is None:
            return x
        rms = kind.startswith("RMS") or (name == "ln_final" and options.get("final_rms"))
        x = x if rms else x - x.mean(-1, keepdim=True)
        x = x / (x.pow(2).mean(-1, keepdim=True) + options.get("eps", 1e-5)).sqrt()
        x = x * state[f"{name}.w"] if f"{name}.w" in state else x
        return x + state[f"{name}.b"] if f"{name}.b" in state else x

    x = state["embed.W_E"][ids] + state["pos_embed.W_pos"][:n]
    for layer in range(options["n_layers"]):
        own = {k.removeprefix(f"blocks.{layer}."): v for k, v in state.items()}
        inner = norm(x, f"blocks.{layer}.ln1")
        q, k, v = (
            torch.einsum("pd,hde->phe", inner, own[f"attn.W_{part}"]) + own[f"attn.b_{part}"]
            for part in "QKV"
        )
        by = math.sqrt(options["d_head"]) if options.get("use_attn_scale", True) else 1.0
        by = options.get("attn_scale", by)
        by = by * (layer + 1) if options.get("scale_attn_by_inverse_layer_idx") else by
        scores = torch.einsum("qhe,khe->hqk", q, k) / by
        if options["attention_dir"] == "causal":
            scores = scores.masked_fill(~torch.ones(n, n).tril().bool(), -torch.inf)
        z = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)
        x = x + torch.einsum("phe,hed->pd", z, own["attn.W_O"]) + own["attn.b_O"]
        if not options["attn_only"]:
            pre = norm(x, f"blocks.{layer}.ln2") @ own["mlp.W_in"] + own["mlp.b_in"]
            x = x + act(options["act_fn"], pre) @ own["mlp.W_out"] + own["mlp.b_out"]
    return norm(x, "ln_final") @ state["unembed.W_U"] + state["unembed.b_U"]


def act(name: str, x: Tensor) -> Tensor:
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    return {"relu": x.clamp(min=0), "solu": x * x.softmax(-1), "silu": x * x.sigmoid(), "gelu_new": tanh}[
        name
    ]


def write(
    folder: Path, options: dict[str, Any], state: dict[str, Tensor], config: str = "config.json"
) -> Path:
    folder.mkdir()
    (folder / config).write_text(json.dumps(options))
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("form", FORMS)
def test_a_folder_gives_the_published_logits(form: str, tmp_path: Path) -> None:
    options, state = FORMS[form], state_of(FORMS[form])
    config = "cfg.json" if form == "rms" else "config.json"
    model = load_model(str(write(tmp_path / "toy", options, state, config)), dtype="float64")
    double = {name: value.double() for name, value in state.items()}
    found = model.forward(IDS).logits
    for i, ids in enumerate(IDS):
        assert largest_gap(found[i, : len(ids)], published(options, double, ids)) < 1e-12
    assert (model.info.name, model.info.d_head, model.info.n_layers) == ("toy", 5, 2)
    assert model.info.causal is (options["attention_dir"] == "causal")


def test_weights_keep_their_names_and_index_order() -> None:
    state = state_of(FULL)
    model = open_module(from_hooked(FULL, state))
    for part in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
        assert torch.equal(model.weights(part, 1), state[f"blocks.1.attn.{part}"])
    for part in ("W_in", "b_in", "W_out", "b_out"):
        assert torch.equal(model.weights(part, 0), state[f"blocks.0.mlp.{part}"])
    assert torch.equal(model.weights("ln2.b", 1), state["blocks.1.ln2.b"])
    for name in ("embed.W_E", "pos_embed.W_pos", "unembed.W_U", "unembed.b_U"):
        assert torch.equal(model.weights(name.partition(".")[2]), state[name])
    assert torch.equal(model.weights("ln_final.w"), state["ln_final.w"])


@pytest.mark.parametrize("form", FORMS)
def test_a_model_survives_being_saved_and_opened(form: str, tmp_path: Path) -> None:
    module = from_hooked(FORMS[form], state_of(FORMS[form]))
    module.save_pretrained(tmp_path)
    assert [file.suffix for file in tmp_path.glob("*.safetensors")] == [".safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mech-planted"
    for attention in ("sdpa", "eager"):
        model = open_folder(tmp_path, name="saved", source="folder", device="cpu", attention=attention)
        assert model.info.attention == attention
        assert largest_gap(model.forward(IDS).logits, open_module(module).forward(IDS).logits) < 1e-5
    assert model.module.config.to_dict()["attention_scales"] == module.config.attention_scales


def test_half_precision_weights_keep_their_type() -> None:
    state = {name: value.bfloat16() for name, value in state_of(BARE).items()}
    assert open_module(from_hooked(BARE, state)).info.dtype == "bfloat16"


REFUSED: list[tuple[str, Any]] = [
    ("positional_embedding_type", "rotary"),
    ("positional_embedding_type", "shortformer"),
    ("attention_dir", "backwards"),
    ("normalization_type", "Batch"),
    ("act_fn", "solu_ln"),
    ("gated_mlp", True),
    ("parallel_attn_mlp", True),
    ("use_local_attn", True),
    ("n_key_value_heads", 1),
    ("num_experts", 4),
    ("attn_scores_soft_cap", 30.0),
    ("output_logits_soft_cap", 30.0),
    ("use_qk_norm", True),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_what_is_not_covered_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(CapabilityError, match=name) as caught:
        from_hooked({**FULL, name: value}, state_of(FULL))
    assert str(value) in caught.value.message


@pytest.mark.parametrize("name", ["n_layers", "d_model", "n_ctx", "d_vocab", "act_fn"])
def test_what_must_be_stated(name: str) -> None:
    with pytest.raises(ModelError, match=name):
        config_of({key: value for key, value in FULL.items() if key != name})


def test_sizes_that_may_be_left_out() -> None:
    config = config_of({**FULL, "d_head": 4, "d_mlp": None, "n_heads": -1, "n_key_value_heads": 3})
    assert (config.num_attention_heads, config.intermediate_size, config.n_outputs) == (3, 48, 11)
    unstated = {
        key: value for key, value in FULL.items() if key not in ("normalization_type", "attention_dir")
    }
    assert (config_of(unstated).norm, config_of(unstated).causal) == ("layer", True)


def test_tensors_that_do_not_fit_are_named() -> None:
    state = state_of(FULL)
    without = {name: value for name, value in state.items() if name != "blocks.1.attn.b_V"}
    with pytest.raises(ModelError, match=r"lacks blocks\.1\.attn\.b_V"):
        from_hooked(FULL, without)
    with pytest.raises(ModelError, match=r"blocks\.0\.mlp\.W_in has the shape"):
        from_hooked({**FULL, "d_mlp": 8}, state)
    with pytest.raises(ModelError, match="do not call for"):
        from_hooked({**FULL, "attn_only": True}, state)
    with pytest.raises(ModelError, match=r"lacks ln_final\.w"):
        from_hooked(FULL, state_of({**FULL, "normalization_type": "LNPre"}))


def test_pickled_weights_need_leave(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(BARE))
    torch.save(state_of(BARE), folder / "model.pt")
    with pytest.raises(ModelError, match="pickled weights"):
        load_model(str(folder))
    model = load_model(str(folder), allow_pickle=True, device="cpu")
    assert largest_gap(model.forward([IDS[0]]).logits[0], published(BARE, state_of(BARE), IDS[0])) < 1e-5
    torch.save(state_of(BARE), folder / "older.pt")
    with pytest.raises(ModelError, match="Two files of toy hold"):
        load_model(str(folder), allow_pickle=True)


class Unwelcome:
    """An object that a state dict has no business to hold."""


@pytest.mark.parametrize("content", [{"state_dict": {}}, [1, 2], Unwelcome()])
def test_only_plain_state_dicts_are_read(content: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BARE))
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(MechError) as caught:
        load_model(str(tmp_path), allow_pickle=True)
    assert caught.value.exit_code == 3
    assert caught.value.hint


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", BARE, state_of(BARE))
    (folder / "model.safetensors").write_bytes(b"not a file of tensors")
    with pytest.raises(ModelError, match="damaged"):
        load_model(str(folder))
    state = state_of(BARE) | {"unembed.b_U": torch.full((4,), torch.nan)}
    with pytest.raises(ModelError, match="NaN"):
        load_model(str(write(tmp_path / "nan", BARE, state)))
