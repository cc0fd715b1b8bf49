"""The environment of a run, as its receipt records it, and how far another environment is from it."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mech_interp.storage import redact
from mech_interp.storage.plain import canonical

Level = Literal["same", "compatible", "different"]

# A new minor version of these may move the numbers themselves.
NUMERIC = ("torch", "transformers", "tokenizers", "numpy", "scipy", "scikit-learn", "safetensors")
_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTHONHASHSEED",
    "PYTORCH_ENABLE_MPS_FALLBACK",
    "HF_HUB_OFFLINE",
)
_PACKAGE = Path(__file__).resolve().parents[1]


def environment() -> dict[str, Any]:
    """Where a run is executed: code, packages, Python, system, processors, threads, command line.

    Imports torch where it is installed, to ask for its threads and its accelerator. Host and user names
    are left out; the home directory is written `~`, and secrets are blanked.
    """
    packages = _packages()
    return {
        "code": code(),
        "packages": packages,
        "packages_sha256": hashlib.sha256(canonical(packages)).hexdigest(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "os": {"system": platform.system(), "release": platform.release(), "machine": platform.machine()},
        "cpu": {"model": _cpu_model(), "count": os.cpu_count()},
        "memory_bytes": _memory(),
        **_torch(),
        "command": redact.command_line([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "variables": _variables(),
    }


def code(package: Path = _PACKAGE) -> dict[str, Any]:
    """The version of mech: its number, a hash of its source, and its commit where it is a checkout."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    found: dict[str, Any] = {"version": _version(), "sha256": digest.hexdigest()}
    root = _checkout(package)
    if root is None:
        return {**found, "commit": None, "dirty": None, "diff_sha256": None, "lock_sha256": None}
    changes = _git(root, "diff", "HEAD", "--binary") or ""
    lock = root / "constraints.txt"
    return {
        **found,
        "commit": (_git(root, "rev-parse", "HEAD") or "").strip() or None,
        "dirty": bool((_git(root, "status", "--porcelain") or "").strip()),
        "diff_sha256": hashlib.sha256(changes.encode("utf-8", "surrogateescape")).hexdigest()
        if changes
        else None,
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else None,
    }


@dataclass(frozen=True)
class Grade:
    """How far an environment is from the recorded one, and every difference that counts."""

    level: Level
    reasons: tuple[str, ...] = ()


def grade(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> Grade:
    """Compare two `environment()` documents.

    `same`: nothing that reaches the numbers differs, so they should come out bit for bit. `compatible`:
    small differences (patch versions, processor, threads, source), so they should agree within their
    tolerances. `different`: another minor version of a numeric package, another version of mech or
    another kind of accelerator.
    """
    far = [*_package_reasons(recorded, current, far=True)]
    near = [*_package_reasons(recorded, current, far=False)]
    for name, one, other, is_far in _facts(recorded, current):
        if one != other:
            (far if is_far else near).append(f"{name}: {_shown(one)} then, {_shown(other)} now")
    if far:
        return Grade("different", (*far, *near))
    return Grade("compatible", tuple(near)) if near else Grade("same")


def _facts(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> list[tuple[str, Any, Any, bool]]:
    """(name, then, now, whether a difference makes the environments different)."""

    def both(*path: str) -> tuple[Any, Any]:
        return _dig(recorded, path), _dig(current, path)

    one, other = both("python")
    return [
        ("mech version", *both("code", "version"), True),
        ("kind of accelerator", *both("gpu", "kind"), True),
        ("mech source", *both("code", "sha256"), False),
        ("Python", _minor(one), _minor(other), False),
        ("system", *both("os", "system"), False),
        ("machine", *both("os", "machine"), False),
        ("processor", *both("cpu", "model"), False),
        ("accelerator", *both("gpu", "name"), False),
        ("threads", *both("threads"), False),
        ("dtype", *both("dtype"), True),
        ("device", *both("device"), True),
    ]


def _package_reasons(recorded: Mapping[str, Any], current: Mapping[str, Any], far: bool) -> list[str]:
    then, now = recorded.get("packages", {}), current.get("packages", {})
    reasons = []
    for name in NUMERIC:
        one, other = then.get(name), now.get(name)
        is_far = _minor(one) != _minor(other)
        if one != other and is_far == far:
            reasons.append(f"{name}: {_shown(one)} then, {_shown(other)} now")
    return reasons


def _minor(version: str | None) -> str | None:
    """`2.13` of `2.13.0+cpu`."""
    return None if version is None else ".".join(version.partition("+")[0].split(".")[:2])


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def _dig(data: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        data = data.get(name) if isinstance(data, Mapping) else None
    return data


def _packages() -> dict[str, str]:
    """Every installed distribution: lower-case name -> version."""
    found: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"]
        if name:
            # The first on the path is the one that is imported.
            found.setdefault(name.lower().replace("_", "-"), distribution.version)
    return dict(sorted(found.items()))


def _version() -> str:
    try:
        return importlib.metadata.version("mech-interpretability")
    except importlib.metadata.PackageNotFoundError:
        return "uninstalled"


def _checkout(package: Path) -> Path | None:
    """The root of the git checkout that tracks the package, or None (an installed package is no checkout)."""
    if next((place for place in package.parents if (place / ".git").exists()), None) is None:
        return None
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    root = _git(package, "rev-parse", "--show-toplevel")
    return Path(root.strip()) if root else None


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails, is missing or hangs."""
    plain_environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            timeout=10,
            check=True,
            env={**plain_environment, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "surrogateescape")


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    if platform.system() == "Darwin":
        try:
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
            return done.stdout.strip() or None
        except (OSError, subprocess.SubprocessError):
            pass
    return platform.processor() or None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _torch() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"threads": None, "gpu": None}
    gpu: dict[str, Any] | None = None
    if torch.cuda.is_available():
        kind = "rocm" if torch.version.hip else "cuda"
        gpu = {
            "kind": kind,
            "name": torch.cuda.get_device_name(0),
            "count": torch.cuda.device_count(),
            "runtime": torch.version.hip or torch.version.cuda,
        }
    elif torch.backends.mps.is_available():
        gpu = {"kind": "mps", "name": _cpu_model(), "count": 1, "runtime": None}
    return {"threads": torch.get_num_threads(), "gpu": gpu}


def _variables() -> dict[str, str]:
    """The variables that reach the numbers, and ours."""
    ours = {name for name in os.environ if name.startswith("MECH_")}
    return {
        name: redact.HIDDEN if redact.is_secret(name) else redact.text(os.environ[name])
        for name in sorted({*_VARIABLES, *ours} & set(os.environ))
    }
