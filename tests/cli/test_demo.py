"""`mech demo` hands its options to the demo and prints what comes back; the demo has tests of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mech_interp.cli.main import main

SUMMARY = {"findings": [{"value": 0.5}], "seconds": 1.25}


@pytest.fixture
def calls(monkeypatch):
    """Stand in for the demo; returns the list of the options it was called with."""
    seen = []

    def run_demo(**options):
        seen.append(options)
        options["console"].print("PANEL")
        return SUMMARY

    stand_in = ModuleType("mech_interp.reports.demo")
    stand_in.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "mech_interp.reports", ModuleType("mech_interp.reports"))
    monkeypatch.setitem(sys.modules, "mech_interp.reports.demo", stand_in)
    return seen


def test_defaults(calls, capsys):
    assert main(["demo"]) == 0
    (options,) = calls
    del options["console"], options["settings"]
    assert options == {
        "model": "tinyworld",
        "output": Path("mech-demo"),
        "device": "auto",
        "dtype": "auto",
        "country": None,
        "backend": "huggingface",
    }
    assert capsys.readouterr().out == "PANEL\n"


def test_options_arrive(calls):
    given = "-m gpt2 -o out --device cpu --dtype float64 --country Peru --backend hooks"
    assert main(["demo", *given.split()]) == 0
    (options,) = calls
    assert [options[name] for name in ("model", "device", "dtype", "country", "backend")] == [
        "gpt2",
        "cpu",
        "float64",
        "Peru",
        "hooks",
    ]
    assert options["output"] == Path("out")


def test_json_is_the_summary_and_nothing_else(calls, capsys):
    assert main(["demo", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out) == SUMMARY


def test_quiet_is_the_path_of_the_summary(calls, capsys):
    assert main(["--format", "quiet", "demo", "-o", "out"]) == 0
    assert capsys.readouterr().out == f"{Path('out', 'summary.md')}\n"
