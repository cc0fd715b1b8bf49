"""The nnsight backend: what is missing, the bundled model, a program given on the command line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_architectures as arch
from site_values import close, real

from mech_interp.backends.loading import find_folder
from mech_interp.errors import MissingExtraError

pytest.importorskip("nnsight")
from mech_interp.backends import nnsight as backend


def test_the_missing_package_is_named_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with pytest.raises(MissingExtraError, match=r"mech-interpretability\[nnsight\]"):
        backend.open_folder(tmp_path / "nowhere", name="x", source="x")


def test_the_bundled_model_with_its_tokenizer() -> None:
    folder = find_folder("tinyworld")
    mine = backend.open_folder(folder, name="tinyworld", source="bundled", device="cpu")
    from mech_interp.backends.huggingface.checkpoint import open_folder

    theirs = open_folder(folder, name="tinyworld", source="bundled", device="cpu")
    own = {"backend": "nnsight", "capabilities": theirs.info.capabilities - {"edges"}}
    assert mine.info == dataclasses.replace(theirs.info, **own)
    assert type(mine.net).__name__ == "TransformersModel"
    assert mine.tokenizer.padding_side == theirs.tokenizer.padding_side
    texts = ["The capital of", "Anna gave the book to"]
    sites = arch.every_site(mine)
    one, other = (model.forward(texts, capture=sites) for model in (mine, theirs))
    assert one.tokens.lengths == other.tokens.lengths
    for site in sites:
        assert close(*(real(x.activations[site], site, one.tokens, True) for x in (one, other))), site
    assert mine.generate(texts, max_new_tokens=5).texts == theirs.generate(texts, max_new_tokens=5).texts


def test_a_trace_runs_from_a_command_line_program() -> None:
    """nnsight reads the traced block from source, which a program given by `-c` has not."""
    support = Path(__file__).parents[1] / "support"
    code = (
        f"import sys; sys.path.insert(0, {str(support)!r})\n"
        "from tiny_models import hf_gpt2\n"
        "from mech_interp.backends.huggingface.checkpoint import Loaded\n"
        "from mech_interp.backends.nnsight import open_loaded\n"
        "model = open_loaded(Loaded(hf_gpt2(), None, 'x', 'memory', '', ''))\n"
        "for _ in range(2):\n"
        "    print(tuple(model.forward([[1, 2, 3]], capture=['z.1']).activations['z.1'].shape))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split("\n")[:2] == ["(1, 3, 4, 8)"] * 2, done.stderr
