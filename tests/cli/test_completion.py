"""What shells are told when people press TAB: names of commands, specs, families and runs, without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mech_interp.cli.main import main

# As the bash script that `--install-completion` writes asks for them; then what was imported for it.
SCRIPT = """
import sys
from mech_interp.cli.main import main
code = main([])
print(code, *sorted({"torch", "transformers", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


def completions(line: str) -> tuple[list[str], str]:
    """(suggestions, "exit code and heavy modules") for a command line whose last word is unfinished."""
    words = line.split(" ")
    environment = {
        **os.environ,
        "_MECH_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split(), done.stderr.strip()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mech query", ["query-runs"]),
        ("mech run toy-v", ["toy-void"]),
        ("mech run --name toy-r", ["toy-run"]),
        ("mech families logit", ["logit_lens"]),
        ("mech demo --model tinyworld-l", ["tinyworld-llama"]),
        ("mech store re", ["rebuild"]),
        ("mech runs --include", ["--include-archived"]),
    ],
)
def test_names_are_completed_without_heavy_imports(toy, line, expected):
    assert completions(line) == (expected, "0")


def test_runs_are_completed_by_id(stored):
    found, rest = completions("mech inspect-run run-000002")
    assert (found, rest) == ([stored[1]], "0")
    assert completions("mech verify --home nowhere ru") == ([], "0")


def test_a_broken_configuration_gives_no_suggestions_and_no_noise(toy):
    (toy / "mech.toml").write_text("home = [\n")
    assert completions("mech run to") == ([], "0")
    assert main(["config"]) == 2
