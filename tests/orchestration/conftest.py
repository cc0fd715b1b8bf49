"""A toy family, known to the registry while a test runs, and the helper modules of tests/support."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUPPORT = str(Path(__file__).resolve().parent.parent / "support")
if SUPPORT not in sys.path:
    sys.path.insert(0, SUPPORT)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import toy_family

    # Only a loss of power would show the difference, and waiting for the disk is most of a test's time.
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    toy_family.install()
    yield
    toy_family.uninstall()


@pytest.fixture(autouse=True, scope="session")
def _known_environment() -> Iterator[None]:
    """The environment is asked for once: it takes long, and its tests are elsewhere."""
    from mech_interp.orchestration.session import Session

    known = {}

    def environment(self: Session) -> dict[str, object]:
        if not known:
            from mech_interp.storage import environment as ask

            known.update(ask())
        return dict(known)

    before = Session.environment
    Session.environment = environment  # type: ignore[method-assign]
    yield
    Session.environment = before  # type: ignore[method-assign]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a checkpoint."""
    import toy_family

    return toy_family.checkpoint(tmp_path / "tiny")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where a test's runs go."""
    return tmp_path / "runs"
