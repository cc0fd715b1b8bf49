"""The spec's fields, its errors, round trips, parameters of families."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from mech_interp.config import Spec, read_specs, resolve_parameters, spec_files
from mech_interp.config.files import parse_specs
from mech_interp.errors import InputError

HEAD = "name: a\nfamily: logit_lens\nmodel: tinyworld\n"


def refused(text: str) -> InputError:
    with pytest.raises(InputError) as caught:
        parse_specs(text, "f.yaml")
    return caught.value


def test_defaults():
    (spec,) = parse_specs(HEAD)
    assert spec.backend == "huggingface"
    assert (spec.device, spec.dtype, spec.attention, spec.seed) == ("auto", "auto", "sdpa", 0)
    assert spec.artifact_policy.write_report
    assert not spec.artifact_policy.retain_activation_tensors
    assert spec.matrix is None
    assert spec.parameters == {}


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("famly: x", "f.yaml:4: There is no key 'famly'.", "Did you mean family?"),
        ("kind: z", "f.yaml:4: There is no key 'kind'.", ""),
        ("seed: '3'", "f.yaml:4: seed is '3', but must be an integer.", ""),
        ("seed: 3.5", "f.yaml:4: seed is 3.5, but must be an integer.", ""),
        ("seed: true", "f.yaml:4: seed is true, but must be an integer.", ""),
        ("seed: -1", "f.yaml:4: seed is -1, but must be at least 0.", ""),
        ("seed: 4294967296", "but must be less than 4294967296.", ""),
        (
            "dtype: float31",
            "f.yaml:4: dtype is 'float31', but must be one of 'auto'",
            "Did you mean float32?",
        ),
        ("device: gpu", "f.yaml:4: device is 'gpu'", "cuda"),
        ("attention: flash", "but must be one of 'sdpa' or 'eager'.", ""),
        ("hook_site: resid_pr.1", "names no site", "resid_pre"),
        ("tags: paper", "f.yaml:4: tags is 'paper', but must be a list.", ""),
        ("tags: [a b]", "f.yaml:4: tags[0] is 'a b'", ""),
        ("prompts: []", "at least 1 long", ""),
        ("prompts: [a, 3]", "f.yaml:4: prompts[1] is 3, but must be text or a mapping.", ""),
        (
            "artifact_policy: {write_reprt: true}",
            "no key 'write_reprt' under artifact_policy.",
            "write_report",
        ),
        ("artifact_policy: {max_artifact_bytes: 3 apples}", "a size such as 500MB", ""),
        ("hypothesis: {claim: c}", "f.yaml:4: hypothesis.metric is missing.", "2 more problems"),
        ("hypothesis: {claim: c, metric: m, direction: up, threshold: 1}", "'above' or 'below'", ""),
        ("parameters: [a]", "f.yaml:4: parameters is a list of 1, but must be a mapping.", ""),
        (
            "parameters: {model: gpt2}",
            "model is 'tinyworld' at the top and 'gpt2' under parameters.",
            "keep one",
        ),
        ("name: b", "f.yaml:4: the key 'name' was given before, in line 1.", ""),
        ("matrix: {}", "f.yaml:4: matrix: it has no axes.", ""),
        ("matrix: {gird: {seed: [1]}}", "There is no key 'gird' under matrix.", "grid"),
        ("matrix: {grid: {kind: [1]}}", "an axis is parameters.kind if the family takes that", ""),
        ("matrix: {grid: {seed: []}}", "matrix.grid.seed is a list of 0", ""),
        ("matrix: {seeds: 0}", "matrix.seeds is 0, but must be at least 1", ""),
        ("matrix: {zip: {seed: [1], model: [a, b]}}", "the axes under zip differ in length", ""),
        ("matrix: {seeds: 2, seed: [1]}", "the axis seed is given twice", ""),
        ("matrix: {model: [a], parameters.model: [b]}", "the axis model is given twice", ""),
        ("matrix: {seed: [1, 1]}", "twice", "seeds"),
        ("matrix: {seed: [1, -2]}", "f.yaml:4: seed is -2", "This is the point"),
        ("matrix: {grid: {name: [a]}}", "'name' is no axis", ""),
    ],
)
def test_mistakes_are_named(line, message, hint):
    error = refused(HEAD + line)
    assert message in error.message
    assert hint in error.hint
    assert "\n" not in str(error)


@pytest.mark.parametrize("text", ["", "# nothing", "---\n---\n"])
def test_a_file_without_specs(text):
    assert refused(text).message == "f.yaml holds no spec."


def test_not_a_mapping_and_missing_keys():
    assert "not a list of 1" in refused("[a]").message
    assert "family is missing" in refused("name: a").message
    assert "model is missing" in refused("name: a\nfamily: b").message
    # A misspelt key explains what is missing, so it is what is said.
    assert "There is no key 'famly'" in refused("name: a\nmodel: m\nfamly: b").message
    assert "the name a is used twice" in refused(f"{HEAD}---\n{HEAD}").message


def test_shared_keys_may_stand_under_parameters():
    below = Spec.from_dict(
        {
            "name": "a",
            "family": "b",
            "parameters": {"model": "gpt2", "device": "cpu", "hook_site": "z.1", "prompts": ["x"], "k": 1},
        }
    )
    above = Spec.from_dict(
        {
            "name": "a",
            "family": "b",
            "model": "gpt2",
            "device": "cpu",
            "hook_site": "z.1",
            "prompts": ["x"],
            "parameters": {"k": 1},
        }
    )
    assert below == above
    both = Spec.from_dict(
        {"name": "a", "family": "b", "model": "gpt2", "parameters": {"model": "gpt2", "k": 1}}
    )
    assert both.model == "gpt2"
    assert both.parameters == {"k": 1}


def test_sizes_are_read():
    (spec,) = parse_specs(HEAD + "artifact_policy: {max_artifact_bytes: 2KiB}")
    assert spec.artifact_policy.max_artifact_bytes == 2048


def test_reading_leaves_the_data_alone():
    data = {"name": "a", "family": "b", "parameters": {"model": "gpt2", "x": [1]}}
    spec = Spec.from_dict(data)
    spec.parameters["x"].append(2)
    assert data == {"name": "a", "family": "b", "parameters": {"model": "gpt2", "x": [1]}}


WORD = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
NAME = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=3),
    max_leaves=6,
)
SPECS = st.fixed_dictionaries(
    {"name": NAME, "family": WORD, "model": NAME},
    optional={
        "description": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
        "seed": st.integers(0, 2**32 - 2),  # two seeds are asked for below
        "device": st.sampled_from(["auto", "cpu", "mps", "cuda", "cuda:3"]),
        "hook_site": st.sampled_from(["resid_pre.0", "blocks.3.attn.hook_z[2]", "logits"]),
        "prompts": st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"])), min_size=1, max_size=3),
        "tags": st.lists(WORD, max_size=3),
        "parameters": st.dictionaries(WORD.map(lambda word: f"p_{word}"), VALUE, max_size=4),
        "matrix": st.sampled_from([{"seeds": 2}, {"parameters.p": [1, 2]}, {"list": [{"seed": 4}]}]),
        "parent_run": NAME,
    },
)


@settings(deadline=None)
@given(SPECS)
def test_yaml_round_trip(data):
    spec = Spec.from_dict(data)
    assert parse_specs(spec.to_yaml()) == [spec]
    assert Spec.from_dict(spec.to_dict()) == spec


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    width: int = Field(1, ge=1, description="How many layers.")


class Params(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    hook_site: str = Field("blocks.0.hook_resid_pre", description="Where.")
    prompts: list[str] | None = Field(None, description="What.")
    layers: list[int] | Literal["all"] = Field("all", description="Which layers.")
    windows: list[Inner] = Field(default_factory=list, description="Windows.")


class Bare(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def test_parameters_are_resolved():
    (spec,) = parse_specs(HEAD + "hook_site: z.1\nparameters: {layers: [0, 2], windows: [{width: 3}]}")
    found = resolve_parameters(spec, Params)
    assert found == Params(hook_site="blocks.1.attn.hook_z", layers=[0, 2], windows=[Inner(width=3)])


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        (
            "parameters:\n  layer: 3",
            "f.yaml:5: There is no key 'layer' under parameters.",
            "Did you mean layers",
        ),
        ("parameters: {layers: some}", "parameters.layers is 'some', but must be a list or 'all'.", ""),
        (
            "parameters:\n  layers:\n    - 0\n    - x",
            "f.yaml:7: parameters.layers[1] is 'x', but must be an",
            "",
        ),
        (
            "parameters: {windows: [{width: 0}]}",
            "parameters.windows[0].width is 0, but must be at least 1.",
            "",
        ),
        ("parameters: {windows: [{widht: 2}]}", "no key 'widht' under parameters.windows[0].", "width"),
    ],
)
def test_parameter_mistakes_are_named(line, message, hint):
    (spec,) = parse_specs(HEAD + line, "f.yaml")
    with pytest.raises(InputError) as caught:
        resolve_parameters(spec, Params)
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_family_without_prompts_refuses_them():
    (spec,) = parse_specs(HEAD + "prompts: [x]", "f.yaml")
    with pytest.raises(InputError, match=r"f\.yaml:4: the family logit_lens takes no prompts"):
        resolve_parameters(spec, Bare)


def test_files_and_folders(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.yaml", "a.yml", "sub/c.json", "no.txt"):
        (tmp_path / name).write_text('{"name": "x", "family": "f", "model": "m"}')
    assert [path.name for path in spec_files(tmp_path)] == ["a.yml", "b.yaml", "c.json"]
    assert read_specs(tmp_path / "sub" / "c.json")[0].name == "x"
    assert spec_files(tmp_path / "no.txt") == [tmp_path / "no.txt"]
    for bad in (tmp_path / "none", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError):
            spec_files(bad)


def test_nothing_heavy_is_imported():
    code = (
        "import sys, mech_interp.config.files, mech_interp.config.schema, mech_interp.config.parameters\n"
        "print({'torch', 'numpy', 'transformers', 'pydantic_settings'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
