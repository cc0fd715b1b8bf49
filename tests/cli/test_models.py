"""`mech models`: what it reads from a checkpoint's files, and what it prints."""

from __future__ import annotations

import json

import pytest

from mech_interp.cli.models import count_parameters, describe, summary

CARD = """---
license: mit
---

# tiny

A small model for learning
and testing. It knows little.

## Data
"""


@pytest.fixture
def folder(tmp_path):
    """A checkpoint folder with two tensors, written without torch."""
    config = {"architectures": ["GPT2LMHeadModel"], "n_layer": 2, "n_embd": 4, "n_head": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]},
        "b": {"dtype": "F32", "shape": [], "data_offsets": [48, 52]},
    }
    header = json.dumps(tensors).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(52))
    return tmp_path


def test_parameters_are_counted_from_the_header(folder):
    assert count_parameters(folder / "model.safetensors") == 13


def test_a_file_written_by_safetensors_counts_the_same(tmp_path):
    numpy = pytest.importorskip("numpy")
    from safetensors.numpy import save_file

    save_file({"a": numpy.zeros((5, 7)), "b": numpy.zeros(2)}, tmp_path / "x.safetensors")
    assert count_parameters(tmp_path / "x.safetensors") == 37


def test_describe_reads_config_header_and_card(folder):
    assert describe("tiny", folder, CARD) == {
        "name": "tiny",
        "architecture": "GPT2LMHeadModel",
        "parameters": 13,
        "layers": 2,
        "width": 4,
        "heads": 1,
        "summary": "A small model for learning and testing.",
        "path": str(folder),
    }


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ("# t\n\nOne sentence", "One sentence"),
        ("Plain. Then more.", "Plain."),
        ("# only\n\n## headings", ""),
        ("", ""),
        ("A b --- c. D --- e.", "A b --- c."),
    ],
)
def test_summary_is_the_first_sentence_after_headings(card, expected):
    assert summary(card) == expected


def test_models_in_each_format(mech):
    human, asked, quiet = (
        mech("models"),
        mech("models", "--format", "json"),
        mech("--format", "quiet", "models"),
    )
    assert (human.returncode, asked.returncode, quiet.returncode) == (0, 0, 0)
    listed = json.loads(asked.stdout)["bundled"]
    assert quiet.stdout.split() == [row["name"] for row in listed]
    assert {"tinyworld", "tinyworld-llama", "tinyworld-chat"} <= {row["name"] for row in listed}
    for row in listed:
        assert row["name"] in human.stdout
        assert row["architecture"] in human.stdout
        assert 1e5 < row["parameters"] < 1e7
        assert row["summary"]
    assert "hub id" in human.stdout
