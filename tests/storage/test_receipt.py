"""Receipts: what they hold, what they keep to themselves, and how two of them are graded."""

from __future__ import annotations

import copy
import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from mech_interp.storage import receipt, redact
from mech_interp.storage.receipt import code, environment, grade

THEN = {
    "code": {"version": "0.1.0", "sha256": "a" * 64, "commit": "c1", "dirty": False},
    "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.6", "rich": "15.0", "transformers": "5.23.0"},
    "python": "3.11.7",
    "os": {"system": "Linux", "release": "6.1", "machine": "x86_64"},
    "cpu": {"model": "A", "count": 2},
    "threads": 2,
    "gpu": None,
}


def changed(*path, to):
    now = copy.deepcopy(THEN)
    place = now
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = to
    return now


def test_the_environment_is_the_one_we_are_in(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(Path.home() / "bin" / "mech"), "run", "--hf-token", "s3cret"])
    monkeypatch.setenv("MECH_HUB_TOKEN", "s3cret")
    monkeypatch.setenv("MECH_HOME", str(Path.home() / "runs"))
    found = environment()
    assert found["python"] == platform.python_version()
    assert found["packages"]["numpy"] == numpy.__version__
    assert found["packages"]["torch"].startswith("2.")
    assert found["threads"] >= 1
    assert found["cpu"]["count"] >= 1
    assert found["command"] == ["mech", "run", "--hf-token", "***"]
    assert found["variables"]["MECH_HUB_TOKEN"] == "***"
    assert found["variables"]["MECH_HOME"] == "~/runs"
    text = json.dumps(found, allow_nan=False)
    assert "s3cret" not in text
    assert str(Path.home()) not in text
    assert platform.node() not in text or len(platform.node()) < 4
    again = environment()
    again["code"] = found["code"]  # somebody may be editing the source at this moment
    assert grade(found, again).reasons == ()


def test_the_code_is_known_by_its_commit_and_by_its_bytes(tmp_path, monkeypatch):
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("x = 1\n")
    (tmp_path / "constraints.txt").write_text("torch==2\n")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # must not lead astray
    unversioned = code(package)
    assert (unversioned["commit"], unversioned["dirty"]) == (None, None)

    def git(*arguments):
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
        plain = {"PATH": __import__("os").environ["PATH"], "HOME": str(tmp_path)}
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True, env=plain)

    git("init")
    assert code(package)["commit"] is None  # inside a checkout that does not track it, as in a .venv
    git("add", ".")
    git("commit", "-m", "one")
    clean = code(package)
    assert len(clean["commit"]) == 40
    assert (clean["dirty"], clean["diff_sha256"]) == (False, None)
    assert len(clean["lock_sha256"]) == 64
    assert clean["sha256"] == unversioned["sha256"]
    (package / "__init__.py").write_text("x = 2\n")
    dirty = code(package)
    assert (dirty["commit"], dirty["dirty"]) == (clean["commit"], True)
    assert len(dirty["diff_sha256"]) == 64
    assert dirty["sha256"] != clean["sha256"]


@pytest.mark.parametrize(
    ("now", "level", "reason"),
    [
        (THEN, "same", None),
        (changed("packages", "rich", to="16.0"), "same", None),
        (changed("python", to="3.11.9"), "same", None),
        (changed("code", "commit", to="c2"), "same", None),  # the same source in another commit
        (changed("packages", "numpy", to="2.4.9"), "compatible", "numpy: 2.4.6 then, 2.4.9 now"),
        (changed("python", to="3.12.0"), "compatible", "Python: 3.11 then, 3.12 now"),
        (changed("threads", to=8), "compatible", "threads: 2 then, 8 now"),
        (changed("cpu", "model", to="B"), "compatible", "processor: A then, B now"),
        (
            changed("code", "sha256", to="b" * 64),
            "compatible",
            "mech source: aaaaaaaaaaaa then, bbbbbbbbbbbb now",
        ),
        (
            changed("packages", "torch", to="2.14.0+cpu"),
            "different",
            "torch: 2.13.0+cpu then, 2.14.0+cpu now",
        ),
        (changed("packages", "transformers", to=None), "different", "transformers: 5.23.0 then, none now"),
        (changed("code", "version", to="0.2.0"), "different", "mech version: 0.1.0 then, 0.2.0 now"),
        (
            changed("gpu", to={"kind": "cuda", "name": "X"}),
            "different",
            "kind of accelerator: none then, cuda now",
        ),
        (changed("device", to="cuda"), "different", "device: none then, cuda now"),
    ],
)
def test_grades(now, level, reason):
    found = grade(THEN, now)
    assert found.level == level
    assert (reason is None and found.reasons == ()) or reason in found.reasons


def test_all_differences_are_named_the_far_ones_first():
    now = changed("packages", "torch", to="3.0.0")
    now["threads"] = 9
    assert grade(THEN, now).reasons == ("torch: 2.13.0+cpu then, 3.0.0 now", "threads: 2 then, 9 now")


def test_a_damaged_receipt_is_graded_different():
    assert grade({}, THEN).level == "different"
    assert grade({"code": 3, "packages": {}, "cpu": None}, THEN).level == "different"


HOME = Path("/" + "home/ada")


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["run", "--token", "x", "y"], ["run", "--token", "***", "y"]),
        (["--hf-token=abc", "--api-key", "a"], ["--hf-token=***", "--api-key", "***"]),
        (["--set", "parameters.api_key=abc"], ["--set", "parameters.api_key=***"]),
        (["--set", "parameters.correct_token= Paris"], ["--set", "parameters.correct_token= Paris"]),
        (
            ["--max-new-tokens", "5", "--token-position", "3"],
            ["--max-new-tokens", "5", "--token-position", "3"],
        ),
        (["hf_abcdefghijklmnopqrst", "sk-abcdefghijklmnop1234"], ["***", "***"]),
        (["https://ada:pw@example.org/x"], ["https://***@example.org/x"]),
        ([f"{HOME}/runs", f"{HOME}", f"--home={HOME}/a:{HOME}/b"], ["~/runs", "~", "--home=~/a:~/b"]),
        ([f"{HOME}x/runs", f"/mnt{HOME}"], [f"{HOME}x/runs", f"/mnt{HOME}"]),
        (["--password", "--token", "z"], ["--password", "***", "z"]),
    ],
)
def test_command_lines_keep_no_secret_and_no_home(arguments, shown):
    assert redact.command_line(arguments, HOME) == shown


def test_git_that_hangs_or_is_missing_is_no_fault(monkeypatch):
    def fail(*arguments, **options):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", fail)
    assert receipt.code()["commit"] is None
