"""Several processes at once on one store: the same sweep, and a run of its own for each. Prints JSON.

crowd_driver.py FOLDER PROCESSES
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import toy_family as toy

from mech_interp.orchestration.runner import run_spec
from mech_interp.orchestration.session import Session
from mech_interp.orchestration.sweep import run_sweep, with_axes
from mech_interp.storage import Store, environment
from mech_interp.storage.records import dump
from mech_interp.storage.verify import verify


def main(folder: Path, processes: int) -> dict[str, Any]:
    sys.modules["torch"] = None  # type: ignore[assignment]
    known = environment()
    Session.environment = lambda self: dict(known)  # type: ignore[method-assign]
    os.fsync = lambda descriptor: None
    toy.install()
    model, settings = toy.checkpoint(folder / "tiny"), toy.settings(folder / "runs")
    children = [_start(model, settings, index) for index in range(processes)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return {"codes": codes, **_looked_at(settings)}


def _start(model: Path, settings: Any, index: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 3
    try:
        spec = with_axes(toy.spec(model, units=3, pause=0.01), ["seed=0,1,2", "parameters.shift=0,1"])
        outcome = run_sweep(spec, settings)
        own = run_spec(toy.spec(model, seed=100 + index), settings)
        code = 0 if outcome.is_complete and own.status == "complete" else 4
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        os._exit(code)


def _looked_at(settings: Any) -> dict[str, Any]:
    store = Store(settings.home)
    runs = store.runs()
    faults = [f"{run.id} is {run.status}" for run in runs if run.status != "complete"]
    faults += [f"{run.id}: {problem}" for run in runs for problem in verify(run.path, run.result_sha256)]
    if len({run.number for run in runs}) != len(runs):
        faults.append("a number was given twice")
    with store._database.reading() as connection:
        before = dump(connection)
    store.rebuild()
    with store._database.reading() as connection:
        faults += [] if dump(connection) == before else ["the index is not what its folders say"]
    workers = {event["pid"] for run in runs for event in run.open().events() if event["event"] == "created"}
    return {
        "faults": faults,
        "runs": len(runs),
        "keys": len({run.key for run in runs}),
        "workers": len(workers),
    }


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
