"""Path patching: what one component tells another, with everything else as it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from mech_interp.backends.protocol import Progress
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError, nearest
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.methods.circuits.common import CircuitTask, Direction
from mech_interp.methods.circuits.paths_result import PathPatchingResult
from mech_interp.methods.common import Floats, SanityError, rounding
from mech_interp.methods.paired import donors
from mech_interp.statistics import bootstrap_ratio

if TYPE_CHECKING:
    from mech_interp.datasets.pairs import PromptPair
    from mech_interp.methods.circuits.path_sweep import PathSweep

Variant = Literal["three_pass", "direct_edge"]
VARIANTS: tuple[Variant, ...] = ("three_pass", "direct_edge")
Columns = Sequence[Sequence[int]]
"""Per prompt the positions that a name stands for."""
Positions = Literal["all"] | Sequence[int] | Mapping[str, Columns]


@dataclass(frozen=True)
class Cells:
    """A map: senders by receivers, by positions where there are any.

    `columns` per position label, per prompt the positions; one entry None where nothing is split.
    """

    senders: tuple[Writer, ...]
    receivers: tuple[tuple[Reader, ...], ...]
    names: tuple[str, ...]
    columns: tuple[Columns | None, ...] = (None,)
    labels: tuple[str, ...] = ()

    def possible(self, graph: CircuitGraph) -> np.ndarray:
        """[sender, receiver] bool: whether any path of this kind leads there."""
        index = [graph.writer_index[writer] for writer in self.senders]
        return np.array(
            [[any(at < graph.before(r) for r in group) for group in self.receivers] for at in index]
        )


def path_patching(
    task: CircuitTask,
    receivers: Sequence[str] | Mapping[str, Sequence[str]] = ("logits",),
    senders: Literal["heads", "all"] | Sequence[str] = "heads",
    *,
    variant: Variant = "three_pass",
    direction: Direction = "noising",
    positions: Positions | None = None,
    normalise: bool = True,
    control_cells: int | None = 8,
    pairs: Sequence[PromptPair] | None = None,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> PathPatchingResult:
    """Patch every path from a sender to a receiver, one at a time, on every pair.

    Noising (as published) runs the clean prompt and lets the path alone carry the corrupt value;
    denoising the reverse. A pair's effect is (patched - base) / mean over pairs of (other - base), base
    being the run patched into.

    ``three_pass`` (Wang et al. 2023, appendix B): with all heads frozen at the base run but the sender at
    the other, MLPs and norms recomputed, the receivers' inputs are recorded; a run of the base prompt
    with nothing but these inputs replaced gives the effect. Paths may thus pass through MLPs.
    ``direct_edge`` (Goldowsky-Dill et al. 2023): the receiver's input has the sender's own part exchanged,
    and passes its own norm. It is what cutting that one edge in the edge engine does.

    Checked in every call, and refused when wrong: paths from a run to itself carry nothing, and all
    writers together give the final stream of the other run. Controlled in every call where there is an
    unrelated pair: the same paths carrying an unrelated pair's value.

    Args:
        task: pairs, metric; its ablation must be ``corrupt``.
        receivers: names (``a9.h9<q>``, ``m5``, ``logits``), each its own column; or named groups whose
            members are all patched together.
        senders: all heads; ``all`` writers; or names (``a5.h5``, ``m0``, ``input``).
        positions: split by the position at which the sender writes: "all" (prompts of one length),
            positions (negative from the end), or names with their positions in every prompt.
        normalise: False reports effects in the metric's own unit.
        control_cells: cells measured with an unrelated pair too: the largest; None for all, 0 for none.
        pairs: the prompt pairs of `task`, so that an unrelated one also has another answer.
        seed: of donors and resampling. memory_budget: bytes for recorded values and for rows.

    Raises:
        InputError: for a name that the model lacks, or positions that do not exist.
        CapabilityError: for a backend without named pieces; for ``direct_edge`` also an architecture
            whose edges are not defined.
        UnstableRatioError: when the two runs do not differ by three standard errors.
        SanityError: when an identity fails.
    """
    from mech_interp.methods.circuits.path_sweep import PathSweep

    _check(task, variant, direction)
    graph = _graph(task, variant)
    cells = _cells(task, graph, receivers, senders, positions)
    ends = (task.clean, task.corrupt) if direction == "noising" else (task.corrupt, task.clean)
    sweep = PathSweep(task.model, graph, ends[0], task.metric, variant, memory_budget)  # type: ignore[arg-type]
    base, other = (task.plain(tokens) for tokens in ends)
    if normalise:
        # Refused before the sweep rather than after it.
        bootstrap_ratio(other - base, other - base, task.groups, n_resamples=100)
    sanity = _identities(task, sweep, cells, base, other, ends)
    patched = sweep.measure(cells, ends[1], progress=progress)
    change = patched - base[:, None, None, None]
    chosen = _largest(change, control_cells)
    control = np.full(change.shape, np.nan)
    if chosen.any():
        order = _donors(task, pairs, seed)
        usable = [i for i, donor in enumerate(order) if donor is not None]
        if usable:
            unrelated = ends[1].select([i if donor is None else donor for i, donor in enumerate(order)])
            found = sweep.measure(cells, unrelated, only=chosen) - base[:, None, None, None]
            control[usable] = found[usable]
    shape: tuple[int | slice, ...] = () if cells.labels else (slice(None), slice(None), slice(None), 0)
    return PathPatchingResult(
        model=task.model.info.name,
        task=task.name,
        variant=variant,
        direction=direction,
        metric=task.metric_name,
        senders=tuple(str(writer) for writer in cells.senders),
        receivers=cells.names,
        members=tuple(tuple(str(r) for r in group) for group in cells.receivers),
        positions=cells.labels,
        differences=change[shape] if shape else change,
        control_differences=control[shape] if shape else control,
        base=base,
        other=other,
        groups=task.groups,
        normalised=normalise,
        sanity=sanity,
        noise=rounding(task.model) * max(1.0, float(np.abs(base).max()), float(np.abs(other).max())),
        notes=sweep.notes,
        seed=seed,
    )


def _check(task: CircuitTask, variant: str, direction: str) -> None:
    for what, one, known in (
        ("variant", variant, VARIANTS),
        ("direction", direction, ("noising", "denoising")),
    ):
        if one not in known:
            raise InputError(
                f"There is no {what} {one!r}.", nearest(one, known) or f"Use {', '.join(known)}."
            )
    if task.ablation != "corrupt":
        raise InputError(
            f"Paths carry values of the corrupt run, and this task ablates by {task.ablation}.",
            "Use a task with the ablation corrupt.",
        )
    for i, (left, right) in enumerate(zip(task.clean.lengths, task.corrupt.lengths, strict=True)):
        if left != right:
            raise InputError(
                f"Pair {i} has {left} clean and {right} corrupt tokens.",
                "Use prompts with equally many tokens.",
            )


def _graph(task: CircuitTask, variant: str) -> CircuitGraph:
    from mech_interp.backends.huggingface.edges import graph_of
    from mech_interp.backends.huggingface.model import HuggingFaceModel
    from mech_interp.backends.huggingface.writers import refuse_without_edges

    if not isinstance(task.model, HuggingFaceModel):
        raise CapabilityError(
            f"The backend {task.model.info.backend} cannot follow paths.",
            "Open the model with the default backend, huggingface.",
        )
    if variant == "direct_edge":
        refuse_without_edges(task.model)
    return graph_of(task.model)


def _cells(
    task: CircuitTask,
    graph: CircuitGraph,
    receivers: Sequence[str] | Mapping[str, Sequence[str]],
    senders: str | Sequence[str],
    positions: Positions | None,
) -> Cells:
    if isinstance(senders, str):
        if senders not in ("heads", "all"):
            raise InputError(f"There are no senders {senders!r}.", 'Give "heads", "all" or a list of names.')
        chosen = [w for w in graph.writers if senders == "all" or w.kind == "head"]
    else:
        chosen = [graph.writers[graph.writer(name)] for name in dict.fromkeys(senders)]
    if isinstance(receivers, str):
        receivers = [receivers]
    named = receivers if isinstance(receivers, Mapping) else {name: [name] for name in receivers}
    groups = {
        name: tuple(graph.readers[graph.reader(one)] for one in dict.fromkeys(members))
        for name, members in named.items()
    }
    if not chosen or not groups or not all(groups.values()):
        raise InputError("There are no senders or no receivers.", "Give at least one of each.")
    columns, labels = _columns(task, positions)
    cells = Cells(tuple(chosen), tuple(groups.values()), tuple(groups), columns, labels)
    silent = ~cells.possible(graph).any(0)
    if silent.any():
        name = cells.names[int(np.flatnonzero(silent)[0])]
        raise InputError(
            f"No sender comes before the receiver {name}.",
            "Paths go from an earlier writer to a later reader.",
        )
    return cells


def _columns(
    task: CircuitTask, positions: Positions | None
) -> tuple[tuple[Columns | None, ...], tuple[str, ...]]:
    if positions is None:
        return (None,), ()
    n = len(task)
    named: Mapping[str, Columns]
    if isinstance(positions, Mapping):
        named = positions
    elif isinstance(positions, str):
        lengths = sorted(set(task.clean.lengths))
        if positions != "all":
            raise InputError(f"There are no positions {positions!r}.", 'Give "all", integers or names.')
        if len(lengths) > 1:
            raise InputError(
                f"The prompts have {lengths[0]} to {lengths[-1]} tokens, so positions do not line up.",
                "Give positions counted from the end (-1, -2, …), or names with their positions.",
            )
        named = {str(at): [(at,)] * n for at in range(lengths[0])}
    else:
        named = {str(at): [(at,)] * n for at in positions}
    if not named or any(len(one) != n or not all(map(len, one)) for one in named.values()):
        raise InputError(f"Positions are not given for all {n} prompts.", "Give positions for each prompt.")
    resolved = [
        [tuple(task.clean.position(prompt, at) for at in own) for prompt, own in enumerate(one)]
        for one in named.values()
    ]
    return tuple(resolved), tuple(named)


def _identities(
    task: CircuitTask, sweep: PathSweep, cells: Cells, base: Floats, other: Floats, ends: Sequence[Tokens]
) -> dict[str, float]:
    size = max(1.0, float(np.abs(base).max()), float(np.abs(other).max()))
    places = np.argwhere(cells.possible(sweep.graph))[[0, -1]]
    some = np.zeros((len(cells.senders), len(cells.receivers), len(cells.columns)), dtype=bool)
    some[places[:, 0], places[:, 1], -1] = True
    prompts = list(range(min(4, len(task))))
    own = sweep.measure(cells, sweep.base, prompts=prompts, only=some)[prompts]
    errors = {
        "self_patch": own[:, some] - base[prompts, None],
        "everything": sweep.everything(ends[1]) - other,
    }
    found = {name: float(np.abs(error).max()) / size for name, error in errors.items()}
    for name, worst in found.items():
        if not worst <= rounding(task.model):
            raise SanityError(
                f"The identity {name} of path patching missed the known answer by {worst:.1e} of the "
                "metric's size.",
                "Path patching is wrong for this model, so its maps are void; report it.",
            )
    return found


def _donors(task: CircuitTask, pairs: Sequence[PromptPair] | None, seed: int) -> list[int | None]:
    """For each pair an unrelated one, equally long and of another group."""
    if pairs is not None and len(pairs) != len(task):
        raise InputError(
            f"There are {len(pairs)} pairs for a task of {len(task)}.", "Give those of the task."
        )
    if pairs is not None:
        return donors(pairs, task.clean.lengths, seed)
    generator = np.random.default_rng(seed)
    found: list[int | None] = []
    for i, length in enumerate(task.clean.lengths):
        fit = [
            j
            for j, other in enumerate(task.clean.lengths)
            if other == length and task.groups[j] != task.groups[i]
        ]
        found.append(fit[int(generator.integers(len(fit)))] if fit else None)
    return found


def _largest(change: Floats, count: int | None) -> np.ndarray:
    """[sender, receiver, position] bool: the cells of largest mean change by magnitude; all for None."""
    size = np.nan_to_num(np.abs(change.mean(0)), nan=-1.0)
    if count is None:
        return np.asarray(size >= 0)
    order = np.argsort(-size, axis=None, kind="stable")[: max(count, 0)]
    chosen = np.zeros(size.size, dtype=bool)
    chosen[order] = True
    return np.asarray(chosen.reshape(size.shape) & (size >= 0))
