"""One spec to one run: begun, reused, continued, failed, void, refused."""

from __future__ import annotations

import errno
import gc
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import toy_family as toy

from mech_interp.config.spec import Spec
from mech_interp.errors import CapabilityError, InputError, MechError
from mech_interp.experiments.result import Metric
from mech_interp.orchestration.errors import BusyError, InterruptedRunError
from mech_interp.orchestration.progress import Step
from mech_interp.orchestration.runner import run_spec
from mech_interp.storage import RunFolder, StorageError, Store
from mech_interp.storage.verify import verify


def run(model: Path, home: Path, **changes: Any) -> Any:
    options = {key: changes.pop(key) for key in ("force", "tags", "progress", "dry_run") if key in changes}
    return run_spec(toy.spec(model, **changes), toy.settings(home), **options)


def opened(outcome: Any) -> RunFolder:
    return RunFolder(outcome.folder)


def test_a_new_run_is_complete_sealed_and_indexed(model: Path, home: Path) -> None:
    steps: list[Step] = []
    outcome = run(model, home, units=5, progress=steps.append, draw=True)
    folder = opened(outcome)
    assert (outcome.status, outcome.reused, outcome.how) == ("complete", False, "new")
    assert verify(folder.path) == []
    assert [step.done for step in steps] == [0, 1, 2, 3, 4, 5]
    assert {step.total for step in steps} == {5}
    record = Store(home).find(outcome.run_id)
    assert (record.status, record.family, record.model, record.seed) == ("complete", "toy", str(model), 0)
    assert record.metrics == {"mean": folder.metrics()["mean"]["value"], "count": 5.0}
    assert len(folder.table("units")) == 5
    assert folder.figure("bars").read_bytes().startswith(b"\x89PNG")
    report = folder.report()
    assert report is not None
    assert "![Means](figures/bars.png)" in report


def test_the_receipt_is_there_before_the_work_starts(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    unit = toy.Toy._unit

    def look(self: Any, context: Any, index: int) -> Any:
        [folder] = home.glob("run-*")
        seen.append(json.loads((folder / "receipt.json").read_text()))
        assert (folder / "spec.yaml").exists()
        return unit(self, context, index)

    monkeypatch.setattr(toy.Toy, "_unit", look)
    outcome = run(model, home)
    assert seen[0] == opened(outcome).receipt()
    assert seen[0]["key"] == outcome.key
    assert seen[0]["model"]["weights_sha256"] != seen[0]["model"]["tokenizer_sha256"]
    assert {"packages", "python", "os", "cpu", "code"} <= set(seen[0]["environment"])


def test_equal_content_is_run_once_under_any_name(model: Path, home: Path) -> None:
    first = run(model, home, units=3)
    again = run(model, home, units=3, name="other", description="said otherwise", tags=["paper"])
    assert again.run_id == first.run_id
    assert again.reused
    assert Store(home).find(first.run_id).tags == ("paper",)
    assert verify(first.folder) == []  # later tags are no change of the run


@pytest.mark.parametrize("change", [{"seed": 1}, {"shift": 0.5}, {"units": 4}, {"attention": "eager"}])
def test_what_decides_the_numbers_makes_another_run(model: Path, home: Path, change: dict[str, Any]) -> None:
    first, other = run(model, home, units=3), run(model, home, **{"units": 3, **change})
    assert other.key != first.key
    assert not other.reused


def test_other_weights_are_another_run_and_the_same_elsewhere_is_not(
    model: Path, home: Path, tmp_path: Path
) -> None:
    first = run(model, home)
    assert run(toy.checkpoint(tmp_path / "copy"), home).run_id == first.run_id
    assert not run(toy.checkpoint(tmp_path / "finetuned", b"changed"), home).reused


def test_a_new_version_of_the_family_is_another_run(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run(model, home)
    monkeypatch.setattr(toy.Toy, "version", 2)
    assert run(model, home).key != first.key


def test_an_alias_stands_for_its_model(model: Path, home: Path) -> None:
    settings = toy.settings(home, aliases={"small": str(model)})
    outcome = run_spec(toy.spec(Path("small")), settings)
    assert run(model, home).run_id == outcome.run_id
    assert opened(outcome).receipt()["model"]["id"] == "small"


def test_force_runs_again_to_the_same_numbers(model: Path, home: Path) -> None:
    first, again = run(model, home), run(model, home, force=True)
    assert again.run_id != first.run_id
    assert opened(again).metrics() == opened(first).metrics()


def test_a_dry_run_checks_and_writes_nothing(model: Path, home: Path) -> None:
    outcome = run(model, home, dry_run=True)
    assert (outcome.status, outcome.run_id) == ("planned", None)
    assert not home.exists()
    real = run(model, home)
    assert real.key == outcome.key
    files = sorted(home.rglob("*"))
    found = run(model, home, dry_run=True)
    assert (found.run_id, found.reused) == (real.run_id, True)
    assert sorted(home.rglob("*")) == files


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layer": 7}, InputError, "parameters.layer is 7"),
        ({"unit": 7}, InputError, "units"),
        ({"family": "toyy"}, InputError, "no family 'toyy'"),
        ({"backend": "other"}, InputError, "no backend 'other'"),
        ({"revision": "main", "model": "./nowhere"}, MechError, "no folder ./nowhere"),
        ({"matrix": {"seeds": 2}}, InputError, "mech sweep"),
        ({"hook_site": "blocks.0.hook_resid_pre"}, InputError, "takes no hook_site"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_written(
    model: Path, home: Path, change: dict[str, Any], error: type[MechError], words: str
) -> None:
    settings, spec = toy.settings(home), toy.spec(model).to_dict()
    parameters = {key: value for key, value in change.items() if key not in Spec.model_fields}
    top = {key: value for key, value in change.items() if key in Spec.model_fields}
    with pytest.raises(error) as caught:
        run_spec(Spec.from_dict({**spec, **top, "parameters": parameters}), settings)
    assert words in str(caught.value)
    assert not home.exists()


def test_a_capability_that_the_backend_lacks_is_refused(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.Toy, "needs", frozenset({"telepathy"}))
    with pytest.raises(CapabilityError, match=r"needs telepathy.*huggingface cannot"):
        run(model, home)
    assert not home.exists()


def interrupt_at(monkeypatch: pytest.MonkeyPatch, index: int, how: Any) -> None:
    """Make unit `index` end the run once."""
    unit, pending = toy.Toy._unit, [index]

    def work(self: Any, context: Any, at: int) -> Any:
        if pending and at == pending[0]:
            pending.clear()
            how()
        return unit(self, context, at)

    monkeypatch.setattr(toy.Toy, "_unit", work)


def by_keyboard() -> None:
    raise KeyboardInterrupt


def by_request() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("how", [by_keyboard, by_request])
def test_an_interrupted_run_is_continued_to_the_same_numbers(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    interrupt_at(monkeypatch, 3, how)
    with pytest.raises(InterruptedRunError) as caught:
        run(model, home, units=6)
    assert caught.value.exit_code == 130
    assert "3 pieces of its work are kept" in caught.value.message
    [record] = Store(home).runs()
    assert record.status == "interrupted"
    outcome = run(model, home, units=6, tags=["later"])
    assert (outcome.run_id, outcome.how) == (record.id, "continued")
    assert Store(home).find(record.id).tags == ("later",)
    events = [event["event"] for event in opened(outcome).events()]
    assert events.count("unit") == 6  # three and three: none was computed twice
    assert opened(outcome).metrics() == opened(run(model, tmp_path / "calm", units=6)).metrics()


def test_an_interrupt_that_a_library_turns_into_an_error_is_no_failure(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def how() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt as error:
            raise RuntimeError("something went wrong inside a library") from error

    interrupt_at(monkeypatch, 2, how)
    with pytest.raises(InterruptedRunError, match="2 pieces"):
        run(model, home, units=6)
    assert [record.status for record in Store(home).runs()] == ["interrupted"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert run(model, home, units=6).how == "continued"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_request_that_python_drops_is_heard_at_the_next_piece(
    model: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dropping:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000):  # the handler runs, and what it raises is dropped
                pass

    def how() -> None:
        one: Any = Dropping()
        del one
        gc.collect()

    interrupt_at(monkeypatch, 1, how)
    with pytest.raises(InterruptedRunError, match="2 pieces"):
        run(model, home, units=6)


@pytest.mark.parametrize(
    ("trouble", "raised", "sentence"),
    [
        ("mech", InputError, "The toy broke."),
        ("bug", ZeroDivisionError, "ZeroDivisionError: a bug"),
        ("memory", MemoryError, "MemoryError: "),
    ],
)
def test_a_failure_is_stored_as_a_sentence_and_not_reused(
    model: Path, home: Path, trouble: str, raised: type[Exception], sentence: str
) -> None:
    for attempt in (1, 2):
        with pytest.raises(raised):
            run(model, home, trouble=trouble)
        found = Store(home).runs()
        assert [record.status for record in found] == ["failed"] * attempt
    folder = found[0].open()
    assert folder.result()["error"] == sentence
    assert folder.metrics() == {}
    assert verify(folder.path) == []
    traces = [event for event in folder.events() if event["event"] == "traceback"]
    assert len(traces) == (trouble != "mech")


def test_a_failed_sanity_control_voids_the_run(model: Path, home: Path) -> None:
    outcome = run(model, home, sane=False)
    assert outcome.status == "void"
    report = opened(outcome).report()
    assert report is not None
    assert "**Void.** A sanity control failed (identity)" in report
    assert run(model, home, sane=False).reused  # it would fail again


def test_activations_are_kept_only_if_asked(model: Path, home: Path) -> None:
    lean = run(model, home)
    assert opened(lean).names("tensors") == ["values"]
    whole = run(model, home, artifact_policy={"retain_activation_tensors": True})
    assert not whole.reused  # the stored run does not hold what is asked
    assert set(opened(whole).names("tensors")) == {"activations.drawn", "values"}
    assert run(model, home, artifact_policy={"retain_activation_tensors": True}).run_id == whole.run_id
    assert run(model, home).reused


def test_the_largest_tensors_give_way_to_the_limit_and_numbers_never_do(model: Path, home: Path) -> None:
    small = {"retain_activation_tensors": True, "max_artifact_bytes": 6000}
    outcome = run(model, home, size=500, artifact_policy=small)
    folder = opened(outcome)
    assert folder.names("tensors") == []
    assert set(folder.metrics()) == {"mean", "count"}
    left_out = folder.result()["kept"]["left_out"]
    assert sorted(left_out) == ["activations.drawn", "values"]
    assert all(name in (folder.report() or "") for name in left_out)
    assert run(model, home, size=500, artifact_policy=small).reused
    larger = run(model, home, size=500, artifact_policy={**small, "max_artifact_bytes": 10**9})
    assert not larger.reused
    assert len(opened(larger).names("tensors")) == 2


def test_a_report_that_was_not_written_can_be_asked_for_later(model: Path, home: Path) -> None:
    first = run(model, home, artifact_policy={"write_report": False})
    assert opened(first).report() is None
    again = run(model, home)
    assert again.reused
    assert "# toy-run" in (again.folder / "derived" / "report.md").read_text()
    assert verify(again.folder) == []


def test_a_run_that_another_process_executes_is_left_to_it(model: Path, home: Path) -> None:
    interrupted = toy.spec(model)
    outcome = run_spec(interrupted, toy.settings(home), dry_run=True)
    with RunFolder.create(home, outcome.key, interrupted.to_yaml(), {}) as held:
        with pytest.raises(BusyError, match="another process"):
            run(model, home)
        assert held.status == "running"
    assert run(model, home).how == "continued"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_gives_out_at_any_write_leaves_nothing_half_written(
    model: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    calm = opened(run(model, tmp_path / "calm", units=2)).metrics()
    from mech_interp.storage import atomic, events

    def failing_from(count: int) -> Any:
        left = [count]

        def write(descriptor: int, data: bytes) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(number, os.strerror(number))
            os.write(descriptor, data)

        return write

    survived = False
    for count in range(0, 60, 3):
        home = tmp_path / f"runs-{count}"
        with monkeypatch.context() as patch:
            write = failing_from(count)
            patch.setattr(atomic, "write_all", write)
            patch.setattr(events, "write_all", write)
            try:
                run(model, home, units=2)
                survived = True
                break
            except StorageError as error:
                told = error
        assert "disk is full" in told.message or "read-only" in told.message
        assert told.hint
        assert [record.status for record in Store(home).runs()] in ([], ["interrupted"])
        assert not list(home.rglob("*.tmp"))
        assert opened(run(model, home, units=2)).metrics() == calm
    assert survived
    assert count > 15  # so that it failed in every phase before


def test_time_left_is_that_of_this_process(model: Path, home: Path) -> None:
    from mech_interp.orchestration.progress import Meter, spoken

    now = [0.0]
    steps: list[Step] = []
    meter = Meter("run", steps.append, clock=lambda: now[0])
    meter.progress(0, 100, "pairs")
    for done in range(1, 91):  # stored pieces: read back in no time
        meter.progress(done, 100, "pairs")
    assert steps[-1].left is None
    for done in (91, 92, 93):
        now[0] += 4.0
        meter.event("unit", key=str(done))
        meter.progress(done, 100, "pairs")
    assert steps[-1].left == pytest.approx(7 * 4.0)
    assert str(steps[-1]) == "pairs: 93 of 100, 28 s left"
    assert [spoken(value) for value in (5, 89, 120, 7500)] == ["5 s", "89 s", "2 min", "2 h 5 min"]


def test_metrics_come_back_as_metrics(model: Path, home: Path) -> None:
    stored = opened(run(model, home)).metrics()["mean"]
    metric = Metric.from_dict(stored)
    assert metric.per_group is not None
    assert len(metric.per_group) == 4
    assert metric.to_dict() == stored
