"""`preflight`: everything that can be known to be wrong before a run starts, as a table of checks."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mech_interp.config.parameters import resolve_parameters
from mech_interp.errors import MechError
from mech_interp.experiments import registry
from mech_interp.experiments.facts import ModelFacts
from mech_interp.orchestration import backends, memory
from mech_interp.orchestration.prepare import Prepared, choose_place, data_hashes, facts_of, prepare
from mech_interp.orchestration.runner import shared_session
from mech_interp.orchestration.session import Session

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.family import Family
    from mech_interp.orchestration.backends import Backend, Place
    from mech_interp.orchestration.models import FoundModel

Status = Literal["ok", "warning", "failed", "skipped"]
T = TypeVar("T")
_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy")


@dataclass(frozen=True)
class Check:
    """One line of a preflight: what was checked, how it stands, and what to do where it is not well."""

    name: str
    status: Status
    detail: str
    hint: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def preflight(spec: Spec, settings: Settings, *, session: Session | None = None) -> list[Check]:
    """Check a spec without a matrix, as far as possible without loading weights; nothing is written.

    Problems are returned, not raised. A check that needs what an earlier one could not find is skipped.
    """
    with shared_session(settings, session) as shared:
        return _Preflight(spec, shared).run()


def passes(checks: list[Check]) -> bool:
    """Whether nothing failed."""
    return all(check.status != "failed" for check in checks)


class _Skip(Exception):
    """What this check needs is missing."""


class _Preflight:
    def __init__(self, spec: Spec, session: Session) -> None:
        self._spec, self._session, self._settings = spec, session, session.settings
        self._checks: list[Check] = []
        self._family: Family[Any] | None = None
        self._params: BaseModel | None = None
        self._backend: Backend | None = None
        self._model: FoundModel | None = None
        self._facts: ModelFacts | None = None
        self._place: Place | None = None
        self._prompts: tuple[int, int] | None = None

    def run(self) -> list[Check]:
        steps: tuple[tuple[str, Callable[[], tuple[Status, str]]], ...] = (
            ("packages", self._packages),
            ("family", self._find_family),
            ("parameters", self._read_parameters),
            ("backend", self._find_backend),
            ("model", self._find_model),
            ("architecture", self._check_architecture),
            ("device", self._choose_device),
            ("tokenizer", self._load_tokenizer),
            ("sites and answers", self._ask_family),
            ("data", self._read_data),
            ("memory", self._estimate_memory),
            ("folder", self._check_folder),
            ("stored runs", self._look_for_stored),
        )
        for name, step in steps:
            try:
                status, detail = step()
                self._checks.append(Check(name, status, detail))
            except _Skip as missing:
                self._checks.append(Check(name, "skipped", f"not checked: {missing}"))
            except MechError as error:
                self._checks.append(Check(name, "failed", error.message, error.hint))
        return self._checks

    def _packages(self) -> tuple[Status, str]:
        found, missing = [], []
        for package in _PACKAGES:
            try:
                found.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
        if missing:
            raise MechError(
                f"Not installed: {', '.join(missing)}.", f"Install them with: pip install {' '.join(missing)}"
            )
        return "ok", ", ".join(found)

    def _find_family(self) -> tuple[Status, str]:
        self._family = registry.get(self._spec.family)
        return "ok", f"{self._family.name} version {self._family.version}: {self._family.summary}"

    def _read_parameters(self) -> tuple[Status, str]:
        family = _need(self._family, "the family")
        self._params = resolve_parameters(self._spec, family.Params)
        return "ok", f"{len(self._params.model_fields_set)} given, the others by default"

    def _find_backend(self) -> tuple[Status, str]:
        chosen = backends.backend(self._spec.backend)
        if self._family is not None:
            backends.require(chosen, self._family.needs, self._family.name)
        self._backend = chosen
        return "ok", f"{chosen.name}: {chosen.summary or 'no description'}"

    def _find_model(self) -> tuple[Status, str]:
        self._model = model = self._session.find(self._spec.model, self._spec.revision)
        size = memory.spoken_bytes(model.weight_bytes)
        return "ok", f"{model.name}, {size}, weights {model.weights_hash[:12]}"

    def _check_architecture(self) -> tuple[Status, str]:
        model, family = _need(self._model, "the model"), _need(self._family, "the family")
        facts = facts_of(self._spec.model, family, _need(self._backend, "the backend"), model)
        self._facts = facts
        return "ok", f"{facts.architecture}, {facts.n_layers} layers of {facts.n_heads} heads"

    def _choose_device(self) -> tuple[Status, str]:
        model, backend = _need(self._model, "the model"), _need(self._backend, "the backend")
        self._place = choose_place(self._spec, self._settings, model, backend)
        return "ok", f"{self._place.dtype} on {self._place.device}, {self._place.attention} attention"

    def _load_tokenizer(self) -> tuple[Status, str]:
        tokenizer = _need(self._model, "the model").tokenizer
        if tokenizer is None:
            return "warning", "the model came without a tokenizer, so it cannot read text"
        return "ok", f"{type(tokenizer).__name__}, {len(tokenizer)} tokens"

    def _ask_family(self) -> tuple[Status, str]:
        family, params = _need(self._family, "the family"), _need(self._params, "the parameters")
        family.check(params, _need(self._facts, "the model"), _need(self._model, "the model").tokenizer)
        return "ok", "sites, layers, heads and answer tokens are there"

    def _read_data(self) -> tuple[Status, str]:
        from mech_interp.experiments.data import DataParams, load_data

        params = _need(self._params, "the parameters")
        if not isinstance(params, DataParams):
            return "ok", self._other_data()
        data = load_data(params, _need(self._model, "the model").tokenizer, self._spec.seed)
        tokenizer = _need(self._model, "the model").tokenizer
        self._prompts = len(data), max((len(tokenizer(pair.clean)["input_ids"]) for pair in data), default=0)
        dropped = f", {len(data.dropped)} dropped" if data.dropped else ""
        text = f"{data.name}: {len(data)} prompts{dropped}, hash {data.content_hash()[:12]}"
        return ("ok" if len(data) else "warning"), text

    def _other_data(self) -> str:
        """Data that a family reads in its own way."""
        family, model = _need(self._family, "the family"), _need(self._model, "the model")
        found = data_hashes(family, _need(self._params, "the parameters"), model, self._spec.seed)
        named = [f"{name}, hash {digest[:12]}" for name, digest in found.items()]
        return "; ".join(named) or "the family takes no data"

    def _estimate_memory(self) -> tuple[Status, str]:
        place, facts = _need(self._place, "the device"), _need(self._facts, "the model")
        need = memory.weights_need(_need(self._model, "the model"), place)
        if self._prompts is not None:
            need += memory.prompts_need(facts, place, *self._prompts)
        there = memory.available(place.device)
        text = f"about {memory.spoken_bytes(need)} for weights and cached prompts"
        if there is None:
            return "ok", f"{text}; free memory is unknown"
        text = f"{text}; {memory.spoken_bytes(there)} are free"
        return ("warning" if need > 0.9 * there else "ok"), text

    def _check_folder(self) -> tuple[Status, str]:
        home = self._settings.home.absolute()
        place = next(folder for folder in (home, *home.parents) if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            raise MechError(
                f"The folder {str(place)!r} cannot be written by this user.",
                "Give another place with --home or MECH_HOME.",
            )
        free = shutil.disk_usage(place).free
        limit = int(self._spec.artifact_policy.max_artifact_bytes)
        text = f"{_shown(home)}, {memory.spoken_bytes(free)} free"
        return ("warning" if free < min(limit, 2**28) else "ok"), text

    def _look_for_stored(self) -> tuple[Status, str]:
        if any(check.status in ("failed", "skipped") for check in self._checks):
            raise _Skip("an earlier check")
        prepared: Prepared = prepare(self._spec, self._session)
        if not self._settings.home.is_dir():
            return "ok", f"none with the key {prepared.key[:12]}"
        runs: Mapping[str, str] = {run.id: run.status for run in self._session.store.by_key(prepared.key)}
        if not runs:
            return "ok", f"none with the key {prepared.key[:12]}"
        return "ok", ", ".join(f"{name} is {status}" for name, status in runs.items())


def _need(value: T | None, what: str) -> T:
    if value is None:
        raise _Skip(f"{what} could not be found")
    return value


def _shown(path: Path) -> str:
    from mech_interp.storage import redact

    return redact.text(str(path))
