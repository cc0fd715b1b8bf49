"""Everything about a run that is known before its weights load: checked, found, hashed, keyed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mech_interp.config.canonical import digest, spec_content
from mech_interp.config.overrides import SHARED
from mech_interp.config.parameters import resolve_parameters
from mech_interp.errors import CapabilityError, InputError
from mech_interp.experiments import registry
from mech_interp.experiments.errors import FamilyError
from mech_interp.experiments.facts import ModelFacts
from mech_interp.orchestration import backends
from mech_interp.orchestration.backends import Backend, Place
from mech_interp.orchestration.models import FoundModel

if TYPE_CHECKING:
    from pydantic import BaseModel

    from mech_interp.config.settings import Settings
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.family import Family
    from mech_interp.orchestration.session import Session

ENGINE_VERSION = 1
"""Raised whenever the engine may give other numbers for the same spec, model and data."""

# Where data lie decides nothing once their content is hashed.
_PLACES_OF_DATA = ("dataset_path", "dataset_sha256")


@dataclass(frozen=True)
class Prepared:
    """A run that may start.

    Attributes:
        spec: as given, tags added, every parameter filled in.
        datasets: hash by name of the data that the parameters name.
        key: the same key means the same numbers.
        threads: how many to compute with; None is the library's choice.
    """

    spec: Spec
    family: Family[Any]
    params: BaseModel
    facts: ModelFacts
    backend: Backend
    model: FoundModel
    place: Place
    datasets: Mapping[str, str]
    key: str
    threads: int | None


def prepare(spec: Spec, session: Session, *, tags: Sequence[str] = ()) -> Prepared:
    """Check a spec against its family, backend, model and tokenizer, and work out its run key.

    Raises:
        MechError: naming what cannot be used; nothing has been written or loaded.
    """
    if spec.matrix is not None:
        raise InputError(
            f"{spec.origin.at(('matrix',))}{spec.name} has a matrix, so it stands for several runs.",
            "Run it with: mech sweep",
        )
    family = registry.get(spec.family)
    params = resolve_parameters(spec, family.Params)
    backend = backends.backend(spec.backend)
    backends.require(backend, family.needs, family.name)
    model = session.find(spec.model, spec.revision)
    facts = facts_of(spec.model, family, backend, model)
    family.check(params, facts, model.tokenizer)
    place = choose_place(spec, session.settings, model, backend)
    if family.needs:
        place = _fused_or_not(place, model)
    datasets = data_hashes(family, params, model, spec.seed)
    return Prepared(
        spec=filled_in(spec, params, tags),
        family=family,
        params=params,
        facts=facts,
        backend=backend,
        model=model,
        place=place,
        datasets=datasets,
        key=run_key(spec, family.version, params, model, place, datasets),
        threads=_threads(session.settings, place, model),
    )


def facts_of(name: str, family: Family[Any], backend: Backend, model: FoundModel) -> ModelFacts:
    """What is known of a model on a backend before its weights load.

    Raises:
        CapabilityError: the backend cannot open the model, or not as the family needs it.
    """
    if not family.needs:
        return ModelFacts.from_config(name, model.config)
    backend.check(model)
    architecture = backend.describe(model)
    if architecture is None:
        backends.require_at_block_level(backend, family.needs, family.name, model)
    return ModelFacts.of(name, model.config, architecture)


def choose_place(spec: Spec, settings: Settings, model: FoundModel, backend: Backend) -> Place:
    """Device, dtype and attention that the backend will use, `auto` replaced by what it stands for here.

    Raises:
        InputError: this machine has no such device.
        CapabilityError: the backend cannot use it.
    """
    device = settings.device if spec.device == "auto" else spec.device
    dtype: str = settings.dtype if spec.dtype == "auto" else spec.dtype
    return place_of(device, dtype, spec.attention, model, backend)


def place_of(device: str, dtype: str, attention: str, model: FoundModel, backend: Backend) -> Place:
    """`choose_place` of plain values."""
    if device == "auto":
        from mech_interp.backends.registry import on_this_machine

        device = on_this_machine(backend.devices)
    elif device != "cpu":
        from mech_interp.backends.huggingface.checkpoint import resolve_device

        device = resolve_device(device)
    if device.partition(":")[0] not in backend.devices:
        raise CapabilityError(
            f"The backend {backend.name} does not run on {device}.",
            f"Use --device {' or '.join(backend.devices)}, or another backend.",
        )
    if dtype == "auto":
        stated = str(model.config.get("dtype") or model.config.get("torch_dtype"))
        known = stated in ("float32", "float64", "bfloat16", "float16")
        dtype = stated if known and device != "cpu" else "float32"
    if dtype not in backend.dtypes:
        raise CapabilityError(
            f"The backend {backend.name} does not compute in {dtype}.",
            f"Use dtype: {' or '.join(backend.dtypes)}, or another backend.",
        )
    return Place(device, dtype, backend.attention_for(attention))


def _fused_or_not(place: Place, model: FoundModel) -> Place:
    """The attention that will run: the run key must not call fused what the architecture cannot fuse."""
    if place.attention != "sdpa" or "model_type" not in model.config:
        return place
    from mech_interp.backends.huggingface.checkpoint import available_attention

    return replace(place, attention=available_attention(model.folder, place.attention))


def data_hashes(family: Family[Any], params: BaseModel, model: FoundModel, seed: int) -> dict[str, str]:
    """Content hash by name of the data that the parameters name.

    A family that reads data in its own way says so itself, by a method `datasets` with these arguments
    after the first.

    Raises:
        InputError: the data cannot be read, or do not suit the tokenizer.
    """
    own = getattr(family, "datasets", None)
    if callable(own):
        return dict(own(params, model.tokenizer, seed))
    from mech_interp.experiments.data import DataParams, load_data

    if not isinstance(params, DataParams):
        return {}
    data = load_data(params, model.tokenizer, seed)
    return {data.name: data.content_hash()}


def run_key(
    spec: Spec,
    version: int,
    params: BaseModel,
    model: FoundModel,
    place: Place,
    datasets: Mapping[str, str],
) -> str:
    """SHA-256 (hex) over everything that decides the numbers, and nothing else."""
    parameters = params.model_dump(mode="json")
    if datasets:
        parameters = {key: value for key, value in parameters.items() if key not in _PLACES_OF_DATA}
    # The model counts by its content, the device by its type: both stand elsewhere in the key.
    parameters = {key: value for key, value in parameters.items() if key not in ("model", "device")}
    content = spec_content(
        spec, parameters, weights=model.weights_hash, device=place.device, dtype=place.dtype
    )
    return digest(
        {
            **content,
            "attention": place.attention,
            "tokenizer": model.tokenizer_hash,
            "datasets": sorted(datasets.values()),
            "family_version": version,
            "engine_version": ENGINE_VERSION,
        }
    )


def filled_in(spec: Spec, params: BaseModel, tags: Sequence[str] = ()) -> Spec:
    """The spec with every parameter and the extra tags written out."""
    given = params.model_dump(mode="json")
    fields = type(params).model_fields
    parameters = {
        key: value
        for key, value in given.items()
        if key not in SHARED and not (value is None and fields[key].default is None)
    }
    filled = spec.changed({"parameters": parameters, "tags": [*dict.fromkeys([*spec.tags, *tags])]})
    # What is stored must run again as it ran now.
    if resolve_parameters(filled, type(params)) != params:
        raise FamilyError(
            f"The parameters of {spec.family} do not read back as they were written.",
            "Its author has to mend it: no field may depend on how another was given.",
        )
    return filled


def _threads(settings: Settings, place: Place, model: FoundModel) -> int | None:
    from mech_interp.orchestration.threads import wanted_threads

    return wanted_threads(settings.threads, place.device, model.weight_bytes)
