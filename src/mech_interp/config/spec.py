"""The spec: what a person writes down to have one experiment run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from mech_interp.config.canonical import plain
from mech_interp.config.dumping import dump
from mech_interp.config.overrides import lift, path_of, with_values
from mech_interp.config.problems import problem, shown
from mech_interp.config.reading import Origin
from mech_interp.errors import InputError, MechError
from mech_interp.sites import Site

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=80)]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:[0-9]{1,3})?)$")]
Size = Annotated[
    ByteSize,
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "string"}]}),
    Field(gt=0),
]
Values = Annotated[list[Any], Field(min_length=1)]

AXES = (
    "attention",
    "backend",
    "device",
    "dtype",
    "hook_site",
    "model",
    "parameters",
    "prompts",
    "revision",
    "seed",
)
"""Top-level keys that a matrix may vary."""


class Strict(BaseModel):
    """Unknown keys are errors and nothing is converted: text is never taken for a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ArtifactPolicy(Strict):
    """What a run keeps."""

    retain_activation_tensors: bool = Field(
        default=False, description="Keep captured activations with the run."
    )
    write_report: bool = Field(default=True, description="Write report.md.")
    max_artifact_bytes: Size = Field(
        default=ByteSize(2 * 2**30),
        description="Largest size of the run's files together, in bytes or as 500MB, 2GiB.",
    )


class Hypothesis(Strict):
    """A prediction written down before the run, judged after it."""

    claim: str = Field(min_length=1, description="What is predicted, as a sentence.")
    metric: str = Field(min_length=1, description="The metric of the run that decides.")
    direction: Literal["above", "below"] = Field(description="The side of the threshold that confirms it.")
    threshold: float = Field(description="The value to be passed, in the metric's unit.")


class Matrix(Strict):
    """Several runs in one spec: every combination of grid, zip, list and seeds.

    Axes are dotted paths (``parameters.kind``). Axes written straight under `matrix` belong to the grid.
    """

    grid: dict[str, Values] = Field(
        default_factory=dict, description="Axes of which all combinations are run."
    )
    zip: dict[str, Values] = Field(default_factory=dict, description="Axes of equal length that go together.")
    cases: list[dict[str, Any]] = Field(
        default_factory=list, alias="list", description="Cases, each a mapping from axis to value."
    )
    seeds: Annotated[int, Field(ge=1, le=10_000)] | Values | None = Field(
        default=None,
        description="Replicates: a number of seeds counted up from the spec's own, or the seeds themselves.",
    )

    @model_validator(mode="before")
    @classmethod
    def _bare_axes_are_a_grid(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        bare = {key: value for key, value in data.items() if key.partition(".")[0] in AXES}
        if not bare:
            return data
        grid = data.get("grid") or {}
        if not isinstance(grid, dict) or set(grid) & set(bare):
            raise ValueError("an axis is given both under matrix and under matrix.grid")
        return {**{key: value for key, value in data.items() if key not in bare}, "grid": {**grid, **bare}}

    @model_validator(mode="after")
    def _check(self) -> Self:
        lengths = {axis: len(values) for axis, values in self.zip.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"the axes under zip differ in length: {lengths}")
        named = [path_of(axis) for axis in (*self.grid, *self.zip)]
        cases = [[path_of(axis) for axis in case] for case in self.cases]
        named += sorted({axis for case in cases for axis in case})
        named += ["seed"] if self.seeds is not None else []
        for axis in named:
            if axis.partition(".")[0] not in AXES or axis == "parameters":
                raise ValueError(
                    f"{axis!r:.80} is no axis; an axis is parameters.{axis:.40} if the family takes that, "
                    f"or one of {', '.join(key for key in AXES if key != 'parameters')}"
                )
        for axes in (named, *cases):
            twice = [axis for axis in axes if axes.count(axis) > 1]
            if twice:
                raise ValueError(f"the axis {twice[0]} is given twice")
        if not named:
            raise ValueError("it has no axes")
        return self

    def supplies(self, key: str) -> bool:
        """Whether every child gets `key` from here."""
        paths = {path_of(axis) for axis in (*self.grid, *self.zip)}
        return key in paths or (bool(self.cases) and all(key in map(path_of, case) for case in self.cases))


class Spec(Strict):
    """One experiment, or with `matrix` several."""

    name: Name = Field(description="What the run is called: letters, digits and . _ - between.")
    family: Word = Field(description="The kind of experiment; `mech families` lists them.")
    description: str = Field(default="", description="For people; decides nothing.")
    backend: Word = Field(default="huggingface", description="What runs the model.")
    model: str = Field(default="", description="A bundled model, a folder, an alias or a hub id.")
    revision: str | None = Field(default=None, min_length=1, description="Branch, tag or commit of a hub id.")
    hook_site: str | None = Field(default=None, description="A site, such as blocks.8.hook_resid_pre.")
    device: Device = Field(default="auto", description="auto, cpu, mps, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format; auto is float32 on a CPU and the checkpoint's own on a GPU.",
    )
    attention: Literal["sdpa", "eager"] = Field(default="sdpa", description="Fused or plain attention.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of everything random in the run.")
    parameters: dict[str, Any] = Field(default_factory=dict, description="The family's own parameters.")
    prompts: list[str | dict[str, Any]] | None = Field(
        default=None, min_length=1, description="Prompts for families that take them."
    )
    tags: list[Annotated[str, Field(pattern=r"^[^\s,]+$", max_length=80)]] = Field(
        default_factory=list, description="Words to find the run by."
    )
    artifact_policy: ArtifactPolicy = Field(default_factory=ArtifactPolicy, description="What the run keeps.")
    matrix: Matrix | None = Field(default=None, description="Axes that make several runs of this spec.")
    parent_run: str | None = Field(
        default=None, min_length=1, description="The run that this one follows up."
    )
    hypothesis: Hypothesis | None = Field(default=None, description="A prediction that the run is to test.")

    _origin: Origin = PrivateAttr(default_factory=Origin)

    @property
    def origin(self) -> Origin:
        """Where the spec was read; not part of its content."""
        return self._origin

    @field_validator("hook_site")
    @classmethod
    def _one_form_of_site(cls, value: str | None) -> str | None:
        try:
            return None if value is None else str(Site.parse(value))
        except MechError as error:
            raise ValueError(str(error)) from None

    @field_validator("tags")
    @classmethod
    def _each_tag_once(cls, value: list[str]) -> list[str]:
        return list(dict.fromkeys(value))

    @classmethod
    def from_dict(cls, data: Any, source: str = "", *, origin: Origin | None = None) -> Spec:
        """Check a spec's data and fill in defaults.

        Args:
            data: the mapping that a YAML document holds.
            source: what to call it in errors.
            origin: its file and lines, where known.

        Raises:
            InputError: naming the key, what was given, what is allowed and the nearest valid key.
        """
        origin = origin or Origin(source)
        if not isinstance(data, Mapping):
            raise InputError(
                f"{origin.at()}a spec is a mapping of keys such as name and family, not {shown(data)}.",
                "Start with: name: my-run",
            )
        lifted = lift(_plain_mapping(data, origin), origin)
        try:
            spec = cls.model_validate(lifted)
        except ValidationError as error:
            raise problem(error, cls, lifted, origin=origin) from None
        if not spec.model.strip() and not (spec.matrix and spec.matrix.supplies("model")):
            raise InputError(
                f"{origin.at()}model is missing.",
                "Add for example: model: tinyworld (`mech models` lists more).",
            )
        spec._origin = origin
        return spec

    def to_dict(self) -> dict[str, Any]:
        """Everything, defaults included, as plain data; keys without a value are left out."""
        full = self.model_dump(mode="json", by_alias=True)
        return {key: value for key, value in full.items() if value is not None}

    def to_yaml(self) -> str:
        """The resolved spec as YAML; reading it gives an equal spec."""
        return dump(self.to_dict())

    def changed(self, values: Mapping[str, Any]) -> Spec:
        """A checked copy with the values at dotted paths replaced."""
        return Spec.from_dict(with_values(self.to_dict(), values), origin=self.origin)

    def __str__(self) -> str:
        return f"{self.name} ({self.family} on {self.model or 'a matrix of models'})"


def _plain_mapping(data: Mapping[Any, Any], origin: Origin) -> dict[str, Any]:
    try:
        copied = plain(data, "the spec")
    except InputError as error:
        raise InputError(f"{origin.at()}{error.message}", error.hint) from None
    assert isinstance(copied, dict)
    return copied
