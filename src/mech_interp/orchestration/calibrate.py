"""Calibration: every circuit method on models whose mechanism is known, section by section."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from mech_interp.errors import InputError, nearest
from mech_interp.orchestration.threads import threads, wanted_threads

if TYPE_CHECKING:
    from mech_interp.methods.circuits.certificate.cases import Bench, Scope
    from mech_interp.methods.circuits.certificate.result import Certificate, Measure

_ROOM = "mech_interp.methods.circuits.certificate"
SECTIONS = {
    "exact": "edges:exact_section",
    "acdc": "edges:acdc_section",
    "gates": "edges:gates_section",
    "gradients": "edges:gradients_section",
    "paths": "nodes:paths_section",
    "nodes": "nodes:nodes_section",
    "scrubbing": "scrubs:scrubbing_section",
    "discovery": "nulls:discovery_section",
    "identities": "identities:identities_section",
}
"""Each section of the certificate, and where it is measured."""

Tell = Callable[[str, int, int, float], None]
"""Told (section, done, of, seconds so far) before each section."""


def choose_sections(named: Sequence[str] | None) -> list[str]:
    """The sections named, in the certificate's order; all by default.

    Raises:
        InputError: there is no such section.
    """
    for name in named or ():
        if name not in SECTIONS:
            raise InputError(
                f"The certificate has no section {name!r:.80}.",
                nearest(name, SECTIONS) or f"There are: {', '.join(SECTIONS)}.",
            )
    if named is not None and not named:
        raise InputError("No section was named.", f"There are: {', '.join(SECTIONS)}.")
    return [name for name in SECTIONS if named is None or name in named]


def calibrate(
    *, quick: bool = False, only: Sequence[str] | None = None, tell: Tell = lambda *step: None
) -> Certificate:
    """Measure the certificate.

    Args:
        quick: fewer models, draws, replicates and architectures, for tests.
        only: sections; all by default.
        tell: told before each section, and at the end.

    Raises:
        InputError: see `choose_sections`.
    """
    chosen = choose_sections(only)
    import torch  # noqa: F401  # loaded before its threads are set

    from mech_interp.methods.circuits.certificate.cases import QUICK, Bench, Scope
    from mech_interp.methods.circuits.certificate.result import Certificate

    scope = QUICK if quick else Scope()
    bench, began = Bench(scope), time.perf_counter()
    measures: list[Measure] = []
    seconds: dict[str, float] = {}
    for number, name in enumerate(chosen):
        tell(name, number, len(chosen), time.perf_counter() - began)
        start, section = time.perf_counter(), _section(name)
        with threads(wanted_threads(None, "cpu", 0)):  # the models are tiny, all of them
            measures += section(bench)
        seconds[name] = time.perf_counter() - start
    tell("", len(chosen), len(chosen), time.perf_counter() - began)
    return Certificate(scope.name, _settings(scope, chosen), tuple(measures), seconds, bench.hashes())


def _section(name: str) -> Callable[[Bench], list[Measure]]:
    module, _, function = SECTIONS[name].partition(":")
    found: Callable[[Bench], list[Measure]] = getattr(importlib.import_module(f"{_ROOM}.{module}"), function)
    return found


def _settings(scope: Scope, chosen: Sequence[str]) -> dict[str, object]:
    return {"sections": list(chosen), **scope.to_dict()}
