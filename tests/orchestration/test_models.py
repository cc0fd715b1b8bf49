"""Models found and hashed without loading them."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import pytest
import toy_family as toy

from mech_interp.errors import ModelError
from mech_interp.orchestration.hashes import FileHashes
from mech_interp.orchestration.models import find_model


def aged(path: Path, seconds: float = 60) -> None:
    """Set the time of change back."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_file_is_read_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache.json"
    file.write_bytes(b"one")
    aged(file)
    assert FileHashes(cache).of(file) == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *given: pytest.fail("read again"))
        assert FileHashes(cache).of(file) == hashlib.sha256(b"one").hexdigest()
    file.write_bytes(b"two")
    assert FileHashes(cache).of(file) == hashlib.sha256(b"two").hexdigest()


def test_a_file_changed_just_now_is_not_remembered(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights", tmp_path / "cache.json"
    file.write_bytes(b"one")
    hashes = FileHashes(cache)
    hashes.of(file)
    stat = file.stat()
    file.write_bytes(b"two")  # of the same size; and the clock may not have ticked
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert hashes.of(file) == hashlib.sha256(b"two").hexdigest()


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', "{", '{"x": [1, 2]}'])
def test_a_damaged_cache_is_no_cache(tmp_path: Path, content: str) -> None:
    (tmp_path / "cache.json").write_text(content)
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    assert FileHashes(tmp_path / "cache.json").of(file) == hashlib.sha256(b"one").hexdigest()


def test_the_hash_is_the_one_that_an_opened_model_states(tmp_path: Path) -> None:
    from mech_interp.backends.huggingface.checkpoint import files_hash

    folder = toy.checkpoint(tmp_path / "tiny")
    (folder / "model-2.safetensors").write_bytes(b"more")
    found = find_model(str(folder))
    files = [folder / name for name in ("config.json", "model-2.safetensors", "model.safetensors")]
    assert found.weights_hash == files_hash(files)
    assert found.weight_bytes == 11
    assert found.tokenizer is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no weights"),
        (lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"), "pickled"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds no object"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path, spoil: object, words: str) -> None:
    folder = toy.checkpoint(tmp_path / "tiny")
    spoil(folder)  # type: ignore[operator]
    with pytest.raises(ModelError, match=words):
        find_model(str(folder))


def test_offline_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ModelError):
        find_model("nobody/no-such-model", offline=True)
    assert "HF_HUB_OFFLINE" not in os.environ


def test_a_checkpoint_in_hookedtransformer_form_is_what_it_is_read_as(tmp_path: Path) -> None:
    options = {
        "n_layers": 1,
        "d_model": 4,
        "d_head": 2,
        "n_heads": 2,
        "n_ctx": 5,
        "d_vocab": 7,
        "attn_only": True,
    }
    (tmp_path / "config.json").write_text(json.dumps({**options, "normalization_type": None}))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    found = find_model(str(tmp_path))
    assert found.config["model_type"] == "mech-planted"
    from mech_interp.backends import architectures

    facts = architectures.of_config("it", found.config)
    assert facts is not None
    assert (facts.sizes.n_layers, facts.sizes.vocabulary) == (1, 7)
    assert "attention-only" in facts.missing_kinds["mlp_out"]
