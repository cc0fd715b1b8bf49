"""The check scripts of `make lint` and the promises of the packaging files."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"

CORE = (
    "torch transformers safetensors tokenizers numpy scipy scikit-learn pydantic pydantic-settings "
    "platformdirs typer rich PyYAML SQLAlchemy matplotlib huggingface_hub filelock"
)
EXTRAS = "interp transformerlens nnsight mlx apple web llm bench dev all"


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def tree(tmp_path):
    """A small copy of a repository, with one module."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "one.py").write_text("x = 1\n" * 400)
    return tmp_path


def check(script: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, TOOLS / script, root], capture_output=True, text=True)


def test_sizes_pass_at_the_limit_and_fail_above_it(tree):
    done = check("check_sizes.py", tree)
    assert done.returncode == 0
    assert re.search(r"long +400 lines  src/one\.py", done.stdout)
    (tree / "src" / "two.py").write_text("x = 1\n" * 401)
    done = check("check_sizes.py", tree)
    assert done.returncode == 1
    assert re.search(r"too long +401 lines  src/two\.py", done.stdout)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("--index-" + "url https://example.org/simple", "index address"),
        ("--extra-index-" + "url=https://example.org", "index address"),
        ("--find-" + "links wheels", "index address"),
        ("https://download.pytorch.org/" + "whl/cpu", "index address"),
        ("open('/" + "home/ada/model')", "machine path"),
        ("see /" + "Users/ada/model", "machine path"),
    ],
)
def test_text_check_names_the_line(tree, line, kind):
    (tree / "notes.md").write_text(f"fine\n{line}\n")
    done = check("check_text.py", tree)
    assert done.returncode == 1
    assert f"notes.md:2: {kind}" in done.stdout


def test_text_check_leaves_addresses_weights_and_relative_paths_alone(tree):
    (tree / "notes.md").write_text("https://example.org/home/page ~/work/x ../shared/models src/root/x\n")
    (tree / "weights.safetensors").write_bytes(b"\xff\xfe/home/ada")
    (tree / ".venv").mkdir()
    (tree / ".venv" / "pip.txt").write_text("/" + "home/ada/x")
    assert check("check_text.py", tree).returncode == 0


def test_this_tree_passes_both_checks():
    for script in ("check_sizes.py", "check_text.py"):
        done = check(script, ROOT)
        assert done.returncode == 0, done.stdout


def test_core_dependencies_and_extras_are_the_promised_ones(project):
    named = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert named == set(CORE.split())
    assert set(project["optional-dependencies"]) == set(EXTRAS.split())
    assert project["requires-python"] == ">=3.11"
    assert project["scripts"] == {"mech": "mech_interp.cli.main:main"}


def test_every_named_dependency_is_pinned_once(project):
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line[:1] not in ("#", "")]
    names = [line.partition("==")[0] for line in pins]
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+(; .+)?", line) for line in pins)
    assert len(names) == len(set(names))
    assert "torch==2.13.0" in pins
    wanted = [*project["dependencies"], *(r for rs in project["optional-dependencies"].values() for r in rs)]
    plain = {re.sub(r"[-_.]+", "-", re.match(r"[\w-]+", requirement)[0]).lower() for requirement in wanted}
    assert plain - {"mech-interpretability"} <= set(names)


def test_committed_leaves_out_what_git_ignores(tmp_path):
    spec = importlib.util.spec_from_file_location("mech_tools_files", TOOLS / "files.py")
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text("junk/\n")
    for name in ("kept.py", "junk/left.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert [path.name for path in files.committed(tmp_path)] == [".gitignore", "kept.py"]
