"""The files of this repository that would be committed, for the check scripts beside this one."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# What no copy of the tree should hold; only asked where there is no version control to ask.
SKIPPED = {"__pycache__", "artifacts", "build", "dist", "mech-demo", "node_modules"}


def committed(root: Path = ROOT) -> list[Path]:
    """Tracked files and untracked ones that are not ignored, sorted; without git, the tree itself."""
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        paths = [root / name for name in names if name]
    else:
        paths = [path for path in root.rglob("*") if not _is_skipped(path.relative_to(root))]
    return sorted(path for path in paths if path.is_file())


def _is_skipped(path: Path) -> bool:
    hidden = any(part.startswith(".") and part != ".ci" for part in path.parts[:-1])
    return hidden or any(part in SKIPPED or part.endswith(".egg-info") for part in path.parts)
