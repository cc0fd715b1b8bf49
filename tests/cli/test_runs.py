"""Commands that look at stored runs: lists, queries, inspection, verification, export, archive, index."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from pathlib import Path

import pytest


def ids(done) -> list[str]:
    return done.out.split()


def test_lists_are_empty_before_the_first_run(cli):
    for command in ("runs", "summarize-runs"):
        done = cli(command)
        assert done.code == 0
        assert "No runs yet." in done.out
    assert cli("runs", "--format", "json").json == {"runs": []}
    assert cli("query-runs", "status = complete").out.startswith("No run matches.")
    assert not Path("artifacts").exists()


@pytest.mark.parametrize("command", ["inspect-run", "verify", "replay", "export-run", "archive-runs"])
def test_a_run_cannot_be_looked_up_before_the_first(cli, command):
    done = cli(command, "1")
    assert (done.code, done.out) == (7, "")
    assert "There are no runs in" in done.err
    assert not Path("artifacts").exists()


def test_runs_are_listed_newest_first_up_to_a_limit(stored, cli):
    assert ids(cli("runs", "--format", "quiet")) == stored[::-1]
    assert ids(cli("runs", "--limit", "1", "--format", "quiet")) == stored[-1:]
    table = cli("runs", "-n", "2")
    assert "The latest 2; more with --limit" in table.err
    assert stored[0] not in table.out
    assert re.search(rf"{stored[1]} .*toy-run #paper .*complete .*(just now|min ago)", table.out)
    assert [run["status"] for run in cli("runs", "--format", "json").json["runs"]] == [
        "void",
        "complete",
        "complete",
    ]


@pytest.mark.parametrize("width", ["60", "80", "120"])
def test_ids_are_whole_at_every_width(stored, cli, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    out = cli("runs").out
    assert all(run in out for run in stored)
    assert max(map(len, out.splitlines())) <= int(width)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["family = toy and status = complete"], [1, 0]),
        (["family", "=", "toy", "and", "seed", "=", "1"], [1]),
        (["--status", "void"], [2]),
        (["--tag", "paper", "--family", "toy"], [1, 0]),
        (["--metric", "count", "--metric-min", "3"], [1, 0]),
        (["--metric", "nothing"], []),
        (["--layer", "0"], [2, 1, 0]),
        (["seed = 0 or seed = 1", "--status", "complete"], [1, 0]),
        (["--model", "tiny"], []),
        (["model ~ tiny", "--limit", "1"], [2]),
        (["--backend", "huggingface", "name = toy-void"], [2]),
    ],
)
def test_queries_by_expression_and_by_options(stored, cli, arguments, expected):
    done = cli("query-runs", *arguments, "--format", "quiet")
    assert done.code == 0, done.err
    assert ids(done) == [stored[index] for index in expected]


def test_a_value_with_quotes_is_taken_as_it_stands(stored, cli):
    assert cli("query-runs", "--tag", 'a "b\\', "--format", "quiet").code == 0
    cli("run", "toy-run", "--tag", 'a"b')
    assert ids(cli("query-runs", "--tag", 'a"b', "--format", "quiet")) == stored[:1]


def test_a_query_shows_the_metrics_it_speaks_of(stored, cli):
    head = cli("query-runs", "metric.count > 0 and has metric.mean").out.splitlines()[0]
    assert "count" in head
    assert "mean" in head
    assert "mean" not in cli("query-runs", "metric.count > 0").out.splitlines()[0]


def test_a_query_that_finds_nothing_says_which_metric_is_unknown(stored, cli):
    assert "No run has metric.maen. Did you mean mean?" in cli("query-runs", "metric.maen > 0").out


def test_a_query_as_csv_and_json(stored, cli):
    rows = list(csv.DictReader(io.StringIO(cli("query-runs", "seed = 1", "--output-format", "csv").out)))
    assert [(row["id"], row["status"], float(row["count"])) for row in rows] == [(stored[1], "complete", 3)]
    found = cli("query-runs", "seed = 1", "--output-format", "json").json
    assert (found["query"], [run["id"] for run in found["runs"]]) == ("seed = 1", [stored[1]])


@pytest.mark.parametrize("home", [True, False])
def test_a_mistake_in_a_query_names_its_column(cli, request, home):
    if home:
        request.getfixturevalue("stored")
    done = cli("query-runs", "famly = toy")
    assert done.code == 2
    assert "Column 1 of the query: 'famly' is no field." in done.err
    assert "Did you mean family?" in done.err


def test_metric_min_needs_a_metric(cli):
    assert "--metric-min needs --metric" in cli("query-runs", "--metric-min", "1").err


def test_inspection_by_number_suffix_id_and_folder(stored, cli):
    names = ["1", stored[0], stored[0].rpartition("-")[2], f"artifacts/{stored[0]}", "run-000001"]
    shown = {cli("inspect-run", name, "--format", "json").json["run"] for name in names}
    assert shown == {stored[0]}


def test_inspection_shows_numbers_controls_and_where_the_rest_is(stored, cli):
    out = cli("inspect-run", "1").out
    for said in ("toy-run  complete", "What is the mean?", "• The mean was found.", "identity", "passed"):
        assert said in out
    assert re.search(r"count +3 +– +3 +units", out)
    assert "tables   units" in out


def test_inspection_of_a_table(stored, cli):
    shown = cli("inspect-run", "1", "--table", "units", "--top-n", "2")
    assert "group-0" in shown.out
    assert "group-2" not in shown.out
    assert "2 of 3 rows" in shown.err
    assert len(cli("inspect-run", "1", "-t", "units", "--format", "json").json["rows"]) == 3
    assert "no table 'unit'" in cli("inspect-run", "1", "-t", "unit").err
    assert "Did you mean units?" in cli("inspect-run", "1", "-t", "unit").err


def test_a_value_and_its_interval_are_one_column():
    from mech_interp.cli.inspect import table_columns

    rows = [
        {"layer": 0, "rate": 0.5, "rate_low": 0.25, "rate_high": 0.75, "text_low": "x"},
        {"layer": 1, "rate": None, "rate_low": None, "rate_high": None},
        {"layer": 2},
    ]
    columns = {column.head: list(cells) for column, cells in table_columns(rows, 2)}
    assert columns == {"layer": [0, 1], "rate": ["0.5 [0.25, 0.75]", "–"], "text_low": ["x", None]}


def test_inspection_of_a_view(toy, cli):
    cli("run", "toy-run", "--set", "parameters.draw=true")
    assert "Means" in cli("inspect-run", "1", "--view", "bars").out
    assert cli("inspect-run", "1", "--view", "bars", "--format", "json").json["data"]["title"] == "Means"


def test_inspection_of_an_interrupted_run(toy, cli):
    from mech_interp.storage.folder import RunFolder

    cli("init-store")
    spec = "name: lens\nfamily: logit_lens\nmodel: gpt2\n"
    run = RunFolder.create(Path("artifacts").absolute(), "key", spec, {})
    run.save_unit("pair 0", {"effect": 1})
    run.release()
    done = cli("inspect-run", "1")
    assert "lens  interrupted" in done.out
    assert "with 1 piece of work stored" in done.out
    assert cli("inspect-run", "1", "--format", "json").json["units"] == ["pair 0"]


def test_an_unknown_run_lists_the_latest(stored, cli):
    done = cli("inspect-run", "99")
    assert done.code == 7
    assert "There is no run '99'" in done.err
    assert stored[-1] in done.err


def test_runs_are_counted_by_kind(stored, cli):
    assert "3 runs (2 complete, 1 void)" in cli("summarize-runs").out
    (group,) = cli("summarize-runs", "--format", "json").json["groups"]
    assert (group["family"], group["runs"], group["statuses"]) == ("toy", 3, {"complete": 2, "void": 1})


def test_an_intact_run_is_verified(stored, cli):
    done = cli("verify", *stored)
    assert done.code == 0
    assert done.out.count("all as they were sealed") == 3
    assert cli("verify", "--all", "--format", "json").json["ok"]


def test_one_changed_byte_is_found_and_named(stored, cli):
    for name in ("report.md", "tables/units.csv", "result.json"):
        file = Path("artifacts", stored[0], name)
        before = file.read_bytes()
        file.write_bytes(before[:-2] + bytes([before[-2] ^ 1]) + before[-1:])
        done = cli("verify", "1")
        assert done.code == 8
        assert f"✗ {stored[0]}" in done.out
        assert name in done.out
        assert cli("verify", "1", "2", "--format", "quiet").out == f"{stored[0]}/{name}\n"
        file.write_bytes(before)
    assert cli("verify", "1").code == 0


def test_verify_needs_runs_or_all(stored, cli):
    assert cli("verify").code == 2
    assert cli("verify", "1", "--all").code == 2


def test_export_by_suffix(stored, cli):
    assert cli("export-run", "1").code == 0
    with zipfile.ZipFile(f"{stored[0]}.zip") as archive:
        assert f"{stored[0]}/receipt.json" in archive.namelist()
    cli("export-run", "1", "-o", "one.json")
    assert json.loads(Path("one.json").read_text())["metrics"]["count"]["value"] == 3
    cli("export-run", "1", "2", "-o", "all.csv")
    rows = list(csv.DictReader(io.StringIO(Path("all.csv").read_text())))
    assert {row["run"] for row in rows} == set(stored[:2])
    assert cli("export-run", "1", "-o", "x.json", "--format", "quiet").out == "x.json\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["1", "-o", "run.tar"], "no zip, JSON or CSV"),
        (["1", "-o", "run.zp"], "Did you mean .zip"),
        (["1", "2", "-o", "x.zip"], "holds one run, not 2"),
        (["1", "-o", "experiments/toy.yaml/x.csv"], "x.csv"),
    ],
)
def test_an_export_that_cannot_be_made(stored, cli, arguments, said):
    done = cli("export-run", *arguments)
    assert done.code in (2, 7)
    assert said in done.err


def test_archived_runs_are_hidden_and_come_back(stored, cli):
    assert "Would be archived: 1 run" in cli("archive-runs", "1", "--dry-run").out
    assert len(ids(cli("runs", "--format", "quiet"))) == 3
    assert cli("archive-runs", "1").code == 0
    assert ids(cli("runs", "--format", "quiet")) == [stored[2], stored[1]]
    assert ids(cli("runs", "-a", "--format", "quiet")) == stored[::-1]
    assert "(archived)" in cli("runs", "-a").out
    assert cli("verify", "1").code == 0
    cli("archive-runs", "1", "--restore")
    assert len(ids(cli("runs", "--format", "quiet"))) == 3


def test_runs_are_archived_by_condition(stored, cli):
    assert ids(cli("archive-runs", "--before-run-id", "3", "--format", "quiet")) == [stored[1], stored[0]]
    assert cli("archive-runs", "--where", "status = complete").code == 2  # none is left
    assert ids(cli("archive-runs", "--where", "seed = 1", "--restore", "--format", "quiet")) == [stored[1]]
    assert cli("archive-runs").code == 2


def test_a_report_of_one_run_of_several_and_of_a_sweep(stored, cli):
    assert cli("report", "1").out == Path("artifacts", stored[0], "report.md").read_text()
    several = cli("report", "1", "2", "--format", "json").json
    assert several["runs"] == stored[:2]
    assert several["markdown"].startswith("# Runs")
    assert cli("report", "--where", "status = void", "--format", "quiet").out.split() == [stored[2]]
    cli("sweep", "toy-sweep", "-x")
    assert cli("report", "toy-sweep").out.startswith("# toy-sweep")
    cli("report", "-o", "all.md")
    assert "7 runs" in Path("all.md").read_text()
    assert cli("report", "nothing").code == 7


def test_the_store_is_made_and_rebuilt(stored, cli):
    assert "is ready, with 3 runs" in cli("init-store").out
    for file in Path("artifacts").glob("*.sqlite*"):
        file.unlink()
    for file in Path("artifacts").glob("*.db*"):
        file.unlink()
    assert "3 runs indexed." in cli("store", "rebuild").out
    assert ids(cli("runs", "--format", "quiet")) == stored[::-1]


def test_a_rebuild_names_a_run_that_was_rewritten(stored, cli):
    file = Path("artifacts", stored[0], "result.json")
    file.write_text(file.read_text().replace("complete", "void", 1))
    done = cli("store", "rebuild")
    assert done.code == 8
    assert stored[0] in done.out


def test_a_store_can_be_made_elsewhere(cli):
    assert "was made, with 0 runs" in cli("init-store", "--home", "here").out
    assert Path("here").is_dir()


def test_a_home_that_is_a_file(cli):
    Path("file").write_text("")
    for command in (["runs"], ["inspect-run", "1"], ["init-store"], ["store", "rebuild"]):
        done = cli(*command, "--home", "file")
        assert done.code == 7
        assert "file" in done.err


def test_a_verb_of_a_noun_that_does_not_exist(cli):
    done = cli("store", "rebild")
    assert done.code == 2
    assert "mech store has no command 'rebild'." in done.err
    assert "Did you mean rebuild?" in done.err
    assert "rebuild" in cli("store").out
