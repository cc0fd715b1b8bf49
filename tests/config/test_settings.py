"""Settings: six sources in order, where each value came from, mistakes, and .env.example."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from mech_interp.config import Settings, resolve_settings
from mech_interp.config.settings import user_file
from mech_interp.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
# From strongest to weakest, as the documents promise.
SOURCES = ["flag", "environment", ".env", "project", "user", "default"]
VALUES = {
    "device": ["cpu", "mps", "cuda", "cuda:1", "cuda:2", "auto"],
    "threads": [1, 2, 3, 4, 5, None],
    "dtype": ["float64", "bfloat16", "float16", "float32", "float64", "auto"],
    "offline": [True, False, True, False, True, False],
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A project folder with a folder to work in, and no settings from this machine."""
    for name in list(os.environ):
        if name.upper().startswith("MECH_"):
            monkeypatch.delenv(name)
    (tmp_path / "project" / "work").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "work")
    return Place(tmp_path)


class Place:
    def __init__(self, root: Path) -> None:
        self.work = root / "project" / "work"
        self.project = root / "project" / "mech.toml"
        self.pyproject = root / "project" / "pyproject.toml"
        self.dotenv = self.work / ".env"
        self.user = root / "user.toml"

    def resolve(self, **flags):
        return resolve_settings(flags, start=self.work, user=self.user)


def toml(values: dict) -> str:
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items())


def env(values: dict) -> dict[str, str]:
    return {f"MECH_{key.upper()}": str(value) for key, value in values.items()}


def test_defaults_and_where_they_come_from(place):
    found, provenance = place.resolve()
    assert found == Settings()
    assert found.home == Path("artifacts")
    assert set(provenance.values()) == {"default"}
    assert set(provenance) == set(Settings.model_fields) == set(Settings.NAMES)


@hypothesis_settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.dictionaries(st.sampled_from(sorted(VALUES)), st.sets(st.sampled_from(SOURCES[:-1]))))
def test_the_strongest_source_that_has_a_value_decides(place, monkeypatch, given_by):
    by_source = {
        source: {key: VALUES[key][i] for key, sources in given_by.items() if source in sources}
        for i, source in enumerate(SOURCES)
    }
    place.user.write_text(toml(by_source["user"]))
    place.project.write_text(toml(by_source["project"]))
    place.dotenv.write_text("".join(f"{key}={value}\n" for key, value in env(by_source[".env"]).items()))
    with monkeypatch.context() as patched:
        for key, value in env(by_source["environment"]).items():
            patched.setenv(key, value)
        found, provenance = place.resolve(**by_source["flag"])
    for key in VALUES:
        winner = next(s for s in SOURCES if s == "default" or s in given_by.get(key, ()))
        assert getattr(found, key) == VALUES[key][SOURCES.index(winner)]
        assert winner in provenance[key]


def test_a_flag_of_none_is_not_given(place, monkeypatch):
    monkeypatch.setenv("MECH_DEVICE", "cpu")
    monkeypatch.setenv("MECH_DTYPE", "")
    found, provenance = place.resolve(device=None)
    assert found.device == "cpu"
    assert provenance["device"] == "environment MECH_DEVICE"
    assert provenance["dtype"] == "default"


def test_aliases_of_all_sources_add_up(place, monkeypatch):
    place.user.write_text("[aliases]\na = 'user'\nb = 'user'\nc = 'user'\n")
    place.project.write_text("[aliases]\nb = 'project'\nlocal = './models/x'\n")
    monkeypatch.setenv("MECH_ALIASES", "c=env, d=org/env")
    found, provenance = place.resolve()
    local = str(place.project.parent / "models/x")
    assert found.aliases == {"a": "user", "b": "project", "local": local, "c": "env", "d": "org/env"}
    assert provenance["aliases.a"].startswith("user file")
    assert provenance["aliases.b"].startswith("project file")
    assert provenance["aliases.c"] == "environment MECH_ALIASES"
    monkeypatch.setenv("MECH_ALIASES", '{"d": "json"}')
    assert place.resolve()[0].aliases["d"] == "json"


def test_paths_belong_to_the_file_they_stand_in(place, monkeypatch):
    place.user.write_text("specs = 'mine'\n")
    place.project.write_text("home = 'runs'\n")
    found, _ = place.resolve()
    assert found.home == place.project.parent / "runs"
    assert found.specs == place.user.parent / "mine"
    monkeypatch.setenv("MECH_HOME", "here")
    assert place.resolve()[0].home == Path("here")
    monkeypatch.setenv("MECH_HOME", "~/there")
    assert place.resolve()[0].home == Path.home() / "there"


def test_pyproject_is_a_project_file_where_it_names_us(place):
    place.pyproject.write_text("[tool.mech]\ndevice = 'cpu'\n")
    found, provenance = place.resolve()
    assert (found.device, provenance["device"]) == ("cpu", f"project file {place.pyproject}")
    place.pyproject.write_text("[tool.other]\ndevice = 'cpu'\n")
    assert place.resolve()[0].device == "auto"
    place.pyproject.write_text("not toml [")
    assert place.resolve()[0].device == "auto"
    place.project.write_text("device = 'mps'\n")
    place.pyproject.write_text("[tool.mech]\ndevice = 'cpu'\n")
    assert place.resolve()[0].device == "mps"


def test_dotenv_lies_here_or_beside_the_project_file(place):
    above = place.project.parent / ".env"
    above.write_text("MECH_DEVICE=cpu\nMECH_HOME=runs\n")
    assert place.resolve()[0].device == "auto"
    place.project.write_text("")
    assert place.resolve()[0].device == "cpu"
    assert place.resolve()[0].home == above.parent / "runs"
    place.dotenv.write_text("export MECH_DEVICE='mps' # near\nOTHER=x\n")
    assert place.resolve()[0].device == "mps"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("devise = 'cpu'", "There is no key 'devise'.", "Did you mean device"),
        ("device = 'gpu'", "device is 'gpu', but must be text that matches", "cuda"),
        ("threads = 0", "threads is 0, but must be at least 1.", ""),
        ("threads = 'four'", "threads is 'four', but must be an integer.", ""),
        ("memory_budget = 'much'", "must be a size such as", ""),
        ("format = 'xml'", "must be one of 'human', 'json' or 'quiet'.", ""),
        ("offline = 'perhaps'", "must be true or false.", ""),
        ("home = ''", "it is no path", ""),
        ("home = 3", "home is 3, but must be a path.", ""),
        ("[aliases]\nx = 3", "aliases.x is 3, but must be text.", ""),
        ("[aliases]\nx = ''", "an alias or its model is empty", ""),
        ("aliases = 'x'", "write it as name=model", ""),
        ("device = ", "is not TOML", "home ="),
        ("x = " + "[" * 5000, "is not TOML", ""),
    ],
)
def test_mistakes_name_the_source(place, text, said, hint):
    place.project.write_text(text)
    with pytest.raises(InputError) as caught:
        place.resolve()
    assert str(place.project) in caught.value.message
    assert said in caught.value.message
    assert hint in caught.value.hint


def test_mistakes_in_variables_and_flags(place, monkeypatch):
    with pytest.raises(InputError, match=r"^flag: device is 'gpu'"):
        place.resolve(device="gpu")
    monkeypatch.setenv("MECH_THREADS", "many")
    with pytest.raises(InputError, match=r"^environment: threads is 'many'"):
        place.resolve()
    monkeypatch.delenv("MECH_THREADS")
    monkeypatch.setenv("MECH_SOMETHING_ELSE_ENTIRELY", "1")
    assert place.resolve()[0] == Settings()
    monkeypatch.setenv("MECH_HOEM", "x")
    with pytest.raises(InputError, match=r"MECH_HOEM is no setting\. Did you mean MECH_HOME"):
        place.resolve()
    monkeypatch.delenv("MECH_HOEM")
    place.dotenv.write_bytes(b"MECH_DEVICE=\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        place.resolve()


def test_the_example_names_every_setting_and_no_other(place):
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    named = re.findall(r"^# (MECH_[A-Z_]+)=", text, flags=re.MULTILINE)
    assert sorted(named) == sorted(f"MECH_{name.upper()}" for name in Settings.model_fields)
    # As it stands it sets nothing; uncommented, every value is one that is accepted.
    place.dotenv.write_text(text)
    assert place.resolve()[0] == Settings()
    place.dotenv.write_text(re.sub(r"^# (MECH_)", r"\1", text, flags=re.MULTILINE))
    found, provenance = place.resolve()
    assert set(provenance.values()) == {f"file {place.dotenv}"}
    assert found.threads == 4
    assert found.memory_budget == 2 * 2**30
    assert found.aliases == {"small": "EleutherAI/pythia-70m", "medium": "gpt2-medium"}
    assert found.home == place.work / "artifacts"
    for name in ("device", "dtype", "offline", "format"):
        assert getattr(found, name) == Settings.model_fields[name].default
    # The comment above each says what the setting's own description says.
    for name, info in Settings.model_fields.items():
        above = text[: text.index(f"# MECH_{name.upper()}=")].splitlines()[-1]
        first = (info.description or "").split(":")[0].split(",")[0].split(";")[0].rstrip(".")
        assert above.startswith(f"# {first}"), name


def test_the_users_file_is_in_the_users_own_folder():
    assert user_file().name == "config.toml"
    assert user_file().parent.name == "mech"
    assert user_file().is_absolute()
