"""The page docs/certificate.md, for `make_docs.py`, from the record that `measure_certificate.py` writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mech_interp import planted
from mech_interp.methods.circuits.certificate.tables import Cell, Grid, grids

RECORD = Path(__file__).parents[1] / "docs" / "certificate.json"


def certificate_page() -> str:
    """docs/certificate.md."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    certificate = record["certificate"]
    settings = certificate["settings"]
    missed = certificate["missed"]
    parts = [
        _BEGIN.format(
            verdict=f"**{len(missed)} of {certificate['bars']} bars are missed**"
            if missed
            else f"All {certificate['bars']} bars are kept",
            machine=record["machine"],
            versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
            minutes=sum(certificate["seconds"].values()) / 60,
        ),
        *(f"- **missed**: {sentence}" for sentence in missed),
        _MODELS,
        *_mechanisms(),
        _SETTINGS.format(**{**settings, "seeds": len(settings["seeds"])}),
    ]
    for grid in grids(certificate["measures"]):
        parts += [f"\n## {grid.title}\n", f"{grid.about}\n", *_table(grid)]
        parts += [_NOTES[grid.title]] if grid.title in _NOTES else []
    parts.append(_TIME.format(seconds=_seconds(certificate["seconds"])))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _mechanisms() -> Iterable[str]:
    """One line per planted model."""
    for name in planted.models():
        made = planted.build(name)
        truths = ", ".join(
            f"{len(edges)} under {ablation} ablation" for ablation, edges in made.truths.items()
        )
        edges = f" True edges of {made.graph.n_edges}: {truths}." if truths else ""
        yield f"- `{name}`: {made.mechanism}{edges}"


def _table(grid: Grid) -> list[str]:
    lines = [f"| {' | '.join(grid.heads)} |", f"|{' --- |' * len(grid.heads)}"]
    return [*lines, *(f"| {' | '.join(map(_shown, row))} |" for row in grid.rows)]


def _shown(cell: Cell) -> str:
    """In bold where its bar is missed."""
    return f"**✗ {cell.text}**" if cell.holds is False else cell.text


def _seconds(seconds: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())


_BEGIN = """\
# The certificate

Written by `tools/make_docs.py` from a measurement (`docs/certificate.json`, by
`tools/measure_certificate.py`). The same comes from:

```text
mech calibrate
```

```bash
mech calibrate --quick --only gates,identities # sections by name; --quick takes fewer models and draws
```

Every circuit method is scored on planted models, transformers set by hand whose circuit is known, and on
nulls, where there is nothing to find. The certificate is stored in the folder `certificates` of the store,
with the versions and the hashes of all weights measured; the command exits with 8 where a bar is missed.

{verdict}. Measured on {machine}, with {versions},
in {minutes:.1f} minutes.
"""

_MODELS = """
## The models
"""

_SETTINGS = """
Each is drawn {seeds} times: the basis of the residual stream, the order of heads, and the distractors (heads
and MLPs that write, differently on clean and corrupt prompts, what no answer depends on). Scores are over
{pairs} pairs per draw, in single precision. *6 nats* and *50 nats*: by how much attention prefers what it
looks for. An edge AUC is over all edges of the graph; ties count against the method, so that a constant
score has area 0. *Rounding* is 1e-5 of the metric's size: an effect below it cannot be measured. Nulls:
{replicates} replicates of {null_pairs} pairs, over {null_seeds} draws of the model.
"""

_NOTES = {
    "OR and AND: branches found, of two": """
From the clean run no single branch of OR matters; from the corrupt run no single branch of AND does. One
direction alone cannot find both gates whole, whatever the method that cuts one edge at a time.""",
    "Attribution: mean edge AUC where scores within rounding count as zero": """
At 50 nats a gradient through attention is about e⁻⁵⁰: it has vanished for every use. What is left often ranks
true edges first all the same, because in these models the others are exactly zero, up to rounding that
changes with the order of sums; in a trained model they are not. Read this table, not the one above. The mean
of the two ends (`clean-corrupt`) sees nothing of AND, which is flat at both; only following the path does. It
is held to the bar on the plain ranking alone, and would miss it here. The rules of relevance patching
(`relp`) give the plain gradients here, since these models have no norms and their activations are straight on
both sides of zero.""",
    "Nodes: AUC over heads and MLPs": """
Patching one node at a time hides the branches of OR, as cutting one edge does. Gradients see nothing of AND,
nor of what acts through saturated attention alone.""",
    "Causal scrubbing: share of the answer's lead recovered": """
At 6 nats attention leaves up to a quarter of a percent to each other place. No hypothesis speaks of that,
and scrubbing shows it: shares differ from 1 by up to half a percent, more than their intervals. The bar is
1.00 in two decimals.""",
}

_TIME = """
Time: {seconds}.
"""
