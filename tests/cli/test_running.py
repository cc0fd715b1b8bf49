"""`mech run`, `sweep`, `preflight`, `replay`, `compare-runs`: what they do, print and return."""

from __future__ import annotations

from pathlib import Path

import pytest

from mech_interp.cli import library


def test_a_run_is_made_once_and_shown_again(toy, cli):
    first, second = cli("run", "toy-run"), cli("run", "toy-run")
    assert (first.code, second.code) == (0, 0)
    (run,) = Path("artifacts").glob("run-000001-*")
    assert first.out.startswith(f"{run.name} complete: took")
    assert "was run before" in second.out
    for out in (first.out, second.out):
        assert "The mean was found." in out
        assert "mean" in out
        assert "points" in out
        assert f"report   {run}/report.md" in out
        assert "mech verify 1 " in out
    assert len(list(Path("artifacts").glob("run-*"))) == 1


def test_a_run_in_json_is_one_document_with_its_numbers(toy, cli):
    found = cli("run", "--name", "toy-run", "--tag", "a", "--tag", "b", "--format", "json").json
    assert (found["status"], found["how"], found["reused"]) == ("complete", "new", False)
    assert found["metrics"]["count"]["value"] == 3
    assert found["findings"][0]["sentence"] == "The mean was found."
    assert cli("query-runs", "tag = a and tag = b and tag = paper", "--format", "quiet").out.split() == [
        found["run_id"]
    ]


def test_force_runs_again(toy, cli):
    names = {cli("run", "toy-run", "--force", "--format", "quiet").out for _ in range(2)}
    assert len(names) == 2


def test_values_are_set_from_the_command_line(toy, cli):
    given = ["--set", "seed=7", "--set", "parameters.units=5"]
    found = cli("run", "toy-run", *given, "--format", "json").json
    shown = cli("inspect-run", "1", "--format", "json").json
    assert found["metrics"]["count"]["value"] == 5
    assert (shown["spec"]["seed"], shown["spec"]["parameters"]["units"]) == (7, 5)


def test_an_option_and_a_set_value_that_differ_are_refused(toy, cli):
    done = cli("run", "toy-run", "--device", "cpu", "--set", "device=cuda")
    assert done.code == 2
    assert "device is given as --device and as --set" in done.err


def test_a_void_run_says_so_and_exits_with_8(toy, cli):
    done = cli("run", "toy-void")
    assert done.code == 8
    assert "Void: a sanity control failed (identity)" in done.out


def test_a_failed_run_is_one_sentence_and_is_stored(toy, cli):
    done = cli("run", "toy-broken")
    assert (done.code, done.out) == (2, "")
    assert done.err == "Error: The toy broke.\nMend it.\n"
    assert cli("inspect-run", "1", "--format", "json").json["result"]["error"] == "The toy broke."
    shown = cli("inspect-run", "1")
    assert (shown.code, "The toy broke." in shown.out) == (0, True)


def test_without_a_name_run_lists_the_specs_and_exits_with_2(toy, cli):
    done = cli("run")
    assert done.code == 2
    for name in ("toy-run", "toy-void", "toy-sweep"):
        assert name in done.out
    assert "Name one: mech run SPEC" in done.err
    assert cli("run", "--format", "json").error["exit_code"] == 2


def test_a_misspelt_name_suggests_the_nearest(toy, cli):
    done = cli("run", "toy-rnu")
    assert done.code == 2
    assert "There is no spec 'toy-rnu'." in done.err
    assert "Did you mean toy-run" in done.err


def test_a_file_runs_by_path_and_a_name_chooses_in_it(toy, cli):
    file = toy / "experiments" / "toy.yaml"
    assert "Say which" in cli("run", "--spec", file).err
    assert "Did you mean toy-run" in cli("run", "--spec", file, "toy-ran").err
    assert cli("run", "--spec", file, "toy-run").code == 0
    assert f"Run it with: --spec {file}" in cli("run", file).err


def test_a_matrix_is_sent_to_sweep(toy, cli):
    done = cli("run", "toy-sweep")
    assert done.code == 2
    assert "toy-sweep has a matrix: 4 runs." in done.err
    assert "mech sweep toy-sweep --execute" in done.err


def test_a_dry_run_writes_nothing(toy, cli):
    done = cli("run", "toy-run", "--dry-run")
    assert done.code == 0
    assert "toy-run can run. It has not been run yet." in done.out
    assert not Path("artifacts").exists()
    cli("run", "toy-run")
    assert "It was run before, as run-000001-" in cli("run", "toy-run", "--dry-run").out


def test_home_moves_the_store(toy, cli):
    cli("run", "toy-run", "--home", "elsewhere")
    assert not Path("artifacts").exists()
    assert cli("runs", "--home", "elsewhere", "--format", "quiet").out.startswith("run-000001-")


def test_preflight_is_a_table_of_checks(toy, cli):
    done = cli("preflight", "toy-run")
    assert done.code == 0, done.err
    assert "family" in done.out
    assert "✗" not in done.out
    checks = cli("preflight", "toy-run", "--format", "json").json
    assert checks["ok"]
    assert {"family", "model", "memory"} <= {check["name"] for check in checks["specs"][0]["checks"]}


def test_preflight_names_what_is_wrong_and_exits_with_8(toy, cli):
    done = cli("preflight", "toy-run", "--set", "parameters.layer=9")
    assert done.code == 8
    assert "parameters.layer is 9" in done.out
    assert "1 failed check" in done.out
    assert not Path("artifacts").exists()


def test_preflight_checks_every_run_of_a_matrix(toy, cli):
    assert len(cli("preflight", "toy-sweep", "--format", "json").json["specs"]) == 4


def test_a_sweep_is_planned_then_executed_then_found_finished(toy, cli):
    plan = cli("sweep", "toy-sweep")
    assert plan.code == 0
    assert "4 runs: 4 waiting." in plan.out
    assert not Path("artifacts").exists()
    done = cli("sweep", "toy-sweep", "--execute")
    assert "4 runs: 4 complete; 4 computed and 0 found finished" in done.out
    again = cli("sweep", "toy-sweep", "-x")
    assert "0 computed and 4 found finished" in again.out


def test_a_sweep_over_axes_of_a_base(toy, cli):
    done = cli("sweep", "--base", "toy-run", "-a", "seed=0,1", "-a", "parameters.size=[2, 3]", "-x")
    assert done.code == 0, done.err
    assert "4 runs: 4 complete" in done.out
    assert "size" in done.out.splitlines()[0]


def test_the_base_of_a_sweep_may_be_a_file(toy, cli):
    (toy / "one.yaml").write_text(
        (toy / "experiments" / "toy.yaml").read_text().split("---")[0].replace("toy-run", "one")
    )
    assert cli("sweep", "--base", "one.yaml", "--axis", "seed=0,1").code == 0


def test_a_sweep_writes_the_specs_of_its_runs(toy, cli):
    done = cli("sweep", "toy-sweep", "--output", "out", "--format", "json")
    written = [Path(path) for path in done.json["written"]]
    assert len(written) == 4
    assert all(path.parent == Path("out") and path.is_file() for path in written)
    assert cli("validate", "out").code == 0


@pytest.mark.parametrize(("policy", "ran"), [("continue", 2), ("stop", 0)])
def test_a_failing_child_follows_the_policy(toy, cli, policy, ran):
    axis = "parameters.trouble=[mech, null]"
    done = cli(
        "sweep", "toy-run", "-a", axis, "-a", "seed=0,1", "-x", "--on-failure", policy, "--format", "json"
    )
    assert done.code == 8
    statuses = [child["status"] for child in done.json["children"]]
    assert statuses.count("complete") == ran
    assert done.json["stopped"] is (policy == "stop")


def test_a_sweep_report_shows_the_numbers_and_lists_sweeps(toy, cli):
    cli("sweep", "toy-sweep", "-x")
    listed = cli("sweep-report")
    assert "4 complete" in listed.out
    name = cli("sweep-report", "--format", "quiet").out.strip()
    shown = cli("sweep-report", "toy-sweep")
    assert name in shown.out
    assert "shift" in shown.out
    assert "4 runs: 4 complete." in shown.out
    assert len(cli("sweep-report", name, "--format", "json").json["children"]) == 4
    assert "no sweep" in cli("sweep-report", "toy-swep").err
    assert "Did you mean" in cli("sweep-report", name, "--metric", "maen").err
    cli("sweep-report", name, "-o", "report.md")
    assert Path("report.md").read_text().startswith("# toy-sweep")


def test_replay_agrees_and_is_kept_with_the_run(stored, cli):
    done = cli("replay", "1")
    assert done.code == 0, done.out + done.err
    assert "all 2 numbers came out again" in done.out
    assert list(Path("artifacts", stored[0], "derived", "replays").iterdir())
    assert cli("verify", "1").code == 0


def test_replay_that_differs_names_the_numbers_and_exits_with_8(toy, cli):
    cli("run", "toy-run", "--set", "parameters.noise=true")
    done = cli("replay", "1", "--no-save")
    assert done.code == 8
    assert "1 of 2 numbers did not come out again" in done.out
    assert not Path("artifacts").glob("*/derived/*") or "differs" in done.out
    assert cli("replay", "1", "--no-save", "--format", "quiet").out == "mean\n"


def test_comparison_shows_what_differs_and_pairs_groups(stored, cli):
    done = cli("compare-runs", "1", "2")
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if line.startswith("seed")]
    assert line.split() == ["seed", "0", "1"]
    assert "2−1" in done.out
    found = cli("compare-runs", "--left", "1", "--right", "2", "--format", "json").json
    assert [run["id"] for run in found["runs"]] == stored[:2]
    assert cli("compare-runs", "1", "2", "--format", "quiet").out.split()[0] == "seed"


def test_comparison_of_many_runs_fits_a_narrow_terminal(stored, cli, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = cli("compare-runs", "1", "2", "3")
    assert done.code == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert f"{stored[2]} is void" in " ".join(done.out.split())


@pytest.mark.parametrize("arguments", [["compare-runs"], ["compare-runs", "1"]])
def test_a_comparison_needs_two_runs(stored, cli, arguments):
    done = cli(*arguments)
    assert done.code == 2
    assert "two or more" in done.err


def test_an_unreadable_spec_is_named_beside_the_others(toy, cli):
    (toy / "experiments" / "bad.yaml").write_text("name: bad\nfamily: toy\nmodle: x\n")
    done = cli("experiments")
    assert done.code == 0
    assert "toy-run" in done.out
    assert "bad.yaml:3: There is no key 'modle'." in done.err


def test_one_of_yours_hides_a_shipped_spec_of_the_same_name(toy, cli, monkeypatch, tmp_path):
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    text = (toy / "experiments" / "toy.yaml").read_text()
    (shipped / "a.yaml").write_text(
        text.split("---")[0] + "---\n" + text.split("---")[1].replace("void", "x")
    )
    monkeypatch.setattr(library, "shipped_folder", lambda: shipped)
    origins = {spec["name"]: spec["origin"] for spec in cli("experiments", "--format", "json").json["specs"]}
    assert origins["toy-run"] == "yours"
    assert origins["toy-x"] == "shipped"
