"""Ends runs and sweeps at random moments and continues them: a script that prints what it found as JSON.

    kill_driver.py FOLDER KILLS SEED

Everything is imported once and every attempt is a fork, so that a moment costs milliseconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toy_family as toy

from mech_interp.config.matrix import expand
from mech_interp.experiments.context import Context
from mech_interp.orchestration import sweep as sweeps
from mech_interp.orchestration.errors import InterruptedRunError
from mech_interp.orchestration.runner import run_spec
from mech_interp.orchestration.session import Session
from mech_interp.storage import Store, environment
from mech_interp.storage.verify import verify

UNITS, PAUSE = 6, 0.006
KILLS_EACH = 5


def main(folder: Path, kills: int, seed: int) -> dict[str, Any]:
    """Half of the kills on runs, half on sweeps."""
    assert "torch" not in sys.modules, "running a spec loads torch before a model is needed"
    sys.modules["torch"] = None  # type: ignore[assignment]  # nothing may load it later either
    known = environment()
    Session.environment = lambda self: dict(known)  # type: ignore[method-assign]
    os.fsync = lambda descriptor: None  # a killed process loses no pages; only a loss of power would
    toy.install()
    random.seed(seed)
    state = Watch(folder, toy.checkpoint(folder / "tiny"))
    number = 0
    while state.kills < kills:
        number += 1
        sweeping = number % 2 == 0
        spec = toy.spec(state.model, units=UNITS, pause=PAUSE, seed=number * 10)
        work = state.sweep(spec) if sweeping else state.run(spec)
        state.until_done(work, kills)
    return state.report()


class Watch:
    """The store under attack, and what must stay true of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model, self.settings = model, toy.settings(folder / "runs")
        self.kills = self.interrupts = self.attempts = self.resumed = 0
        self.faults: list[str] = []
        self.needs = 0.1
        self.sealed: dict[str, str | None] = {}

    def run(self, spec: Any) -> tuple[list[Any], Callable[[], Any]]:
        return [spec], lambda: run_spec(spec, self.settings)

    def sweep(self, spec: Any) -> tuple[list[Any], Callable[[], Any]]:
        wide = sweeps.with_axes(spec, ["parameters.shift=0,1"])
        return expand(wide), lambda: sweeps.run_sweep(wide, self.settings)

    def until_done(self, work: tuple[list[Any], Callable[[], Any]], kills: int) -> None:
        """Attempt the work, ending it at a random moment, until an attempt gets through."""
        specs, function = work
        enough = min(kills, self.kills + KILLS_EACH)
        while True:
            patience = random.uniform(0, self.needs * len(specs)) if self.kills < enough else 60.0
            how = random.choice([signal.SIGKILL, signal.SIGINT])
            began = time.monotonic()
            code = self.attempt(function, patience, how)
            self.check()
            if code == 0:
                # So that the next moments fall all over a run, however slow this machine is just now.
                self.needs = max(0.7 * self.needs, (time.monotonic() - began) / len(specs))
                break
        self.compare(specs)

    def attempt(self, function: Callable[[], Any], patience: float, how: signal.Signals) -> int:
        """The exit code of one attempt: 0 done, negative killed, 130 interrupted."""
        self.attempts += 1
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        child = os.fork()
        if child == 0:
            _child(function)
        end = time.monotonic() + patience
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return self.note(os.waitstatus_to_exitcode(status))
            time.sleep(0.001)
        os.kill(child, how)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code != 0:
            self.kills += 1
            self.interrupts += how == signal.SIGINT
        return self.note(code)

    def note(self, code: int) -> int:
        if code not in (0, 130, -signal.SIGKILL, -signal.SIGINT):
            self.faults.append(f"an attempt ended with {code}")
        return code

    def check(self) -> None:
        """No zombie, no lost or changed result, nothing half-written that reads as whole."""
        store = Store(self.settings.home)
        found = {run.id: run for run in store.runs()}
        for run in found.values():
            if run.status not in ("complete", "interrupted"):
                self.faults.append(f"{run.id} is {run.status}")
            if run.status == "complete" and run.id not in self.sealed:
                self.sealed[run.id] = run.result_sha256
                self.faults += [f"{run.id}: {problem}" for problem in verify(run.path, run.result_sha256)]
        for name, sha256 in self.sealed.items():
            if name not in found or found[name].status != "complete" or found[name].result_sha256 != sha256:
                self.faults.append(f"the result of {name} was lost")
        store.close()

    def compare(self, specs: list[Any]) -> None:
        """Numbers equal those of runs that nobody disturbed; no unit was computed twice for long."""
        store = Store(self.settings.home)
        for spec in specs:
            there = [run for run in store.runs(f"name = {spec.name}") if run.seed == spec.seed]
            if len(there) != 1:
                self.faults.append(f"{len(there)} runs of {spec.name}")
                continue
            run = there[0].open()
            if run.metrics() != undisturbed(spec):
                self.faults.append(f"{run.id} came out with other numbers")
            events = [event["event"] for event in run.events()]
            resumes, units = events.count("resumed"), events.count("unit")
            self.resumed += resumes > 0
            if not UNITS - resumes <= units <= UNITS:
                self.faults.append(f"{run.id} computed {units} units, resumed {resumes} times")
        store.close()

    def report(self) -> dict[str, Any]:
        named = ("kills", "interrupts", "attempts", "resumed", "faults")
        return {**{name: getattr(self, name) for name in named}, "complete": len(self.sealed)}


def undisturbed(spec: Any) -> dict[str, Any]:
    """The metrics of a run that nobody ends."""
    context = Context(toy.ToyParams(**{**spec.parameters, "pause": 0.0}), seed=spec.seed)
    return {name: metric.to_dict() for name, metric in toy.TOY.run(context).metrics.items()}


def _child(function: Callable[[], Any]) -> None:
    """The attempt itself; never returns."""
    code = 3
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        function()
        code = 0
    except (InterruptedRunError, KeyboardInterrupt):
        code = 130
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
