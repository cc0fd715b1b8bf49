"""Edge attribution: a first-order score for every edge, with the error of that approximation measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mech_interp.backends.huggingface.backward_rules import RULES, Rules
from mech_interp.backends.protocol import Progress
from mech_interp.errors import InputError, nearest
from mech_interp.methods.circuits.approximation import Approximation, Claims
from mech_interp.methods.circuits.attribution_result import AttributionResult
from mech_interp.methods.circuits.common import DIRECTIONS, CircuitTask, Direction, chosen_prompts, shrinking
from mech_interp.methods.circuits.edge_positions import MOST, ByPosition, edge_positions
from mech_interp.methods.common import Floats, Ints, as_floats, rounding
from mech_interp.statistics import max_t_test, split_halves

VARIANTS = ("eap", "ig-inputs", "ig-activations", "clean-corrupt")
DEFAULT_BUDGET = 1 << 30
Exact = Callable[[Sequence[int], Sequence[int]], Floats]
"""(items, prompts) to the exact effects, [prompt, item]."""


def edge_attribution(
    task: CircuitTask,
    *,
    variant: str = "eap",
    steps: int = 5,
    direction: Direction = "noising",
    rules: Rules = "none",
    by_position: bool = False,
    check: int = 64,
    check_prompts: int | None = 32,
    claims: int = 16,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> AttributionResult:
    """Score every edge by edge attribution patching, and say how wrong the scores are.

    The score of edge u -> v on a prompt is ``sum_positions <ablated_u - live_u, dm/d input_v>``, in the
    metric's unit: the first-order estimate of what ablating the edge does to the clean run (noising), or
    of what giving it its clean value does to the corrupt run (denoising).

    Each call also intervenes exactly, with the edge engine: on `check` edges drawn at random, for the
    correlation and error of the approximation, and on the `claims` edges of largest |mean score| on one
    half of the groups, whose effects are measured and tested on the other half.

    Source: Nanda 2023; Syed et al. 2023 (arXiv 2310.10348); Hanna et al. 2024 (arXiv 2403.17806) for
    the variants with integrated gradients.

    Args:
        variant: ``eap``; ``ig-inputs`` averages gradients over `steps` points between the embeddings;
            ``ig-activations`` between the outputs of each group of writers; ``clean-corrupt`` over the
            two ends.
        direction: ``noising`` or ``denoising``.
        rules: ``none``, or ``relp`` for gradients that pass norms at a frozen scale and activations by the
            slope of their secant (Jafari et al. 2025).
        by_position: also take the strongest edges apart by position (`AttributionResult.positions`).
        check: edges checked; 0 for none. check_prompts: on how many prompts (None: all).
        claims: edges claimed; 0 for none.
        memory_budget: bytes for gradients and for exact rows.

    Raises:
        UnstableRatioError: when clean and ablated runs do not differ by three standard errors.
        CapabilityError: for a backend or architecture without edges.
        InputError: for a metric whose gradient vanishes, or an unknown variant.
    """
    check_choices(steps, variant=(variant, VARIANTS), direction=(direction, DIRECTIONS), rule=(rules, RULES))
    if direction == "denoising":
        _ = task.exchanged  # refused here for ablations without prompts
    graph = task.engine.graph
    task.refuse_vanishing()
    how = variant, steps, direction, rules, memory_budget

    def apart(items: Sequence[int]) -> Floats:
        writers, readers = np.argwhere(graph.possible)[list(items)].T
        return _scores(task, *how, None, (writers, readers))[0]

    scores, at_once = _scores(task, *how, progress)
    return edge_result(
        task,
        scores[:, graph.possible],
        method_name(variant, steps, rules),
        direction,
        check=check,
        check_prompts=check_prompts,
        claims=claims,
        seed=seed,
        memory_budget=memory_budget,
        at_once=at_once,
        by_position=apart if by_position else None,
    )


def method_name(variant: str, steps: int, rules: str) -> str:
    """What results call a variant with its steps and backward rules."""
    plain = variant if variant in ("eap", "clean-corrupt") else f"{variant}, {steps} steps"
    return plain if rules == "none" else f"{plain}, {rules} rules"


def edge_result(
    task: CircuitTask,
    scores: Floats,
    method: str,
    direction: Direction,
    *,
    check: int,
    check_prompts: int | None,
    claims: int,
    seed: int,
    memory_budget: int | None,
    at_once: int,
    by_position: ByPosition | None = None,
) -> AttributionResult:
    """Scores of all edges [prompt, edge] with the exact interventions that tell how wrong they are.

    `by_position` scores the strongest edges position by position, where that is wanted.
    """
    graph = task.graph
    places = np.argwhere(graph.possible)

    def exact(items: Sequence[int], prompts: Sequence[int]) -> Floats:
        return exact_edges(task, places[list(items)], direction, prompts, memory_budget)

    frozen = any(not isinstance(scale, float) for scale in task.engine.clean.scales)
    positions = None
    if by_position is not None:
        items = [int(i) for i in np.argsort(-np.abs(scores.mean(0)), kind="stable")[:MOST]]
        names = [graph.edge_name(*places[item]) for item in items]
        lengths, groups = task.clean.lengths, task.groups
        positions = edge_positions(by_position(items), scores[:, items], names, lengths, groups, seed)
    return AttributionResult(
        model=task.model.info.name,
        task=task.name,
        what="edges",
        method=method,
        direction=direction,
        ablation=task.ablation,
        metric=task.metric_name,
        labels=None,
        graph=graph,
        scores=scores,
        full=task.full,
        empty=task.empty,
        groups=task.groups,
        approximation=measure_error(scores, exact, check, check_prompts, seed),
        claims=make_claims(task, scores, exact, claims, seed),
        seed=seed,
        at_once=at_once,
        positions=positions,
        notes=("the scale of the norm behind attention is frozen at the clean run",) if frozen else (),
    )


def exact_edges(
    task: CircuitTask,
    edges: np.ndarray,
    direction: Direction,
    prompts: Sequence[int],
    memory_budget: int | None = None,
) -> Floats:
    """What giving one edge its ablated value does to the clean run, [prompt, edge], in the metric's unit.

    For denoising: what giving it its clean value does to the corrupt run, where its writer's own output
    would be that of corrupt inputs. `edges` [n, 2] are (writer, reader) numbers.
    """
    if direction == "denoising":
        return exact_edges(task.exchanged, edges, "noising", prompts, memory_budget)
    if not len(edges):
        return np.zeros((len(prompts), 0))
    masks = np.repeat(task.graph.possible[None], len(edges), 0)
    masks[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    values = task.evaluate_masks(masks, list(prompts), memory_budget)
    return np.asarray((values - task.full[list(prompts)]).T)


def measure_error(
    scores: Floats, exact: Exact, count: int, most_prompts: int | None, seed: int
) -> Approximation | None:
    """Exact effects of random items against their scores, on the same prompts; None for no items."""
    if count < 1 or scores.shape[1] == 0:
        return None
    prompts = chosen_prompts(len(scores), most_prompts, seed)
    generator = np.random.default_rng(seed)
    items = generator.choice(scores.shape[1], min(count, scores.shape[1]), replace=False)
    chosen: Ints = np.sort(items).astype(np.int64)
    effects = exact([int(i) for i in chosen], prompts)
    return Approximation(chosen, tuple(prompts), scores[prompts][:, chosen], effects, seed)


def make_claims(task: CircuitTask, scores: Floats, exact: Exact, count: int, seed: int) -> Claims | None:
    """The largest scores on one half of the groups, their exact effects tested on the other half."""
    if count < 1 or len(set(task.groups)) < 2 or scores.shape[1] == 0:
        return None
    choose, quote = split_halves(task.groups, seed=seed)
    mean = scores[choose].mean(0)
    items = np.argsort(-np.abs(mean), kind="stable")[: min(count, scores.shape[1])].astype(np.int64)
    prompts = [int(i) for i in quote]
    effects = exact([int(i) for i in items], prompts)
    groups = tuple(task.groups[i] for i in prompts)
    size = max(1.0, float(np.abs(task.full).max()))
    test = max_t_test(effects, groups, seed=seed, noise_floor=rounding(task.model) * size)
    return Claims(items, tuple(prompts), scores[prompts][:, items], effects, groups, test, seed)


def check_choices(steps: int, **chosen: tuple[str, Sequence[str]]) -> None:
    """Refuse no steps, or a choice (named, with what there is to choose from) that does not exist."""
    for what, (one, known) in chosen.items():
        if one not in known:
            raise InputError(
                f"There is no {what} {one!r}.", nearest(one, known) or f"Use {', '.join(known)}."
            )
    if steps < 1:
        raise InputError(f"{steps} steps are none.", "Use at least one; 5 is the default.")


def _scores(
    task: CircuitTask,
    variant: str,
    steps: int,
    direction: Direction,
    rules: Rules,
    memory_budget: int | None,
    progress: Progress | None,
    apart: tuple[Ints, Ints] | None = None,
) -> tuple[Floats, int]:
    """[prompt, writer, reader], and how many prompts were run at once; of edges taken `apart` (writers,
    readers) [prompt, position, edge]."""
    from mech_interp.backends.huggingface.edge_gradients import edge_scores

    def run(prompts: Sequence[int]) -> Floats:
        found = edge_scores(
            task.engine,
            task.metric,
            variant=variant,  # type: ignore[arg-type]  # checked on entry
            steps=steps,
            direction=direction,
            rules=rules,
            by_position=apart is not None,
            prompts=list(prompts),
        )
        return as_floats(found if apart is None else found[:, :, apart[0], apart[1]])

    size = max(1, (memory_budget or DEFAULT_BUDGET) // _bytes_per_prompt(task))
    parts, used = shrinking(range(len(task)), min(size, len(task)), run, progress)
    return np.concatenate(parts), used


def _bytes_per_prompt(task: CircuitTask) -> int:
    """What the gradients of one prompt hold: writers' changes, and a graph of about 20 streams a layer."""
    info, width = task.model.info, task.clean.ids.shape[1]
    streams = 3 * len(task.graph.writers) + info.n_layers * (20 + 3 * info.n_heads)
    attention = info.n_layers * info.n_heads * width
    itemsize = task.engine.clean.embed.element_size()
    return width * itemsize * (streams * info.d_model + 4 * info.n_layers * info.d_mlp + attention)
