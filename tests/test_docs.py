"""All that the README and the pages show is run: Python as one script a page, `mech` commands one by one."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# A command that needs a network or another machine says so at the end of its line.
ELSEWHERE = re.compile(r"#.*\b(hub|network|GPU)\b")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> list[str]:
    lines = [line.strip() for block in blocks(page, "bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith("mech ") and not ELSEWHERE.search(line)]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=lambda p: p.name)
def test_python_blocks_run(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    script.write_text("\n".join(blocks(page, "python")), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [p for p in PAGES if commands(p)], ids=lambda p: p.name)
def test_commands_run(page: Path, tmp_path: Path) -> None:
    for line in commands(page):
        words = shlex.split(line, comments=True)
        done = subprocess.run(
            [sys.executable, "-m", "mech_interp", *words[1:]],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_generated_pages_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "make_docs.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_the_readme_counts_architectures_and_backends() -> None:
    from mech_interp.backends.huggingface.layouts import supported
    from mech_interp.backends.registry import BACKENDS

    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"[{len(supported())} architectures](docs/architectures.md)" in words
    assert len(BACKENDS) == 5
    assert "[five backends](docs/backends.md)" in words


def test_every_identity_on_the_page_is_green_and_the_parity_record_holds() -> None:
    import json

    page = (ROOT / "docs" / "architectures.md").read_text(encoding="utf-8")
    rows = page.partition("| architecture | logits |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) >= 26
    assert all(row.split("|")[2].strip() == "✓" and "fails" not in row for row in rows)
    record = json.loads((ROOT / "docs" / "parity.json").read_text(encoding="utf-8"))
    for report in record["models"].values():
        assert report["holds"]
        assert set(report["backends"]) == {"hooks", "transformerlens", "nnsight", "mlx"}
