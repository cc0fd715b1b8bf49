"""Malformed specs: nothing but one readable sentence ever comes out, and quickly."""

from __future__ import annotations

import itertools
import random
import time
from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mech_interp.config import resolve_parameters
from mech_interp.config.files import read_specs
from mech_interp.config.matrix import expand
from mech_interp.errors import InputError

VALID = """\
name: recall
family: circuit_patching
model: tinyworld
hook_site: blocks.2.hook_resid_pre
seed: 3
description: |
  Where is the capital?
tags: [paper, "figure-2"]
parameters: &p
  kind: z
  layers: [0, 1]
  pairs:
    - {clean: "The capital of France is", corrupt: 'The capital of Peru is', answer: " Paris"}
artifact_policy: {retain_activation_tensors: false, max_artifact_bytes: 500MB}
matrix:
  grid:
    parameters.kind: [z, resid_pre]
  seeds: 2
hypothesis: {claim: it moves, metric: top, direction: above, threshold: 0.5}
---
name: second
family: circuit_patching
model: gpt2
parameters: {kind: z, pairs: []}
"""
# What a person, a broken editor or an attacker puts in place of a value or a line.
POISON = [
    "null", "[]", "{}", "-1", "1e400", "9" * 400, ".nan", "true", "''", "!!python/name:os.system",
    "!!set {a}", "&a [*a]", "*p", "*none", "[" * 300, "{a: " * 300, "? x", "|", ">-", "'", '"\\ud800"',
    '"\\x00"', "@", "`", "%", "- - - x", "a: b: c", "<<: *p", "\t", "2024-01-01", "0x", "~", "\xe9\u2028",
    "🗼" * 50, "x" * 5000, "[1, {b: [2]}]", "{1: 2}", "{[a]: b}", "---", "...", "# x", "!", "!!float x", "&",
    "*", "{seeds: 1e9}", "parameters.kind: [1]",
]  # fmt: skip


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    clean: str
    corrupt: str
    answer: str


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    hook_site: str | None = None
    kind: Literal["z", "resid_pre"]
    layers: list[int] | Literal["all"] = "all"
    pairs: list[Pair] = Field(default_factory=list)


def replace_value(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    key, colon, _ = lines[at].partition(":")
    lines[at] = f"{key}{colon} {rng.choice(POISON)}"
    return "\n".join(lines)


def change_lines(text: str, rng: random.Random) -> str:
    lines = text.splitlines()
    at = rng.randrange(len(lines))
    other = rng.randrange(len(lines))
    match rng.randrange(5):
        case 0:
            del lines[at]
        case 1:
            lines.insert(other, lines[at])
        case 2:
            lines[at] = rng.choice(["  ", " ", "\t", "- "]) + lines[at]
        case 3:
            lines.insert(at, rng.choice(POISON))
        case 4:
            lines[at], lines[other] = lines[other], lines[at]
    return "\n".join(lines)


def change_characters(text: str, rng: random.Random) -> str:
    out = list(text)
    for _ in range(rng.randint(1, 8)):
        at = rng.randrange(len(out))
        out[at] = rng.choice(
            ["", chr(rng.randrange(0xD800)), rng.choice(":[]{}#&*!|>'\"%@`,?-\n\t "), out[at] * 2]
        )
    return "".join(out)


def misspell(text: str, rng: random.Random) -> str:
    words = [word for word in text.replace(":", " ").split() if word.isidentifier()]
    word = rng.choice(words)
    at = rng.randrange(len(word))
    return text.replace(word, word[:at] + rng.choice(["", "x", word[at] * 2]) + word[at + 1 :], 1)


def random_bytes(_: str, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(300))


def flip_bytes(text: str, rng: random.Random) -> bytes:
    raw = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return bytes(raw)


def nest(text: str, rng: random.Random) -> str:
    opening, closing = rng.choice([("[", "]"), ("{a: ", "}")])
    depth = rng.randrange(30, 3000)
    return text.replace("kind: z", f"kind: {opening * depth}x{closing * depth * rng.randrange(2)}", 1)


def bomb(text: str, rng: random.Random) -> str:
    width, levels = rng.randrange(5, 20), rng.randrange(6, 12)
    names = [f"b{i}" for i in range(levels)]
    lines = [f"b0: &b0 [{','.join('x' * width)}]"]
    lines += [f"{new}: &{new} [{','.join([f'*{old}'] * width)}]" for old, new in itertools.pairwise(names)]
    return "\n".join(lines) + "\n" + text


MUTATIONS = [replace_value, change_lines, change_characters, misspell, random_bytes, flip_bytes, nest, bomb]


def outcome(path) -> InputError | None:
    """None where the file happens to be valid still."""
    try:
        for spec in read_specs(path):
            for child in expand(spec):
                resolve_parameters(child, Params)
    except InputError as error:
        return error
    return None


def test_the_starting_point_is_valid(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(VALID, encoding="utf-8")
    assert outcome(path) is None


@pytest.mark.parametrize("mutate", MUTATIONS, ids=lambda function: function.__name__)
def test_only_a_sentence_comes_out(mutate, tmp_path):
    path = tmp_path / "spec.yaml"
    refused, slowest = 0, 0.0
    for number in range(100):
        rng = random.Random(f"{mutate.__name__} {number}")
        text = mutate(VALID, rng)
        for _ in range(rng.randrange(2)):
            text = rng.choice(MUTATIONS[:4])(text, rng) if isinstance(text, str) else text
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        start = time.process_time()
        error = outcome(path)
        slowest = max(slowest, time.process_time() - start)
        if error is not None:
            refused += 1
            assert str(path) in error.message, error
            assert len(str(error)) < 900, error
            assert "\n" not in str(error), error
            assert error.message.endswith((".", "?")), error
            assert error.hint, error
    assert refused >= 40
    assert slowest < 2
