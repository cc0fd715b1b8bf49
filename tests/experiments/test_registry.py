"""Families are found in this package and in installed ones; a broken one stands alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from mech_interp.config.plugins import PluginError, plugins
from mech_interp.errors import InputError
from mech_interp.experiments import families, registry
from mech_interp.experiments.errors import FamilyError
from mech_interp.experiments.family import Family, FamilyParams, check_family
from mech_interp.experiments.result import Result

GOOD = """
from pydantic import Field

from mech_interp.experiments import Family, FamilyParams, Metric, Result


class Params(FamilyParams):
    times: int = Field(default=2, ge=1, description="How often to count.")


class Counting(Family[Params]):
    name = "{name}"
    version = 3
    summary = "Counts."
    Params = Params

    def run(self, context):
        found = [context.unit(str(i), lambda: {{"one": 1}})["one"] for i in range(context.params.times)]
        metrics = {{"count": Metric(value=sum(found), n=1)}}
        return Result(question="How many?", method="Count.", metrics=metrics)
"""


def wheel(folder: Path, package: str, code: str, offers: dict[str, str], version: str = "1.2") -> Path:
    """A real wheel of one module, with entry points."""
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    points = "".join(f"{name} = {target}\n" for name, target in offers.items())
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", code)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", f"[mech_interp.families]\n{points}")
        archive.writestr(f"{info}/RECORD", "")
    return path


def install(site: Path, wheel: Path) -> None:
    """What an installer does with a pure wheel: unpack it."""
    zipfile.ZipFile(wheel).extractall(site)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder of installed packages at the end of the import path; `add` installs one."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)

    def add(package: str, code: str, **offers: str) -> None:
        module = package.replace("-", "_")
        targets = {name: f"{module}:{attribute}" for name, attribute in offers.items()}
        install(folder, wheel(tmp_path, package, code, targets))

    yield add
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]


@pytest.fixture
def alone(monkeypatch):
    """No families but those that a test adds."""
    monkeypatch.setattr(families, "__path__", [])


def test_a_package_installed_by_pip_adds_a_family(tmp_path):
    """The whole way: a wheel, pip, a fresh process; gone again when it is not on the path."""
    built = wheel(
        tmp_path, "counting-family", GOOD.format(name="counting"), {"counting": "counting_family:Counting"}
    )
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", site, built],
        check=True,
        capture_output=True,
    )
    code = (
        "import json\n"
        "from mech_interp.config import Spec, resolve_parameters\n"
        "from mech_interp.experiments import Context, get, names\n"
        "found = {'names': names()}\n"
        "if 'counting' in found['names']:\n"
        "    family = get('counting')\n"
        "    data = {'name': 'a', 'family': 'counting', 'model': 'm', 'parameters': {'times': 5}}\n"
        "    spec = Spec.from_dict(data)\n"
        "    result = family.run(Context(resolve_parameters(spec, family.Params)))\n"
        "    found |= {'version': family.version, 'count': result.metrics['count'].value}\n"
        "print(json.dumps(found))"
    )

    def ask(*path: object) -> dict:
        paths = [*map(str, path), os.environ.get("PYTHONPATH", ""), *sys.path]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
        )
        return json.loads(done.stdout)

    with_it, without = ask(site), ask()
    assert "counting" in with_it["names"]
    assert (with_it["version"], with_it["count"]) == (3, 5)
    assert "counting" not in without["names"]
    assert set(with_it["names"]) - {"counting"} == set(without["names"])


@pytest.mark.usefixtures("alone")
def test_names_import_nothing(site):
    site("exploding", "raise RuntimeError('imported')", exploding="Family")
    assert registry.names() == ["exploding"]
    assert "exploding" not in sys.modules


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise RuntimeError('no such\\nlibrary')", "cannot be imported: RuntimeError: no such."),
        ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3."),
        ("import not_there_at_all", "cannot be imported: ModuleNotFoundError"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("x = 1", "cannot be imported: AttributeError"),
        ("Bad = 3", "is not a Family"),
        (GOOD.format(name="other").replace("Counting", "Bad"), "calls itself 'other'"),
        (
            GOOD.format(name="bad").replace("Counting", "Bad").replace("version = 3", "version = 0"),
            "the version 0",
        ),
        (GOOD.format(name="bad").replace("Counting", "Bad").replace("def run", "def walk"), "cannot be made"),
    ],
)
def test_a_broken_package_is_named_and_breaks_nothing_else(site, code, said):
    site("good-one", GOOD.format(name="good"), good="Counting")
    site("bad-one", code, bad="Bad")
    assert registry.names() == ["bad", "good"]
    assert registry.get("good").version == 3
    with pytest.raises(PluginError) as caught:
        registry.get("bad")
    assert "'bad' of the package bad-one 1.2 (bad_one:Bad)" in caught.value.message
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert "pip uninstall bad-one" in caught.value.hint
    bad, good = registry.listing()
    assert (bad.name, bad.family) == ("bad", None)
    assert said in bad.problem
    assert (good.package, good.problem) == ("good-one 1.2", "")
    assert list(registry.parameter_models()) == ["good"]


@pytest.mark.usefixtures("alone")
def test_two_packages_with_one_name_are_told_apart(site):
    site("one-pkg", GOOD.format(name="twin"), twin="Counting")
    site("two-pkg", GOOD.format(name="twin"), twin="Counting")
    with pytest.raises(InputError, match="'twin' is offered by one-pkg and two-pkg"):
        registry.get("twin")
    assert [one.family for one in registry.listing()] == [None, None]


def test_our_own_families_cannot_be_replaced(site, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    (own / "lens.py").write_text(GOOD.format(name="lens") + "\n\nFAMILY = Counting()\n")
    (own / "wrong.py").write_text(GOOD.format(name="right") + "\n\nFAMILY = Counting()\n")
    (own / "_helper.py").write_text("raise RuntimeError\n")
    monkeypatch.setattr(families, "__path__", [str(own)])
    site("rival", GOOD.format(name="lens").replace("Counts", "Other"), lens="Counting")
    assert registry.names() == ["lens", "wrong"]
    assert registry.get("lens").summary == "Counts."
    problems = {(one.name, one.package): one.problem for one in registry.listing()}
    assert problems["lens", "mech_interp"] == ""
    assert "a name that mech itself uses" in problems["lens", "rival"]
    assert "holds the family right" in problems["wrong", "mech_interp"]
    for name in ("lens", "wrong"):
        sys.modules.pop(f"{families.__name__}.{name}", None)
        monkeypatch.delattr(families, name, raising=False)


def test_every_family_of_ours_keeps_the_contract():
    for one in registry.listing():
        if one.package == registry.OURS:
            assert one.problem == "", one
            assert one.family is not None
            assert one.family.name == one.name


@pytest.mark.usefixtures("alone")
def test_unknown_names_and_the_nearest(site):
    site("good-one", GOOD.format(name="logit_lens"), logit_lens="Counting")
    with pytest.raises(InputError) as caught:
        registry.get("logitlens")
    assert caught.value.hint == "Did you mean logit_lens?"


def test_backends_are_found_the_same_way(tmp_path, monkeypatch):
    built = wheel(
        tmp_path, "my-backend", "def open_model(): return 'opened'", {"mine": "my_backend:open_model"}
    )
    site = tmp_path / "site"
    install(site, built)
    points = site / "my_backend-1.2.dist-info" / "entry_points.txt"
    points.write_text(points.read_text().replace("families", "backends"))
    monkeypatch.syspath_prepend(str(site))
    (found,) = [plugin for plugin in plugins("mech_interp.backends") if plugin.name == "mine"]
    assert (found.package, found.version) == ("my-backend", "1.2")
    assert found.load()() == "opened"
    sys.modules.pop("my_backend", None)


class Described(FamilyParams):
    a: int = Field(default=1, description="A number.")


class Undescribed(FamilyParams):
    a: int = 1


class Holder(FamilyParams):
    inner: list[Undescribed] | None = Field(default=None, description="Inner ones.")


class Loose(BaseModel):
    model_config = ConfigDict(extra="allow")


class Odd(FamilyParams):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    a: types.ModuleType | None = Field(default=None, description="Not data.")


def family(**changes: object) -> type:
    def run(self, context):
        return Result(question="?", method="none")

    parts = {"name": "fine", "version": 1, "summary": "Fine.", "Params": Described, "run": run}
    return type("Made", (Family,), {**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Not fine"}, "the name 'Not fine'"),
        ({"name": None}, "the name None"),
        ({"version": "1"}, "the version '1'"),
        ({"version": True}, "the version True"),
        ({"summary": " "}, "no summary"),
        ({"Params": dict}, "no Params"),
        ({"Params": Loose}, "Loose, which does not forbid unknown keys"),
        ({"Params": Undescribed}, "Undescribed.a, which has no description"),
        ({"Params": Holder}, "Undescribed.a, which has no description"),
        ({"Params": Odd}, "without a JSON Schema"),
    ],
)
def test_the_contract(changes, said):
    assert check_family(family()).name == "fine"
    assert check_family(family()()).name == "fine"
    with pytest.raises(FamilyError) as caught:
        check_family(family(**changes))
    assert said in caught.value.message
