"""Fail when a committed file names a package index or a path that exists on one machine only."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from files import ROOT, committed

# Written in pieces so that this file does not match itself.
PATTERNS = {
    "index address": re.compile(
        "|".join([r"--(?:extra-)?index-" + "url", r"--find-" + "links", r"pytorch\.org/" + "whl"])
    ),
    "machine path": re.compile(
        r"(?<![\w.:/~$})-])/(?:" + "|".join(["home", "Users", "root", "work", "opt"]) + r")/\w"
    ),
}


def problems(root: Path = ROOT) -> list[str]:
    """One line per offending line of a committed text file: `path:line: what`."""
    found = []
    for path in committed(root):
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue  # weights, pictures
        for number, line in enumerate(lines, 1):
            kinds = [kind for kind, pattern in PATTERNS.items() if pattern.search(line)]
            found += [f"{path.relative_to(root).as_posix()}:{number}: {kind}" for kind in kinds]
    return found


def main(root: Path = ROOT) -> int:
    """Print every problem; 1 when there is one."""
    found = problems(root)
    print("\n".join([*found, f"committed text: {len(found)} index addresses or machine paths"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else ROOT))
