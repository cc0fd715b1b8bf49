"""Progress: only for people at a terminal, only after a while, gone at the end."""

from __future__ import annotations

import io

from rich.console import Console

from mech_interp.cli import progress
from mech_interp.cli.output import Format, Output
from mech_interp.orchestration.progress import Step


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def drawn(display) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)
    console.print(display)
    return console.file.getvalue()


def test_nothing_is_drawn_at_first_then_what_is_done_and_left():
    clock = Clock()
    display = progress.Display("lens", clock)
    display(Step("run-1", "prompts", 3, 12, 1.0, None))
    assert drawn(display).strip() == ""
    clock.now = 10
    display(Step("run-1", "prompts", 6, 12, 10.0, 10.0))
    line = drawn(display)
    assert "lens" in line
    assert "prompts: 6 of 12, 10 s left" in line


def test_before_the_first_step_it_is_getting_ready():
    clock = Clock()
    display = progress.Display("lens", clock)
    clock.now = 5
    assert "getting ready" in drawn(display)


def test_there_is_a_display_only_at_a_terminal_for_people():
    for output, expected in (
        (Output(), False),
        (Output(Format.JSON), False),
        (terminal(Output()), True),
        (terminal(Output(Format.QUIET)), False),
    ):
        with progress.shown(output, "x") as display:
            assert (display is not None) is expected


def test_it_is_gone_when_the_block_ends(monkeypatch):
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    output = terminal(Output())
    with progress.shown(output, "lens"):
        pass
    text = output.errors.file.getvalue()
    assert "lens" in text
    assert text.endswith("\x1b[2K") or "\x1b[1A\x1b[2K" in text


def terminal(output: Output) -> Output:
    output.__dict__["errors"] = Console(file=io.StringIO(), force_terminal=True, width=80)
    return output
