"""Write constraints.txt: resolve every extra together with pip and pin what it chose.

Run `python tools/lock.py` in an environment with pip 23 or newer (`make lock`). Existing pins are kept
where they still resolve; `--upgrade` starts afresh. Only names and versions are written: no index
addresses, no paths, and no local build tags, so that the file means the same on every machine.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints.txt"

# torch decides which builds of the other packages fit, so it is chosen by hand.
CHOSEN = {"torch": "2.13.0"}

# Needed on another platform than the one that resolves, so pip cannot report it here.
ELSEWHERE = {"mlx-lm": ("0.32.2", "sys_platform == 'darwin'")}

HEADER = """\
# One set of versions that resolve together: the core, every extra and the development tools.
# Written by tools/lock.py (`make lock`); used as `pip install -c constraints.txt ...`.
"""


def normalised(name: str) -> str:
    """The name as package indexes compare it: lower case, runs of - _ . as one hyphen."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(constraints: list[str]) -> dict[str, str]:
    """Every package that pip would install for all extras here: normalised name -> version."""
    with tempfile.TemporaryDirectory() as folder:
        pins, report = Path(folder, "pins.txt"), Path(folder, "report.json")
        pins.write_text("\n".join(constraints) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), "-c", str(pins), f"{ROOT}[all]"], check=True)
        found = json.loads(report.read_text(encoding="utf-8"))["install"]
    versions = {normalised(item["metadata"]["name"]): item["metadata"]["version"] for item in found}
    versions.pop("mech-interpretability")
    return {name: version.partition("+")[0] for name, version in versions.items()}


def main() -> None:
    """Resolve and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="ignore the present pins")
    keep = CONSTRAINTS.exists() and not parser.parse_args().upgrade
    present = CONSTRAINTS.read_text(encoding="utf-8").splitlines() if keep else []
    pins = [line for line in present if line.partition("==")[0] not in CHOSEN]
    versions = resolve(pins + [f"{name}=={version}" for name, version in CHOSEN.items()])
    lines = {
        name: f"{name}=={version}" for name, version in versions.items() if not name.startswith("nvidia-")
    }
    lines |= {name: f"{name}=={version}; {marker}" for name, (version, marker) in ELSEWHERE.items()}
    CONSTRAINTS.write_text(HEADER + "\n".join(lines[name] for name in sorted(lines)) + "\n", encoding="utf-8")
    print(f"{CONSTRAINTS.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
