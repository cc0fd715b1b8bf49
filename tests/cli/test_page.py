"""docs/commands.md speaks of every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from mech_interp.cli.commands import COMMANDS, load

PAGE = (Path(__file__).parents[2] / "docs" / "commands.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_section(name):
    assert f"### mech {name}" in PAGE
    for verb in getattr(load(name), "commands", {}):
        assert f"mech {name} {verb}" in PAGE
