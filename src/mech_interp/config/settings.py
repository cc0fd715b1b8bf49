"""Settings of this machine and project: where runs go, what device, which aliases.

A setting comes from the first of these that has it: a command's flag, the environment (``MECH_HOME``), the
file ``.env``, the project file (``mech.toml``, or ``[tool.mech]`` in ``pyproject.toml``, in this folder or
one above), the user's file, the default. Aliases of all sources add up. Relative paths in a file are
relative to that file.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mech_interp.config.problems import problem
from mech_interp.config.reading import read_file
from mech_interp.config.spec import Device
from mech_interp.errors import InputError, nearest

PREFIX = "MECH_"
DEFAULT = "default"
_PATHS = ("home", "specs")


class Settings(BaseSettings):
    """Every setting with its default; build it with `resolve_settings`, which reads the sources."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix=PREFIX)

    home: Path = Field(default=Path("artifacts"), description="Folder of the runs and their index.")
    specs: Path = Field(default=Path("experiments"), description="Folder where specs are looked up by name.")
    device: Device = Field(
        default="auto", description="Where models run if the spec says auto: cpu, mps, cuda, cuda:N."
    )
    dtype: Literal["auto", "float32", "float64", "bfloat16", "float16"] = Field(
        default="auto", description="Number format if the spec says auto."
    )
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="Threads of a CPU; unset is the library's choice."
    )
    memory_budget: ByteSize | None = Field(
        default=None,
        gt=0,
        description="Memory that a sweep may take for its rows, such as 2GiB; unset is measured.",
    )
    offline: bool = Field(default=False, description="Never reach for the model hub.")
    format: Literal["human", "json", "quiet"] = Field(
        default="human", description="How commands print results."
    )
    aliases: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict, description="Short names for models: small = EleutherAI/pythia-70m."
    )

    #: Settings in order; the same names, upper-case after MECH_, are the environment's.
    NAMES: ClassVar[tuple[str, ...]] = (
        "home",
        "specs",
        "device",
        "dtype",
        "threads",
        "memory_budget",
        "offline",
        "format",
        "aliases",
    )

    @field_validator("home", "specs", mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        if isinstance(value, str | Path) and (not str(value).strip() or "\0" in str(value)):
            raise ValueError("it is no path")
        return _expanded(value) if isinstance(value, str | Path) else value

    @field_validator("aliases", mode="before")
    @classmethod
    def _aliases(cls, value: Any) -> Any:
        return parse_aliases(value) if isinstance(value, str) else value

    @field_validator("aliases")
    @classmethod
    def _named(cls, value: dict[str, str]) -> dict[str, str]:
        if not all(name.strip() and model.strip() for name, model in value.items()):
            raise ValueError("an alias or its model is empty")
        return value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is passed: `resolve_settings` reads the sources one by one, to know which decided."""
        return (init_settings,)


def resolve_settings(
    flags: Mapping[str, Any] | None = None, *, start: Path | None = None, user: Path | None = None
) -> tuple[Settings, dict[str, str]]:
    """The settings and, for each, where it came from (``aliases.NAME`` for each alias).

    Args:
        flags: what the command line gave; None means not given.
        start: the folder to search from; the current one by default.
        user: the user's file; `user_file()` by default.

    Raises:
        InputError: naming source, setting, what was given and what is allowed.
    """
    start = (start or Path.cwd()).absolute()
    user = user or user_file()
    chosen: dict[str, Any] = {}
    provenance = dict.fromkeys(Settings.NAMES, DEFAULT)
    aliases: dict[str, str] = {}
    # From weakest to strongest: later ones replace earlier ones.
    for label, values in _sources(flags or {}, start, user):
        valid = _checked(values, label)
        for key in values:
            name = f"{label} {PREFIX}{key.upper()}" if label == "environment" else label
            provenance[key] = name
            chosen[key] = getattr(valid, key)
            if key == "aliases":
                aliases.update(valid.aliases)
                provenance.update({f"aliases.{alias}": name for alias in valid.aliases})
    if "aliases" in chosen:
        chosen["aliases"] = aliases
    return Settings(**chosen), provenance


def user_file() -> Path:
    """The user's own settings file; it need not exist."""
    import platformdirs

    return Path(platformdirs.user_config_path("mech", appauthor=False)) / "config.toml"


def project_file(start: Path) -> Path | None:
    """The nearest ``mech.toml``, or ``pyproject.toml`` with ``[tool.mech]``, at or above `start`."""
    for folder in (start, *start.parents):
        if (folder / "mech.toml").is_file():
            return folder / "mech.toml"
        project = folder / "pyproject.toml"
        if project.is_file() and _names_us(project):
            return project
    return None


def parse_aliases(text: str) -> dict[str, Any]:
    """``small=gpt2, big=gpt2-xl``, or the same as a JSON object."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError("it is not a JSON object") from None
        return dict(found)
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    if not all(equals for _, equals, _ in pairs):
        raise ValueError("write it as name=model, name=model")
    return {name.strip(): model.strip() for name, _, model in pairs}


def _sources(flags: Mapping[str, Any], start: Path, user: Path) -> list[tuple[str, dict[str, Any]]]:
    """(label, values) of every source, the weakest first."""
    project = project_file(start)
    found = [(f"user file {user}", _toml(user))] if user.is_file() else []
    if project is not None:
        found.append((f"project file {project}", _toml(project)))
    dotenv = _dotenv_file(start, project)
    if dotenv is not None:
        found.append((f"file {dotenv}", _dotenv(dotenv)))
    environment = EnvSettingsSource(Settings, env_prefix=PREFIX, env_ignore_empty=True)
    _check_variables(environment.env_vars, "environment")
    found.append(("environment", _known(environment())))
    given = {key: value for key, value in flags.items() if value is not None}
    found.append(("flag", given))
    return found


def _checked(values: dict[str, Any], label: str) -> Settings:
    try:
        return Settings(**values)
    except ValidationError as error:
        raise _named(problem(error, Settings, values), label) from None


def _named(error: InputError, label: str) -> InputError:
    return InputError(f"{label}: {error.message}", error.hint)


def _toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, with its paths made absolute."""
    try:
        data = tomllib.loads(read_file(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path} is not TOML: {reason}.", "Write for example: home = 'runs'") from None
    if path.name == "pyproject.toml":
        data = data.get("tool", {}).get("mech", {})
    return _anchored(data, path.parent)


def _dotenv_file(start: Path, project: Path | None) -> Path | None:
    folders = [start] if project is None else [start, project.parent]
    return next((folder / ".env" for folder in folders if (folder / ".env").is_file()), None)


def _dotenv(path: Path) -> dict[str, Any]:
    read_file(path)  # for its sentences about permissions and encoding
    source = DotEnvSettingsSource(
        Settings, env_file=path, env_file_encoding="utf-8-sig", env_prefix=PREFIX, env_ignore_empty=True
    )
    _check_variables(source.env_vars, str(path))
    return _anchored(_known(source()), path.parent)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    """Other programs' variables left out."""
    return {key: values[key] for key in Settings.NAMES if key in values}


def _check_variables(variables: Mapping[str, Any], where: str) -> None:
    """Refuse a misspelt MECH_ variable, which would otherwise do nothing."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.NAMES]
    for variable in variables:
        name = variable.upper()
        close = nearest(name, known, n=1) if name.startswith(PREFIX) and name not in known else ""
        if close and nearest(name.removeprefix(PREFIX).lower(), Settings.NAMES, n=1):
            raise InputError(f"{where}: {name} is no setting.", close)


def _anchored(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Relative paths joined to the folder of the file that they stand in."""
    out = dict(values)
    for key in _PATHS:
        if isinstance(out.get(key), str) and out[key].strip():
            out[key] = str(folder / _expanded(out[key]))
    aliases = out.get("aliases")
    if isinstance(aliases, dict):
        out["aliases"] = {
            name: str(folder / model) if str(model).startswith(("./", "../")) else model
            for name, model in aliases.items()
        }
    return out


def _expanded(value: str | Path) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError:  # no such user
        return Path(value)


def _names_us(project: Path) -> bool:
    """Whether a pyproject.toml has our table; one that cannot be read is somebody else's matter."""
    try:
        return "mech" in tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError, RecursionError, AttributeError):
        return False
