"""The installed command: help, version, mistakes, formats, exit codes."""

from __future__ import annotations

import json
import re

import pytest

from mech_interp.cli.commands import COMMANDS, load


def test_help_lists_every_command_with_its_line(mech):
    done = mech("--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for name, entry in COMMANDS.items():
        assert re.search(rf"\b{name}\b", done.stdout)
        assert entry.help.split()[0] in done.stdout


def test_no_arguments_print_the_help(mech):
    assert mech().stdout == mech("--help").stdout
    assert mech().returncode == 0


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_each_command_has_its_own_and_the_common_options(mech, name):
    done = mech(name, "-h")
    assert done.returncode == 0, done.stderr
    assert f"mech {name}" in done.stdout
    for option in ("--format", "--debug", "--help"):
        assert option in done.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_line_in_the_table_is_the_first_line_of_the_command(name):
    """`mech --help` reads the table and `mech NAME --help` the docstring: they may not drift apart."""
    assert (load(name).help or "").strip().splitlines()[0] == COMMANDS[name].help


def test_version(mech):
    done = mech("--version")
    assert done.returncode == 0
    assert re.fullmatch(r"mech .+, Python 3\.\d+\.\d+\S*\n", done.stdout)


def test_unknown_command_suggests_the_nearest(mech):
    done = mech("modles")
    assert done.returncode == 2
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert first == "Error: There is no command 'modles'."
    assert second.startswith("Did you mean models")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--format", "json", "modles"),
        ("modles", "--format", "json"),
        ("modles", "--format=json"),
    ],
)
def test_errors_in_json_are_one_object_on_stderr(mech, arguments):
    done = mech(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error = json.loads(done.stderr)["error"]
    assert error["type"] == "InputError"
    assert error["message"] == "There is no command 'modles'."
    assert "models" in error["hint"]
    assert error["exit_code"] == 2


def test_errors_in_quiet_are_one_line(mech):
    done = mech("modles", "--format", "quiet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "modles" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said", "command"),
    [
        (("models", "--frmat", "json"), "--frmat", "mech models"),
        (("models", "--format", "yaml"), "'yaml'", "mech models"),
        (("--format", "yaml", "models"), "'yaml'", "mech"),
        (("models", "--format"), "--format", "mech models"),
        (("models", "surplus"), "surplus", "mech models"),
        (("--bogus",), "--bogus", "mech"),
    ],
)
def test_a_mistake_in_the_arguments_names_it_and_the_help_that_explains(mech, arguments, said, command):
    done = mech(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ")
    assert said in done.stderr
    assert f"{command} --help" in done.stderr
    assert "Traceback" not in done.stderr


def test_unknown_option_suggests_the_nearest(mech):
    done = mech("models", "--frmat", "json")
    assert done.stderr.splitlines()[0] == "Error: There is no option --frmat."
    assert done.stderr.splitlines()[1].startswith("Did you mean --format?")


def test_an_argument_mistake_is_told_in_the_format_asked_for_later(mech):
    done = mech("models", "--bogus", "--format", "json")
    assert json.loads(done.stderr)["error"]["exit_code"] == 2


def test_module_and_command_are_the_same(mech):
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "mech_interp", "modles"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, mech("modles").stderr)


def test_a_terminal_without_unicode_prints_all_the_same(mech):
    done = mech("store", "rebuild", "--home", ".", env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    shown = mech("--help", env={"PYTHONIOENCODING": "ascii"})
    assert (shown.returncode, shown.stderr) == (0, "")
