"""Commands about specs, data and settings: experiments, families, validate, schema, dataset, config."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from mech_interp.cli import library


@pytest.fixture
def shipped(monkeypatch, tmp_path):
    """An empty folder in place of the specs that come with mech."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(library, "shipped_folder", lambda: folder)
    return folder


def test_specs_are_listed_with_family_model_and_number_of_runs(toy, cli, shipped):
    lines = {line.split()[0]: line.split() for line in cli("experiments").out.splitlines()[2:]}
    assert lines["toy-run"][1] == "toy"
    assert lines["toy-sweep"][-2:] == ["4", "yours"]
    assert cli("experiments", "--format", "quiet").out.split() == [
        "toy-run",
        "toy-void",
        "toy-broken",
        "toy-sweep",
    ]
    assert cli("experiments", "--family", "logit_lens", "--format", "json").json["specs"] == []


def test_where_there_are_no_specs_it_says_how_to_write_one(cli, shipped):
    done = cli("experiments")
    assert (done.code, done.out.startswith("No specs here.")) == (0, True)
    assert cli("validate").code == 2


def test_a_folder_of_specs_that_does_not_exist(cli):
    assert "There is no folder 'nowhere'" in cli("experiments", "nowhere").err


def test_families_and_their_parameters(cli):
    from mech_interp.experiments import registry

    done = cli("families", "--format", "json")
    names = [family["name"] for family in done.json["families"]]
    assert {"logit_lens", "circuit_patching"} <= set(names)
    assert set(registry.built_in()) == set(names)
    assert all(family["summary"] for family in done.json["families"])
    one = cli("families", "logit_lens")
    assert re.search(r"^top_k +whole number +default 5$", one.out, re.M)
    found = cli("families", "logit_lens", "--format", "json").json
    fields = set(registry.get("logit_lens").Params.model_fields)
    assert {parameter["name"] for parameter in found["parameters"]} == fields
    assert "Did you mean logit_lens?" in cli("families", "logit_lense").err


def test_validate_finds_every_wrong_spec_and_exits_with_8(toy, cli):
    (toy / "experiments" / "bad.yaml").write_text(
        "name: one\nfamily: toy\nmodel: m\nparameters: {unit: 3}\n---\n"
        "name: two\nfamily: tyo\nmodel: m\n---\nname: three\nfamily: toy\nmodel: m\n"
    )
    (toy / "experiments" / "worse.yaml").write_text("name: [\n")
    done = cli("validate", "experiments", "--format", "json")
    assert done.code == 8
    verdicts = {one["name"]: one["problem"] for one in done.json["specs"]}
    assert verdicts["toy-run"] is None
    assert verdicts["three"] is None
    assert "bad.yaml:4" in verdicts["one"]
    assert "'unit'" in verdicts["one"]
    assert "bad.yaml:7" in verdicts["two"]
    assert "worse.yaml" in verdicts[None]
    human = cli("validate", "experiments")
    assert human.code == 8
    assert "3 of 8 wrong." in human.out
    assert "Did you mean units?" in human.out


def test_validate_one_file_and_say_all_is_right(toy, cli):
    done = cli("validate", "experiments/toy.yaml")
    assert done.code == 0
    assert "4 specs, all right." in done.out
    assert "toy-sweep (toy on " in done.out
    assert "There is no file or folder nothing.yaml" in cli("validate", "nothing.yaml").err


def test_validate_every_point_of_a_matrix(toy, cli):
    (toy / "m.yaml").write_text("name: m\nfamily: toy\nmodel: m\nmatrix: {parameters.units: [1, 2, 0]}\n")
    done = cli("validate", "m.yaml")
    assert done.code == 8
    assert "units" in done.out


def test_validate_with_models_asks_the_model_too(toy, cli):
    text = (toy / "experiments" / "toy.yaml").read_text().split("---")[0]
    (toy / "deep.yaml").write_text(text.replace("{units: 3}", "{layer: 5}"))
    assert cli("validate", "deep.yaml").code == 0
    done = cli("validate", "deep.yaml", "--with-models")
    assert done.code == 8
    assert "has 2 layers" in " ".join(done.out.split())


def test_the_schema_of_specs_and_of_one_family(cli):
    whole = cli("schema").json
    assert whole["title"] == "mech spec"
    assert "logit_lens" in whole["properties"]["family"]["enum"]
    assert "top_k" in cli("schema", "--family", "logit_lens").json["properties"]
    assert cli("schema", "-o", "s.json", "--format", "quiet").out == "s.json\n"
    assert json.loads(Path("s.json").read_text()) == whole


def test_config_names_the_source_of_every_value(cli, monkeypatch):
    Path("mech.toml").write_text("home = 'runs'\n[aliases]\nsmall = 'org/model'\n")
    monkeypatch.setenv("MECH_THREADS", "3")
    found = cli("config", "--format", "json").json
    assert found["settings"]["threads"] == 3
    assert found["sources"]["threads"] == "environment MECH_THREADS"
    assert found["sources"]["dtype"] == "default"
    assert found["sources"]["home"].startswith("project file")
    assert cli("config", "--home", "x", "--format", "json").json["sources"]["home"] == "flag"
    human = cli("config").out
    assert re.search(r"threads +3 +environment MECH_THREADS", human)
    assert re.search(r"aliases\.small +org/model +project file", human)
    assert "threads=3" in cli("config", "--format", "quiet").out.split()


def test_a_wrong_setting_is_named_by_every_command(cli, monkeypatch):
    monkeypatch.setenv("MECH_THREADS", "many")
    for command in ("config", "runs", "models"):
        done = cli(command)
        assert done.code == 2
        assert "environment: " in done.err
        assert "threads" in done.err


def test_the_format_may_be_a_setting(cli, monkeypatch):
    monkeypatch.setenv("MECH_FORMAT", "json")
    assert cli("runs").json == {"runs": []}
    assert "No runs yet" in cli("runs", "--format", "human").out


def test_models_lists_the_aliases(cli):
    Path("mech.toml").write_text("[aliases]\nsmall = 'org/model'\n")
    assert "small = org/model" in cli("models").out
    assert cli("models", "--format", "json").json["aliases"] == {"small": "org/model"}


PAIRS = [
    {"id": "a", "clean_prompt": "The capital of France is", "correct_token": " Paris"},
    {"id": "b", "clean_prompt": "The capital of Japan is", "correct_token": " Tokyo"},
]


@pytest.fixture
def pairs(cli):
    path = Path("pairs.jsonl")
    path.write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    return path


def test_a_dataset_is_described(cli, pairs):
    done = cli("dataset", "inspect", pairs, "--format", "json")
    assert done.code == 0
    found = done.json
    assert found["sha256"] == hashlib.sha256(pairs.read_bytes()).hexdigest()
    assert (found["rows"], found["pairs"], found["groups"]) == (2, 2, 2)
    assert {field["name"]: field["rows"] for field in found["fields"]} == {
        "id": 2,
        "clean_prompt": 2,
        "correct_token": 2,
    }
    assert found["sha256"] in cli("dataset", "inspect", pairs).out


def test_lines_that_cannot_be_read_are_named(cli, pairs):
    pairs.write_text(pairs.read_text() + "{not json\n[1]\n")
    done = cli("dataset", "inspect", pairs)
    assert done.code == 8
    assert "line 3: not JSON" in done.out
    assert "line 4: no object" in done.out


def test_rows_that_a_spec_cannot_use_are_named(cli, pairs):
    pairs.write_text(pairs.read_text() + json.dumps({"clean_prompt": "x", "colour": 1}) + "\n")
    done = cli("dataset", "inspect", pairs)
    assert done.code == 8
    assert "Line 3" in done.out
    assert "colour" in done.out


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"\n\n"])
def test_files_that_are_no_dataset(cli, content):
    Path("x.jsonl").write_bytes(content)
    done = cli("dataset", "inspect", "x.jsonl")
    assert done.code in (2, 8)
    assert cli("dataset", "inspect", "missing.jsonl").code == 2
    assert cli("dataset", "inspect", ".").code == 2


def test_answers_are_checked_against_a_tokenizer(cli, pairs):
    assert cli("dataset", "validate-tokens", pairs, "--model", "tinyworld").code == 0
    pairs.write_text(
        pairs.read_text() + json.dumps({"clean_prompt": "A", "correct_token": " Antananarivoistan"}) + "\n"
    )
    done = cli("dataset", "validate-tokens", pairs, "--model", "tinyworld")
    assert done.code == 8
    assert "row 2" in done.out
    assert "2 of 3 rows can be used with tinyworld." in done.out
    (problem,) = cli("dataset", "validate-tokens", pairs, "-m", "tinyworld", "--format", "json").json[
        "problems"
    ]
    assert "tokens here" in problem["problem"]


def test_help_is_the_help_of_the_command(cli):
    assert cli("help", "runs").out == cli("runs", "--help").out
    assert cli("help", "store", "rebuild").out == cli("store", "rebuild", "--help").out
    assert cli("help").out == cli("--help").out
    assert "Did you mean runs" in cli("help", "rnus").err
    assert "runs" in cli("help", "--format", "json").json["commands"]
