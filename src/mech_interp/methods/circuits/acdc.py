"""ACDC on a task: the edges, or the nodes, whose removal the loss does not notice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from mech_interp.backends.metrics import KLDivergence, Metric
from mech_interp.errors import InputError, OutOfMemoryError, nearest
from mech_interp.graph import Circuit
from mech_interp.methods.circuits.acdc_result import AcdcResult, NodeDecision
from mech_interp.methods.circuits.common import CircuitTask, is_out_of_memory
from mech_interp.methods.common import Floats

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.huggingface.edge_pruning import Order, ReaderDecisions, Work

Loss = Literal["kl", "metric"]
LOSSES: tuple[Loss, ...] = ("kl", "metric")
MOST_ROWS = 64


@dataclass(frozen=True)
class Negative:
    """A task metric as a loss: lower is better."""

    metric: Metric

    @property
    def positions(self) -> tuple[int, ...]:
        """Positions whose logits are read."""
        return self.metric.positions

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        """Vocabulary ids read, or None for all."""
        return self.metric.token_ids(prompts)

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        return -self.metric(logits, prompts)


def loss_of(task: CircuitTask, loss: str) -> Metric:
    """The loss by name: ``kl`` is the divergence from the full model where the metric is read, in nats;
    ``metric`` the negative of the task's metric.

    Raises:
        InputError: for an unknown name, or a divergence at several positions.
    """
    if loss == "metric":
        return Negative(task.metric)
    if loss != "kl":
        raise InputError(f"There is no loss {loss!r}.", nearest(loss, LOSSES) or "Use kl or metric.")
    if len(task.metric.positions) != 1:
        raise InputError("The metric reads several positions, the divergence one.", "Use loss metric.")
    (position,) = task.metric.positions
    logits = task.model.forward(task.clean, logits=[position]).logits
    assert logits is not None
    return KLDivergence(logits[:, 0].detach(), position)


def acdc_edges(
    task: CircuitTask,
    tau: float,
    *,
    loss: str = "kl",
    order: Order = "reverse",
    seed: int = 0,
    memory_budget: int | None = None,
) -> AcdcResult:
    """Remove, from the logits backwards, every edge whose removal raises the loss by less than `tau`.

    The decisions are those of the sequential algorithm; see `prune_edges`.

    Source: Conmy et al. 2023 (arXiv 2304.14997), Algorithm 1.

    Args:
        task: pairs, metric, and what removed edges carry (`task.ablation`).
        tau: in the loss's unit (nats for ``kl``).
        order: of writers at a reader: ``reverse`` (latest first), ``forward`` or ``random``.
        memory_budget: bytes for the rows of a batch.

    Raises:
        InputError: for a tau that is not positive, an unknown loss or order.
        UnstableRatioError: when clean and ablated runs do not differ by three standard errors.
        CapabilityError: for a backend or architecture without edges.
    """
    from mech_interp.backends.huggingface.edge_pruning import Work

    check_tau(tau)
    task.refuse_vanishing()
    work = Work()
    decisions = list(
        edge_decisions(
            task, loss_of(task, loss), tau, order=order, seed=seed, work=work, memory_budget=memory_budget
        )
    )
    return edge_result(task, decisions, tau, loss, order, work.rows, work.wasted, seed)


def edge_decisions(
    task: CircuitTask,
    loss: Metric,
    tau: float,
    *,
    order: Order = "reverse",
    seed: int = 0,
    decided: Sequence[ReaderDecisions] = (),
    work: Work | None = None,
    memory_budget: int | None = None,
) -> Iterator[ReaderDecisions]:
    """Decisions reader by reader, going on after `decided`; fewer rows at once when memory runs out."""
    from mech_interp.backends.huggingface.edge_pruning import Work, prune_edges

    known, work = list(decided), work or Work()
    rows = _rows_at_once(task, memory_budget)
    while True:
        try:
            for found in prune_edges(
                task.engine, loss, tau, order=order, seed=seed, decided=known, most_rows=rows, work=work
            ):
                known.append(found)
                yield found
            return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                raise OutOfMemoryError(
                    "Not even one removal on all prompts fits into memory.", "Use fewer or shorter prompts."
                ) from error
        rows //= 2
        task.tell(f"Memory ran out; at most {rows} removals were tried at once.")


def edge_result(
    task: CircuitTask,
    decisions: Sequence[ReaderDecisions],
    tau: float,
    loss: str,
    order: str,
    rows: int,
    wasted: int,
    seed: int,
) -> AcdcResult:
    """What the decisions of all readers amount to."""
    graph = task.graph
    edges, effects = np.zeros_like(graph.possible), np.full(graph.possible.shape, np.nan)
    close = []
    for one in decisions:
        edges[list(one.kept), one.reader] = True
        for writer, effect in one.effects.items():
            effects[writer, one.reader] = effect
        close += [graph.edge_name(writer, one.reader) for writer in one.close]
    return AcdcResult(
        model=task.model.info.name,
        task=task.name,
        metric=task.metric_name,
        ablation=task.ablation,
        level="edges",
        loss=loss,
        tau=tau,
        order=order,
        n=len(task),
        circuit=Circuit(graph, edges),
        effects=effects,
        examined=tuple(
            graph.edge_name(writer, one.reader)
            for one in decisions
            if one.evaluated
            for writer in one.effects
        ),
        unevaluated=sum(len(one.removed) for one in decisions if not one.evaluated),
        close=tuple(close),
        losses=tuple(one.loss for one in decisions),
        rows=rows,
        wasted=wasted,
        seed=seed,
    )


def acdc_nodes(
    task: CircuitTask, tau: float, *, loss: str = "kl", memory_budget: int | None = None
) -> AcdcResult:
    """One decision per head and MLP, from the latest backwards.

    A removed node carries its ablated value into every reader; what it would have computed reaches nobody.
    The circuit is all edges among the nodes that stay, the embedding and the logits.

    Source: Conmy et al. 2023 (arXiv 2304.14997), Algorithm 1 with nodes in place of edges.

    Raises:
        as `acdc_edges`.
    """
    from mech_interp.backends.huggingface.edge_pruning import Work

    check_tau(tau)
    task.refuse_vanishing()
    work = Work()
    batches = node_decisions(task, loss_of(task, loss), tau, work=work, memory_budget=memory_budget)
    decisions = [one for batch in batches for one in batch]
    return node_result(task, decisions, tau, loss, work.rows, work.wasted)


def node_decisions(
    task: CircuitTask,
    loss: Metric,
    tau: float,
    *,
    decided: Sequence[NodeDecision] = (),
    work: Work | None = None,
    memory_budget: int | None = None,
) -> Iterator[list[NodeDecision]]:
    """Decisions node by node, going on after `decided`, those of a batch of removals together.

    A batch holds the rows that would follow if every candidate in turn were removed; it counts up to the
    first node that stays.
    """
    from mech_interp.backends.huggingface.edge_pruning import Work

    work = work or Work()
    graph = task.graph
    mask = graph.possible.copy()
    for one in decided:
        if not one.kept:
            mask[one.writer] = False
    left = list(range(len(graph.writers) - 1, 0, -1))[len(decided) :]
    current = decided[-1].loss if decided else float(_losses(task, loss, mask[None], memory_budget)[0])
    unit = float(np.finfo(np.float64 if task.model.info.dtype == "float64" else np.float32).eps)
    while left:
        batch = left[: min(MOST_ROWS, work.size(len(left)))]
        masks = np.repeat(mask[None], len(batch), 0)
        for row, writer in enumerate(batch):
            masks[row:, writer] = False
        losses = _losses(task, loss, masks, memory_budget)
        found: list[NodeDecision] = []
        for writer, after in zip(batch, losses.tolist(), strict=True):
            effect = after - current
            close = abs(effect - tau) < 128 * unit * max(1.0, abs(after), abs(current))
            kept = not effect < tau
            current = current if kept else after
            found.append(NodeDecision(writer, kept, effect, current, close))
            if kept:
                break
            mask[writer] = False
        work.count(len(found), len(batch), found[-1].kept)
        left = left[len(found) :]
        yield found


def node_result(
    task: CircuitTask, decisions: Sequence[NodeDecision], tau: float, loss: str, rows: int, wasted: int
) -> AcdcResult:
    """What the decisions about all nodes amount to."""
    graph = task.graph
    edges, effects = graph.possible.copy(), np.full(graph.possible.shape, np.nan)
    for one in decisions:
        effects[one.writer, graph.possible[one.writer]] = one.effect
        if not one.kept:
            edges[one.writer] = False
    names = [str(graph.writers[one.writer]) for one in decisions]
    return AcdcResult(
        model=task.model.info.name,
        task=task.name,
        metric=task.metric_name,
        ablation=task.ablation,
        level="nodes",
        loss=loss,
        tau=tau,
        order="reverse",
        n=len(task),
        circuit=Circuit(graph, edges),
        effects=effects,
        examined=tuple(names),
        unevaluated=0,
        close=tuple(name for name, one in zip(names, decisions, strict=True) if one.close),
        losses=tuple(one.loss for one in decisions),
        rows=rows,
        wasted=wasted,
    )


def with_metric(task: CircuitTask, metric: Metric) -> CircuitTask:
    """The same task read by another metric, on the same engine."""
    other = replace(task, metric=metric)
    other.__dict__["engine"] = task.engine  # what it computed serves both
    return other


def check_tau(tau: float) -> None:
    """Refuse a threshold at which everything would stay, or that is no number."""
    if not np.isfinite(tau) or tau <= 0:
        raise InputError(f"tau is {tau}; it must be above 0.", "Use for example 0.01 (nats, for loss kl).")


def _losses(task: CircuitTask, loss: Metric, masks: np.ndarray, budget: int | None) -> Floats:
    """Mean loss of every circuit, [circuit]."""
    values = CircuitTask.evaluate_masks(with_metric(task, loss), masks, None, budget)
    return np.asarray(values.mean(1))


def _rows_at_once(task: CircuitTask, budget: int | None) -> int:
    """Removals whose streams fit into the budget, on all prompts."""
    from mech_interp.backends.huggingface.edges import DEFAULT_BUDGET

    info, width = task.model.info, task.clean.ids.shape[1]
    size = task.engine.clean.embed.element_size()
    streams = 2 * len(task.graph.writers) + 3 * (info.n_heads + 2 * info.n_kv_heads)
    row = len(task) * width * size * (streams * info.d_model + 3 * info.d_mlp)
    return max(1, min(MOST_ROWS, (budget or DEFAULT_BUDGET) // row))
