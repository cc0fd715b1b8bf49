"""Fail when a Python module is longer than a head can hold: aim at 300 lines, 400 is the limit."""

from __future__ import annotations

import sys
from pathlib import Path

from files import ROOT, committed

AIM, LIMIT = 300, 400
FOLDERS = {"src", "tests", "benchmarks", "tools", "examples"}


def sizes(root: Path = ROOT) -> list[tuple[int, str]]:
    """(lines, path) of every module in the checked folders, longest first."""
    modules = [path for path in committed(root) if path.suffix == ".py"]
    named = [(path, path.relative_to(root)) for path in modules]
    counted = [
        (len(path.read_text(encoding="utf-8").splitlines()), name.as_posix())
        for path, name in named
        if name.parts[0] in FOLDERS
    ]
    return sorted(counted, reverse=True)


def main(root: Path = ROOT) -> int:
    """Print modules over the aim; 1 when one is over the limit."""
    found = sizes(root)
    for lines, name in found:
        if lines > AIM:
            print(f"{'too long' if lines > LIMIT else 'long':8} {lines:4} lines  {name}")
    over = sum(lines > LIMIT for lines, _ in found)
    print(f"module sizes: {len(found)} modules, {over} over {LIMIT} lines")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
