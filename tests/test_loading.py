"""Opening models by name: what is found, what is refused, and that the network is left alone."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mech_interp.backends.loading import BUNDLED, bundled_folder, load_model
from mech_interp.errors import CapabilityError, IdentityError, InputError, MechError, ModelError

HUB_GUARD = """
import socket
def refuse(*arguments, **options):
    raise OSError("no network in this test")
socket.socket.connect = refuse
socket.create_connection = refuse
socket.getaddrinfo = refuse
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random GPT-2 in Hugging Face format, without a tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    config = GPT2Config(
        vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=16, bos_token_id=None, eos_token_id=None
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    target = tmp_path / "copy"
    shutil.copytree(checkpoint, target)
    return target


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


def test_a_folder_opens_and_says_what_it_is(checkpoint: Path):
    model = load_model(str(checkpoint))
    assert model.info.name == checkpoint.name
    assert model.info.architecture == "GPT2LMHeadModel"
    assert (model.info.dtype, model.info.device) == ("float32", "cpu")
    assert len(model.info.weights_hash) == 64
    with pytest.raises(InputError, match="without a tokenizer"):
        model.forward("text")


def test_dtype_and_attention_are_taken_and_recorded(checkpoint: Path):
    model = load_model(str(checkpoint), dtype="float64", attention="eager", device="cpu")
    assert (model.info.dtype, model.info.attention) == ("float64", "eager")
    assert model.forward([[1, 2, 3]]).logits.dtype == torch.float64


def test_the_weights_hash_follows_the_weights(copy: Path):
    before = load_model(str(copy)).info.weights_hash
    tensors = load_file(copy / "model.safetensors")
    key = next(iter(tensors))
    tensors[key] = tensors[key] + 1e-3
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert load_model(str(copy)).info.weights_hash != before


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_names_are_found_in_the_package(name: str):
    folder = bundled_folder(name)
    assert folder is not None
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "empty"),
        ("./nowhere", "no folder ./nowhere"),
        ("a name with spaces", "neither a folder nor a possible hub id"),
        ("/dev/null", "is a file"),
    ],
)
def test_names_that_lead_nowhere(name: str, said: str):
    with pytest.raises(MechError, match=said):
        load_model(name)


def test_a_folder_without_config(tmp_path: Path):
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        load_model(str(tmp_path))


def test_a_folder_without_weights(copy: Path):
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(str(copy))


def test_pickled_weights_are_refused_and_never_opened(copy: Path):
    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.system, (f"touch {copy / 'exploded'}",)

    (copy / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled weights"):
        load_model(str(copy))
    assert not (copy / "exploded").exists()


def test_pickled_weights_open_when_allowed(copy: Path):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    wanted = load_model(str(copy)).forward([[1, 2, 3]]).logits
    (copy / "model.safetensors").unlink()
    found = load_model(str(copy), allow_pickle=True).forward([[1, 2, 3]]).logits
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("length", [0, 5, 200])
def test_corrupt_weights(copy: Path, length: int):
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:length])
    with pytest.raises(ModelError, match=r"damaged|cannot be loaded"):
        load_model(str(copy))


def test_nan_weights(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    key = next(k for k in tensors if k.endswith("c_fc.weight"))
    tensors[key][0, 0] = float("nan")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"c_fc\.weight contains NaN"):
        load_model(str(copy))


def test_missing_tensors_are_not_made_up(copy: Path):
    tensors = load_file(copy / "model.safetensors")
    key = next(k for k in tensors if k.endswith("c_attn.weight"))
    del tensors[key]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors .*c_attn\.weight"):
        load_model(str(copy))


def test_a_config_of_another_size(copy: Path):
    edit_config(copy, n_embd=32)
    with pytest.raises(ModelError, match="copy"):
        load_model(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n_layer": 2}', "\x00\xff"])
def test_a_config_that_does_not_read(copy: Path, text: str):
    (copy / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model(str(copy))


def test_remote_code_is_never_run(copy: Path):
    edit_config(copy, model_type="own-model", auto_map={"AutoModelForCausalLM": "own.Model"})
    (copy / "own.py").write_text(f"open({str(copy / 'exploded')!r}, 'w')")
    with pytest.raises(CapabilityError, match="never run"):
        load_model(str(copy))
    assert not (copy / "exploded").exists()


def test_an_architecture_that_the_library_has_no_causal_model_of(copy: Path):
    edit_config(copy, model_type="t5")
    with pytest.raises(CapabilityError, match=r"'t5', which has no layout"):
        load_model(str(copy))


def test_a_layout_that_is_wrong_for_the_checkpoint_is_caught(copy: Path, monkeypatch: pytest.MonkeyPatch):
    from mech_interp.backends.huggingface.layouts.gpt2 import GPT2Block

    right = GPT2Block.qkv
    monkeypatch.setattr(GPT2Block, "qkv", lambda self, x: tuple(right(self, x)[i] for i in (1, 0, 2)))
    with pytest.raises(IdentityError, match="the library's own forward"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [("dtype", "float31", "float32"), ("device", "cpv", "cpu"), ("attention", "flash", "sdpa")],
)
def test_options_out_of_range(checkpoint: Path, option: str, value: str, said: str):
    with pytest.raises(InputError, match=said):
        load_model(str(checkpoint), **{option: value})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_device_that_is_not_there(checkpoint: Path):
    with pytest.raises(InputError, match="no cuda device"):
        load_model(str(checkpoint), device="cuda")


def run_guarded(script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with every way to the network blocked and an empty hub cache."""
    env = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "OMP_NUM_THREADS": "1"}
    env.pop("HF_HUB_OFFLINE", None)
    return subprocess.run(
        [sys.executable, "-c", HUB_GUARD + script], env=env, capture_output=True, text=True, timeout=120
    )


def test_bundled_and_local_models_never_touch_the_network(checkpoint: Path, tmp_path: Path):
    script = (
        "from mech_interp import load_model\n"
        f"load_model({str(checkpoint)!r}); model = load_model('tinyworld')\n"
        "print(model.generate('The capital of France is', max_new_tokens=1).texts[0])\n"
    )
    done = run_guarded(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_an_unreachable_hub_is_reported_at_once_naming_what_works(tmp_path: Path):
    script = (
        "import time; from mech_interp import MechError, load_model\n"
        "began = time.monotonic()\n"
        "try: load_model('gpt2')\n"
        "except MechError as error: print(time.monotonic() - began); print(error)\n"
    )
    done = run_guarded(script, tmp_path)
    assert done.returncode == 0, done.stderr
    seconds, said = done.stdout.split("\n", 1)
    assert float(seconds) < 5
    assert "cannot be reached" in said
    assert all(name in said for name in ("tinyworld", "tinyworld-llama", "folder"))


def test_a_hub_that_never_answers_is_given_up_within_five_seconds(monkeypatch: pytest.MonkeyPatch):
    def hang(*_: Any, **__: Any) -> None:
        time.sleep(30)

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    began = time.monotonic()
    with pytest.raises(ModelError, match="cannot be reached"):
        load_model("nobody/no-such-model")
    assert time.monotonic() - began < 5
