"""Runs killed at any moment lose nothing that was done; several processes at once lose nothing at all."""

from __future__ import annotations


def test_fifty_kills_lose_nothing(work, root):
    seen = work("kill", root, 50, 7)
    assert seen["faults"] == []
    assert seen["kills"] == 50
    # The kills fell where they hurt: runs were continued, units were stored and runs were finished.
    assert seen["continued"] >= 15
    assert seen["units"] >= 60
    assert len(seen["finished"]) >= 5
    assert seen["statuses"] == ["complete"]
    assert seen["equal"]
    assert seen["problems"] == []
    assert len(set(seen["numbers"])) == seen["runs"] == len(set(seen["keys"]))
    assert seen["rebuilt"]
    assert seen["leftovers"] == []


def test_eight_processes_at_once(work, root):
    seen = work("crowd", root, 8, 3)
    assert seen["codes"] == [0] * 8
    assert seen["numbers"] == list(range(1, 26))
    assert seen["keys"] == sorted(f"key{number}" for number in range(25))
    assert seen["statuses"] == ["complete"]
    assert seen["equal"]
    assert seen["problems"] == []
    assert seen["tags"] == [["kill", *(f"seen-{process}" for process in range(8))]]
    assert seen["rebuilt"]
