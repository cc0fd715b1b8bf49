"""Odd arguments to every command: a sentence and a stable exit code, never a traceback or a fault."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from mech_interp.cli.commands import COMMANDS, load

# `demo` and `calibrate` would do their whole work and `models` takes nothing; all have tests of their own.
NAMES = sorted(set(COMMANDS) - {"demo", "calibrate", "models"})
CODES = {0, 1, 2, 3, 4, 5, 6, 7, 8}
WORDS = [
    "",
    " ",
    "-1",
    "0",
    "1",
    "2",
    "99999999999999999999",
    "1e400",
    "nan",
    "toy-run",
    "toy-sweep",
    "toy-void",
    "run-000001",
    "run-",
    ".",
    "..",
    "/",
    "experiments",
    "experiments/toy.yaml",
    "missing/file.yaml",
    "x" * 5000,
    "../" * 40,
    "a=b",
    "seed=",
    "=3",
    "seed=1,2",
    "seed=[1,",
    "parameters.units=2",
    "parameters=3",
    "name=",
    "tags=[a b]",
    "matrix={}",
    "family = toy",
    "family =",
    "((((",
    "not not not",
    "metric.mean < nan",
    "created > 2026-13",
    "'",
    '"',
    "\\",
    "%s%n",
    "[bold]",
    "{",
    "ünï¢ødé",
    "\u202e",
    "\udcff",
    "a\nb",
    "a\tb",
    "\x00",
    "--",
    "-",
    "--help=1",
    "--format",
    "--home",
    "--home=",
    "--set",
    "--limit=x",
    "--limit=-3",
    "--top-n=0",
    "--output=",
    "--output=/proc/x/y.zip",
    "--table=units",
    "--table=../x",
    "--view=nothing",
    "--family=toy",
    "--where=(",
    "--axis=seed=1",
    "--model=",
    "--model=nowhere",
    "--device=tpu",
    "--backend=abacus",
    "--spec=experiments/toy.yaml",
    "--dry-run",
    "--force",
    "--all",
    "--format=json",
    "--format=quiet",
]


def options(name: str) -> list[str]:
    """The long options of a command and its verbs."""
    command = load(name)
    parameters = [*command.params]
    for verb in getattr(command, "commands", {}).values():
        parameters += verb.params
    found = [one for parameter in parameters for one in parameter.opts if one.startswith("--")]
    # One asks for a traceback; the other for a self-test of seconds, which has tests of its own.
    return [one for one in found if one not in ("--debug", "--smoke")]


def draw(name: str, source: random.Random) -> list[str]:
    """An odd line of arguments."""
    verbs = list(getattr(load(name), "commands", {}))
    line = [name, *(source.choices(verbs, k=1) if verbs else [])]
    known = options(name)
    for _ in range(source.randint(0, 4)):
        kind = source.random()
        if kind < 0.35 and known:
            option = source.choice(known)
            joined = source.random() < 0.5
            line += [f"{option}={source.choice(WORDS)}"] if joined else [option, source.choice(WORDS)]
        else:
            line.append(source.choice(WORDS))
    return line


@pytest.mark.parametrize("name", NAMES)
def test_odd_arguments_are_answered_with_a_sentence(name, stored, cli, monkeypatch):
    source = random.Random(name + "2")
    # Whatever is drawn may only write below this test's folder.
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for _ in range(200):
        line = draw(name, source)
        if writes_outside(line):
            continue
        done = cli(*line)
        told = f"{line}\n{done.out[-500:]}\n{done.err[-2000:]}"
        assert done.code in CODES, told
        assert "Traceback" not in done.err, told
        assert "fault in mech" not in done.err, told
        assert done.code in (0, 8) or done.err.strip(), told
        assert len(done.err) < 20_000, told
    assert os.path.isdir("artifacts")


def writes_outside(line: list[str]) -> bool:
    """Whether a place outside the test's folder is named: allowed, but whatever happens must not be here.

    Only a place that cannot be written by anyone stays in: the commands must say so.
    """
    words = [word.partition("=")[2] if word.startswith("--") else word for word in line[1:]]
    return any(word.startswith(("/", "..")) and not word.startswith("/proc/x/") for word in words)
