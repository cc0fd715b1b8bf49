"""What a family of experiments is: typed parameters, a version and a run function.

class Params(FamilyParams):
    top_k: int = Field(default=5, ge=1, description="Tokens listed per layer.")

class Lens(Family[Params]):
    name, version, summary = "lens", 1, "Read the model's belief at every layer."
    Params = Params

    def run(self, context: Context[Params]) -> Result: ...

FAMILY = Lens()
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, PydanticUserError

from mech_interp.experiments.errors import FamilyError

if TYPE_CHECKING:
    from mech_interp.config.spec import Spec
    from mech_interp.experiments.context import Context
    from mech_interp.experiments.facts import ModelFacts
    from mech_interp.experiments.result import Result


class FamilyParams(BaseModel):
    """Base of a family's parameters: unknown keys are errors, nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


P = TypeVar("P", bound=BaseModel)


class Family(ABC, Generic[P]):
    """One kind of experiment.

    Attributes:
        name: what specs call it (lower case, underscores).
        version: an integer that is raised whenever the same spec may give other numbers.
        summary: one line for people.
        Params: its parameters; a field named hook_site, prompts, model or device receives the spec's.
        needs: what the backend must be able to do (`mech_interp.backends.protocol.Capability` values).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    summary: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    Params: type[P]

    # The base refuses nothing: a family without anything to check need not say so.
    def check(self, params: P, facts: ModelFacts, tokenizer: Any) -> None:
        """Refuse, before weights load, what this model cannot do: layers, heads, sites, answer tokens.

        Raises:
            InputError: naming the parameter.
        """

    @abstractmethod
    def run(self, context: Context[P]) -> Result:
        """Do the work, in units, and return the result; files are no concern of a family."""

    def propose(self, result: Result, spec: Spec) -> Sequence[Spec]:
        """Specs that would follow up on a result; none by default."""
        return ()


def check_family(found: Any) -> Family[Any]:
    """What a module or package offers as a family: an instance, or a class without arguments.

    Raises:
        FamilyError: naming the part of the contract that is broken.
    """
    if isinstance(found, type) and issubclass(found, Family):
        try:
            found = found()
        except Exception as error:
            raise _broken(found.__name__, f"cannot be made: {error}") from error
    if not isinstance(found, Family):
        raise _broken(getattr(found, "__name__", repr(found)[:80]), "is not a Family")
    who = type(found).__name__
    name, version = getattr(found, "name", None), getattr(found, "version", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise _broken(who, f"has the name {name!r}, which is not lower case with underscores")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _broken(who, f"has the version {version!r}, which is not an integer from 1 up")
    if not str(getattr(found, "summary", "")).strip():
        raise _broken(who, "has no summary")
    _check_params(who, getattr(found, "Params", None))
    return found


def _check_params(who: str, params: Any) -> None:
    if not (isinstance(params, type) and issubclass(params, BaseModel)):
        raise _broken(who, "has no Params that are a pydantic model")
    for model in _nested(params):
        if model.model_config.get("extra") != "forbid":
            raise _broken(who, f"has {model.__name__}, which does not forbid unknown keys")
        for name, info in model.model_fields.items():
            if not info.description:
                raise _broken(who, f"has {model.__name__}.{name}, which has no description")
    try:
        params.model_json_schema()
    except (PydanticUserError, NameError, TypeError) as error:
        line = str(error).splitlines()[0]
        raise _broken(who, f"has Params without a JSON Schema: {line}") from error


def _nested(model: type[BaseModel], seen: set[type[BaseModel]] | None = None) -> Iterator[type[BaseModel]]:
    """The model and every model that its fields hold."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    yield model
    for info in model.model_fields.values():
        for inner in _models(info.annotation):
            yield from _nested(inner, seen)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _broken(who: str, what: str) -> FamilyError:
    return FamilyError(f"The family {who} {what}.", "Its author has to mend it; see `Family`.")
