"""Backends made up for tests, offered through the entry-point seam: right, subtly wrong, or lacking."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from mech_interp.backends.protocol import Activations, ForwardResult
from mech_interp.backends.registry import BACKENDS, DEFAULT
from mech_interp.orchestration import backends
from mech_interp.orchestration.backends import Backend
from mech_interp.sites import Site


class Altered:
    """The default engine under another name, with one site shown (not computed) off by a factor."""

    def __init__(self, model: Any, name: str, site: Site | None = None, factor: float = 1.0) -> None:
        self.model, self.site, self.factor = model, site, factor
        self.info = dataclasses.replace(model.info, backend=name)
        self.closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward(self, *arguments: Any, **options: Any) -> ForwardResult:
        result = self.model.forward(*arguments, **options)
        seen = dict(result.activations)
        if self.site in seen:
            seen[self.site] = seen[self.site] * self.factor
        return dataclasses.replace(result, activations=Activations(seen))

    def close(self) -> None:
        self.closed = True


def offer(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    wrap: Callable[[Any], Any] | None = None,
    **changes: Any,
) -> list[Any]:
    """Let an installed package offer a backend; returns the models that it will have opened."""
    opened: list[Any] = []
    plain = backends._of_mech(BACKENDS[DEFAULT])

    def load(model: Any, place: Any) -> Any:
        made = (wrap or (lambda one: Altered(one, name)))(plain.load(model, place))
        opened.append(made)
        return made

    made = Backend(**{**vars(plain), "name": name, "load": load, "summary": "made up", **changes})

    @dataclasses.dataclass(frozen=True)
    class Offer:
        name: str

        def load(self) -> Backend:
            return made

    before = backends.plugins
    monkeypatch.setattr(backends, "plugins", lambda group: [*before(group), Offer(name)])
    return opened
