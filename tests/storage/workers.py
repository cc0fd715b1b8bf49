"""Processes for the kill and concurrency tests: each task forks children and prints what it saw as JSON."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from mech_interp.storage import database
from mech_interp.storage.errors import StorageError
from mech_interp.storage.index import Store
from mech_interp.storage.records import dump
from mech_interp.storage.verify import verify

UNITS = 6
STEPS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "sqlite3.connect",
    "shutil.rmtree",
    "fcntl.flock",
}
SPEC = "name: job\nfamily: logit_lens\nmodel: tiny\ntags: [kill]\nparameters: {site: resid_pre.1}\n"


def unit(key: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What unit `number` of run `key` always comes to."""
    start = float(int(key.removeprefix("key")) * 100 + number)
    return {"effect": start, "name": f"pair {number}"}, {"effects": np.arange(start, start + 50)}


def execute(store: Store, key: str, say: Any) -> None:
    """One run from its beginning, or from where it stopped, to its seal."""
    begun = store.begin(key, SPEC, {"datasets": {"facts": "abc"}})
    run = begun.folder
    say("begun", run.id, key)
    if begun.how == "stored":
        return
    effects = []
    for number in range(UNITS):
        found = run.load_unit(f"pair {number}")
        if found is None:
            found = run.save_unit(f"pair {number}", *unit(key, number))
            say("unit", run.id, number)
        run.event("progress", done=number + 1, of=UNITS)
        effects.append(found[0]["effect"] + float(found[1]["effects"].sum()))
    run.finish(
        "complete",
        metrics={"effect": {"value": sum(effects), "n": UNITS}},
        tables={"effects": [{"pair": i, "effect": effect} for i, effect in enumerate(effects)]},
        tensors={"effects": np.array(effects)},
        report=f"# {key}\n",
    )
    say("finished", run.id, key)
    store.record(run)


def expected(key: str) -> float:
    """The metric of a run that was never interrupted."""
    found = [unit(key, number) for number in range(UNITS)]
    return sum(payload["effect"] + float(arrays["effects"].sum()) for payload, arrays in found)


def kill(root: Path, times: int, seed: int) -> dict[str, Any]:
    """Execute runs one after another, killed `times` times at random moments; check after each kill."""
    chance = random.Random(seed)
    seen: dict[str, Any] = {"kills": 0, "continued": 0, "units": 0, "finished": {}, "faults": []}
    key = 0
    while seen["kills"] < times:
        reader, writer = os.pipe()
        # By turns: at a random step inside the files and the index, and a random time after a random step.
        steps = chance.randint(1, 120) if seen["kills"] % 2 else 0
        child = os.fork()
        if child == 0:
            os.close(reader)
            forever(root, key, writer, steps)
        os.close(writer)
        with os.fdopen(reader, encoding="utf-8") as file:
            said = [] if steps else [line for _ in range(chance.randint(0, 10)) if (line := file.readline())]
            if not steps:
                time.sleep(chance.uniform(0.0, 0.04))
                os.kill(child, signal.SIGKILL)
            said += file.readlines()
        os.waitpid(child, 0)
        seen["kills"] += 1
        key = inspect(root, [json.loads(line) for line in said if line.endswith("\n")], seen, key)
    finish_all(root, key, seen)
    return seen


def forever(root: Path, key: int, writer: int, steps: int) -> None:
    """A child's life: run after run, until it is killed; by itself after `steps` file operations, if any."""

    def say(*words: object) -> None:
        os.write(writer, (json.dumps(words) + "\n").encode())

    try:
        store = Store(root)
        if steps:
            die_after(steps)
        while True:
            execute(store, f"key{key}", say)
            key += 1
    except BaseException:
        say("fault", traceback.format_exc())
    finally:
        os._exit(1)


def die_after(steps: int) -> None:
    """Kill this process just before its `steps`-th file operation."""
    left = [steps]

    def watch(event: str, _: object) -> None:
        if event in STEPS:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


def inspect(root: Path, said: list[list[Any]], seen: dict[str, Any], key: int) -> int:
    """Look at the store after a kill as the next command would; returns the key to go on with."""
    faults = seen["faults"]
    faults += [words[1] for words in said if words[0] == "fault"]
    seen["finished"].update({run: name for what, run, name in said if what == "finished"})
    seen["units"] += sum(what == "unit" for what, *_ in said)
    store = Store(root)
    records = {record.id: record for record in store.runs()}
    for record in records.values():
        if record.status not in ("complete", "interrupted"):
            faults.append(f"{record.id} reads as {record.status}")
        check_units(record.open(), record.key or "", faults)
    for run, name in seen["finished"].items():
        if run not in records or records[run].status != "complete":
            faults.append(f"{run} was finished and is lost")
        elif records[run].metrics.get("effect") != expected(name):
            faults.append(f"{run} has other numbers")
    for what, run, number in said:
        if what == "unit" and records[run].status != "complete":
            found = records[run].open().load_unit(f"pair {number}")
            if found is None:
                faults.append(f"unit {number} of {run} was stored and is lost")
    store.close()
    complete = {record.key for record in records.values() if record.status == "complete"}
    while f"key{key}" in complete:
        key += 1
    return key


def check_units(run: Any, key: str, faults: list[str]) -> None:
    for number in range(UNITS):
        found = run.load_unit(f"pair {number}")
        if found is not None:
            payload, arrays = unit(key, number)
            if found[0] != payload or not np.array_equal(found[1]["effects"], arrays["effects"]):
                faults.append(f"unit {number} of {run.id} is torn")


def finish_all(root: Path, key: int, seen: dict[str, Any]) -> None:
    """Go on after the last kill, then look at everything once more."""
    store = Store(root)
    execute(store, f"key{key}", lambda *words: None)
    records = store.runs()
    seen["runs"] = len(records)
    seen["numbers"] = sorted(record.number for record in records)
    seen["keys"] = sorted(str(record.key) for record in records)
    seen["statuses"] = sorted({record.status for record in records})
    seen["equal"] = all(record.metrics["effect"] == expected(str(record.key)) for record in records)
    seen["problems"] = [str(problem) for record in records for problem in verify(record.path)]
    seen["continued"] = sum(
        event["event"] == "resumed" for record in records for event in record.open().events()
    )
    seen["rebuilt"] = is_rebuilt(store)
    seen["leftovers"] = sorted(
        path.name for path in root.rglob(".*") if path.name not in (".lock", ".last-number")
    )


def is_rebuilt(store: Store) -> bool:
    """Whether the index is what a rebuilt one would be."""
    with store._database.reading() as connection:
        before = dump(connection)
    for name in ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm"):
        with contextlib.suppress(FileNotFoundError):
            (store.root / name).unlink()
    with Store(store.root)._database.reading() as connection:
        return dump(connection) == before


def crowd(root: Path, processes: int, each: int) -> dict[str, Any]:
    """`processes` at once: runs of their own, and one key that all of them want."""
    children = []
    for process in range(processes):
        child = os.fork()
        if child == 0:
            os._exit(member(root, process, each))
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    store = Store(root)
    records = store.runs()
    return {
        "codes": codes,
        "numbers": sorted(record.number for record in records),
        "keys": sorted(str(record.key) for record in records),
        "statuses": sorted({record.status for record in records}),
        "equal": all(record.metrics["effect"] == expected(str(record.key)) for record in records),
        "tags": sorted(record.tags for record in records if record.key == "key0"),
        "problems": [str(problem) for record in records for problem in verify(record.path)],
        "rebuilt": is_rebuilt(store),
    }


def member(root: Path, process: int, each: int) -> int:
    try:
        store = Store(root)
        for number in range(each):
            execute(store, f"key{1 + process * each + number}", lambda *words: None)
        shared(store)
        run = store.by_key("key0")[0]
        store.tag(run.id, add=[f"seen-{process}"])
        return 0
    except BaseException:
        traceback.print_exc()
        return 1


def shared(store: Store) -> None:
    """Do key0, or wait until whoever does it is done."""
    for _ in range(4000):
        try:
            execute(store, "key0", lambda *words: None)
            return
        except StorageError as error:
            if "is being executed" not in error.message:
                raise
            time.sleep(0.05)
    raise TimeoutError("key0 was never done")


def do_not_flush() -> None:
    """What is written survives the process, flushed to the disk or not; flushing only takes long."""
    os.fsync = lambda descriptor: None
    set_up = database._set_up

    def without_flush(connection: Any, record: object) -> None:
        set_up(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    database._set_up = without_flush


if __name__ == "__main__":
    do_not_flush()
    tasks = {"kill": kill, "crowd": crowd}
    task, folder, *numbers = sys.argv[1:]
    json.dump(tasks[task](Path(folder), *map(int, numbers)), sys.stdout)
