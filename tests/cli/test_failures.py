"""Whatever a command raises becomes one sentence and an exit code; the traceback only with --debug.

The commands are planted by a small launcher, which adds them to the table before it calls `main`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

LAUNCHER = """
import sys
from mech_interp.cli.commands import COMMANDS, Entry
from mech_interp.cli.main import main

COMMANDS["planted"] = Entry("planted:planted", "A command for this test.")
sys.exit(main())
"""


@pytest.fixture
def planted(tmp_path):
    """Start `mech planted ARGUMENTS` with the given body as its function; returns the process."""

    def start(body, *arguments, **options):
        function = "import typer\n\ndef planted(context: typer.Context) -> None:\n"
        (tmp_path / "planted.py").write_text(function + textwrap.indent(textwrap.dedent(body), "    "))
        (tmp_path / "launcher.py").write_text(LAUNCHER)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        launch = [sys.executable, "launcher.py", "planted", *arguments]
        return subprocess.Popen(launch, cwd=tmp_path, env={**os.environ, "COLUMNS": "80"}, **pipes)

    return start


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


MODEL_ERROR = """
    from mech_interp.errors import ModelError
    raise ModelError("There is no model 'gpt9' on this machine.", "Name a bundled one, such as tinyworld.")
"""


def test_a_mech_error_is_its_sentence_and_its_hint(planted):
    code, out, err = finish(planted(MODEL_ERROR))
    assert (code, out) == (3, "")
    assert err == (
        "Error: There is no model 'gpt9' on this machine.\nName a bundled one, such as tinyworld.\n"
    )


def test_a_mech_error_in_json_keeps_its_class_and_exit_code(planted):
    code, out, err = finish(planted(MODEL_ERROR, "--format", "json"))
    assert (code, out) == (3, "")
    assert json.loads(err) == {
        "error": {
            "type": "ModelError",
            "message": "There is no model 'gpt9' on this machine.",
            "hint": "Name a bundled one, such as tinyworld.",
            "exit_code": 3,
        }
    }


def test_brackets_in_a_message_are_printed_as_they_stand(planted):
    body = """
        from mech_interp.errors import MissingExtraError
        raise MissingExtraError("nnsight", "nnsight")
    """
    code, _, err = finish(planted(body))
    assert code == 5
    assert "'mech-interpretability[nnsight]'" in err


def test_debug_adds_the_traceback_and_keeps_the_sentence_last(planted):
    code, _, err = finish(planted(MODEL_ERROR, "--debug", "--format", "json"))
    assert code == 3
    assert err.startswith("Traceback")
    assert "planted.py" in err
    assert json.loads(err.splitlines()[-1])["error"]["type"] == "ModelError"


def test_an_unexpected_exception_is_one_sentence_that_names_debug(planted):
    code, out, err = finish(planted("{}['missing']"))
    assert (code, out) == (70, "")
    assert "Traceback" not in err
    assert "KeyError: 'missing'." in err
    assert "--debug" in err


@pytest.mark.parametrize(
    "statement",
    [
        "raise MemoryError",
        'raise RuntimeError("DefaultCPUAllocator: can\'t allocate memory: you tried to allocate 9 bytes.")',
        "raise RuntimeError('MPS backend out of memory (MPS allocated: 9 GB)')",
        "raise type('OutOfMemoryError', (RuntimeError,), {'__module__': 'torch'})('CUDA: tried 20 GiB')",
    ],
)
def test_running_out_of_memory_says_what_to_do(planted, statement):
    code, _, err = finish(planted(statement))
    assert code == 6
    assert "not enough memory" in err
    assert "--dtype bfloat16" in err


def test_the_real_out_of_memory_class_of_torch_is_known():
    torch = pytest.importorskip("torch")
    from mech_interp.cli.failures import describe

    assert describe(torch.OutOfMemoryError("CUDA out of memory")).exit_code == 6
    assert describe(RuntimeError("shapes do not match")).exit_code == 70


def test_a_file_that_cannot_be_written_is_named(planted):
    code, _, err = finish(planted("open('missing-folder/report.md', 'w')"))
    assert code == 1
    assert err.startswith("Error: No such file or directory: 'missing-folder/report.md'.")


def test_interrupt_ends_with_one_line_and_130(planted):
    process = planted("import time; print('ready', flush=True); time.sleep(60)")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert (code, err) == (130, "Interrupted.\n")


def test_a_reader_that_goes_away_leaves_no_noise(planted):
    process = planted("for i in range(100_000): print(i)")
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(timeout=60), err) == (141, "")


def test_exit_code_of_typer_exit_is_kept(planted):
    assert finish(planted("raise typer.Exit(9)")) == (9, "", "")


@pytest.mark.parametrize(
    ("format", "expected"),
    [("human", "drawn\n"), ("json", '{\n  "answer": "42 ±"\n}\n'), ("quiet", "42\n43\n")],
)
def test_results_follow_the_format_on_stdout(planted, format, expected):
    body = """
        context.obj.console.print("", end="")
        context.obj.emit({"answer": "42 \\u00b1"}, lambda console: console.print("drawn"), quiet=[42, 43])
    """
    assert finish(planted(body, "--format", format)) == (0, expected, "")


def test_options_after_two_dashes_belong_to_the_command():
    from mech_interp.cli.output import Format, Output

    assert Output.requested(["x", "--", "--format", "json", "--debug"]) == Output()
    assert Output.requested(["--debug", "x", "--format=quiet"]) == Output(Format.QUIET, debug=True)
    assert Output.requested(["x", "--format"]) == Output()
