"""Opening folders in MLX: which files are read, what is refused, and that a wrong model is found out."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mech_interp.backends import mlx
from mech_interp.errors import CapabilityError, InputError, MissingExtraError, ModelError

pytest.importorskip("mlx.core", reason="MLX is not installed")

IDS = [[5, 17, 2, 90, 33, 8, 41], [3, 1, 4]]


def open_it(folder: Path, **options: Any) -> Any:
    return mlx.open_folder(folder, **{"name": "it", "source": str(folder), **options})


def logits(folder: Path) -> Any:
    return open_it(folder).forward(IDS).logits


@pytest.fixture
def folder(originals: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint with its config or its tensors changed."""

    def copy(variant: str, config: dict[str, Any] | None = None, tensors: Any = None) -> Path:
        place = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(originals(variant), place)
        if config:
            stated = json.loads((place / "config.json").read_text())
            (place / "config.json").write_text(json.dumps(stated | config))
        if tensors:
            held = tensors(load_file(place / "model.safetensors"))
            save_file({k: v.contiguous() for k, v in held.items()}, place / "model.safetensors")
        return place

    return copy


# Which files and tensors are read.


def test_shards_are_read(folder: Any, originals: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    whole = originals("llama")
    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(sharded, max_shard_size="30KB")
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 2
    # A stray copy in another form, as some hub folders hold, is not part of the model.
    save_file({"model.norm.weight": torch.zeros(32)}, sharded / "consolidated.safetensors")
    assert torch.equal(logits(sharded), logits(whole))
    shards[1].unlink()
    with pytest.raises(ModelError, match=f"lacks the weight file {shards[1].name}"):
        open_it(sharded)
    (sharded / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ModelError, match="index of the weights"):
        open_it(sharded)


@pytest.mark.parametrize(("variant", "prefix"), [("gpt2", "transformer."), ("qwen3", "model.")])
def test_tensors_saved_without_their_prefix(folder: Any, originals: Any, variant: str, prefix: str) -> None:
    bare = folder(variant, tensors=lambda held: {k.removeprefix(prefix): v for k, v in held.items()})
    assert not any(key.startswith(prefix) for key in load_file(bare / "model.safetensors"))
    assert torch.equal(logits(bare), logits(originals(variant)))


def test_tied_tables_are_read_from_whichever_is_stored(folder: Any, originals: Any) -> None:
    def as_head(held: dict[str, Any]) -> dict[str, Any]:
        return {("lm_head.weight" if "wte" in k else k): v for k, v in held.items()}

    def with_both(held: dict[str, Any]) -> dict[str, Any]:
        return held | {"lm_head.weight": held["transformer.wte.weight"].clone()}

    def with_another(held: dict[str, Any]) -> dict[str, Any]:
        return held | {"lm_head.weight": 2 * held["transformer.wte.weight"]}

    plain = open_it(originals("gpt2"))
    expected = plain.forward(IDS).logits
    for change in (as_head, with_both):
        found = open_it(folder("gpt2", tensors=change))
        assert torch.equal(found.forward(IDS).logits, expected)
        assert found.info.n_parameters == plain.info.n_parameters
    # As the library: two stored tables that differ are two.
    untied = open_it(folder("gpt2", tensors=with_another))
    assert torch.allclose(untied.forward(IDS).logits, 2 * expected)
    assert untied.info.n_parameters == plain.info.n_parameters + 97 * 32


def test_files_of_other_dtypes(folder: Any, originals: Any) -> None:
    narrow = folder("llama", tensors=lambda held: {k: v.bfloat16() for k, v in held.items()})
    wide = folder("llama", tensors=lambda held: {k: v.double() for k, v in held.items()})
    assert open_it(narrow).info.dtype == "float32"
    assert torch.equal(logits(wide), logits(originals("llama")))
    rounded = folder("llama", tensors=lambda held: {k: v.bfloat16().float() for k, v in held.items()})
    assert torch.equal(logits(narrow), logits(rounded))


def test_stop_tokens(folder: Any) -> None:
    place = folder("llama", config={"eos_token_id": [4, 7]})
    (place / "generation_config.json").unlink()
    assert list(open_it(place).stop_ids) == [4, 7]
    (place / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert list(open_it(place).stop_ids) == [9]
    (place / "generation_config.json").write_text("{}")
    assert list(open_it(place).stop_ids) == []


# Numbers formats.


@pytest.mark.parametrize("variant", ["gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2e-2), ("bfloat16", 1e-1)])
def test_half_precision(originals: Any, variant: str, dtype: str, bound: float) -> None:
    from mech_interp.backends.huggingface import checkpoint

    place = originals(variant)
    half, whole = open_it(place, dtype=dtype), open_it(place)
    same = checkpoint.open_folder(place, name="it", source="", device="cpu", dtype=dtype, attention="eager")
    torch_dtype = getattr(torch, dtype)
    assert half.info.dtype == dtype
    kinds = sorted(half.info.site_kinds - {"embed", "pos_embed", "ln_final", "logits"})
    found = half.forward(IDS, capture=[f"{kind}.1" for kind in kinds])
    assert {value.dtype for value in found.activations.values()} == {torch_dtype}
    expected = whole.forward(IDS).logits
    gap = float((found.logits.float() - expected)[0].abs().max() / expected.abs().max().clamp(min=1))
    assert 1e-5 < gap < bound
    # Weights, Gemma's norm factors of 1 + w included, are the default engine's to the last bit.
    for name in ("W_Q", "W_out", "ln1.w"):
        assert torch.equal(half.weights(name, 1), same.weights(name, 1)), name
    # Values written to a site keep its dtype.
    edited = half.forward(IDS, capture=["z.1"], interventions=[_zero("z.1")])
    assert edited.activations["z.1"].dtype == torch_dtype
    assert not edited.activations["z.1"][0].any()
    assert half.generate(IDS, max_new_tokens=3, stop_ids=()).finished == ("length", "length")


def _zero(site: str) -> Any:
    from mech_interp.interventions import Intervention, Zero

    return Intervention(site, Zero())


def test_only_what_is_asked_for_crosses(originals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mech_interp.backends.mlx import decoder, model

    opened = open_it(originals("llama"))
    crossed: list[tuple[int, ...]] = []
    inner = decoder.to_torch

    def counting(value: Any) -> Any:
        crossed.append(tuple(value.shape))
        return inner(value)

    monkeypatch.setattr(decoder, "to_torch", counting)
    monkeypatch.setattr(model, "to_torch", counting)
    opened.forward(IDS, capture=["z.1"])
    assert crossed == [(2, 7, 4, 8), (2, 7, 97)]


# Refusals.


def test_a_missing_extra_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mech-interpretability\[mlx\]'"):
        open_it(Path("no/such/folder"))


@pytest.mark.parametrize(
    ("model_type", "words"),
    [
        ("mixtral", ["'mixtral'", "gpt2, llama, qwen2, qwen3, gemma2", "huggingface, hooks and nnsight"]),
        ("no-such-type", ["'no-such-type'", "gpt2, llama", "No backend of this version"]),
    ],
)
def test_other_architectures_are_refused_before_weights_are_read(
    tmp_path: Path, model_type: str, words: list[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    with pytest.raises(CapabilityError) as refused:
        open_it(tmp_path)
    assert all(word in str(refused.value) for word in words), str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"model_type": ""}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_config_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=r"config\.json"):
        open_it(tmp_path)


@pytest.mark.parametrize(
    ("variant", "config", "words"),
    [
        ("gpt2", {"add_cross_attention": True}, "cross-attention"),
        ("gpt2", {"activation_function": "mish"}, "activation 'mish'"),
        ("gemma2", {"use_bidirectional_attention": True}, "both directions"),
        (
            "qwen2",
            {"layer_types": ["full_attention", "chunked_attention", "full_attention"]},
            "'chunked_attention'",
        ),
        ("llama", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}},
            "rotary scaling of the type 'yarn'",
        ),
    ],
)
def test_options_that_are_not_covered(folder: Any, variant: str, config: Any, words: str) -> None:
    with pytest.raises(CapabilityError, match=words):
        open_it(folder(variant, config=config))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"device": "cuda"}, InputError, "does not run on 'cuda'"),
        ({"device": "cuda:1"}, InputError, "does not run on 'cuda:1'"),
        ({"dtype": "float64"}, CapabilityError, "float64"),
        ({"dtype": "float31"}, InputError, "Did you mean float32"),
        ({"attention": "flash"}, InputError, "no attention implementation 'flash'"),
    ],
)
def test_options_are_refused_in_words(originals: Any, options: Any, error: Any, words: str) -> None:
    with pytest.raises(error, match=words):
        open_it(originals("gpt2"), **options)


def test_a_gpu_that_is_not_there(originals: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlx.core.metal.is_available", lambda: False)
    with pytest.raises(InputError, match="no GPU of Apple silicon"):
        open_it(originals("gpt2"), device="mps")


def test_files_that_cannot_be_used(folder: Any) -> None:
    place = folder("llama")
    weights = place / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="damaged"):
        open_it(place)
    weights.unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        open_it(place)
    (place / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match="only pickled weights"):
        open_it(place, allow_pickle=True)


def _without(held: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in held.items() if k != key}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda held: _without(held, "model.layers.1.mlp.up_proj.weight"),
            r"lack 1 .*layers\.1\.mlp\.up_proj",
        ),
        (lambda held: held | {"model.norm.weight": torch.ones(31)}, r"lack 1 .*norm\.weight"),
        (lambda held: held | {"model.norm.weight": torch.full((32,), torch.nan)}, "ln_final contains NaN"),
        (
            lambda held: held | {"model.layers.2.mlp.up_proj.weight": torch.full((40, 32), torch.inf)},
            "in of layer 2 contains NaN or infinite",
        ),
        (
            lambda held: held | {"model.norm.weight": torch.ones(32, dtype=torch.int8)},
            r"quantised: norm\.weight is .*int8",
        ),
    ],
)
def test_tensors_that_cannot_be_used(folder: Any, change: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        open_it(folder("llama", tensors=change))
