"""Node attribution (AtP): a first-order score for heads, MLPs, residual sites, queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mech_interp.backends.huggingface.backward_rules import RULES, Rules, backward_rules
from mech_interp.backends.protocol import Capability, Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError, nearest
from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.methods.circuits.attribution import (
    DEFAULT_BUDGET,
    check_choices,
    make_claims,
    measure_error,
)
from mech_interp.methods.circuits.attribution_result import AttributionResult
from mech_interp.methods.circuits.common import (
    DIRECTIONS,
    CircuitTask,
    Direction,
    row_values,
    shrinking,
)
from mech_interp.methods.common import Floats, as_floats
from mech_interp.sites import KINDS, Site

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.protocol import Activations

_SHORT = {"z": "a{layer}.h{head}", "mlp_out": "m{layer}"}


@dataclass(frozen=True)
class Node:
    """A site (with its head where the kind has heads) at one position, or pooled over all (None)."""

    site: Site
    position: int | None = None

    def __str__(self) -> str:
        site = self.site
        plain = site.kind if site.layer is None else f"{site.kind}.{site.layer}"
        plain = plain if site.head is None else f"{plain}.{site.head}"
        name = _SHORT[site.kind].format(layer=site.layer, head=site.head) if site.kind in _SHORT else plain
        return name if self.position is None else f"{name}@{self.position}"

    def patch(self) -> tuple[Intervention, ...]:
        """The intervention that gives the node its value in the other run."""
        at = None if self.position is None else (self.position,)
        return (Intervention(self.site, Replace(FromRun("other")), at),)


def node_attribution(
    task: CircuitTask,
    *,
    kinds: Sequence[str] = ("z", "mlp_out"),
    by_position: bool = False,
    direction: Direction = "noising",
    qk_fix: bool = False,
    rules: Rules = "none",
    check: int = 64,
    check_prompts: int | None = 32,
    claims: int = 16,
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> AttributionResult:
    """Score every node by attribution patching, and say how wrong the scores are.

    The score of a node on a prompt is ``sum <other - base, dm/d node at base>`` over its positions and
    features, in the metric's unit: the first-order estimate of patching the node with its value in the
    other run. Base is the clean run for noising, the corrupt run for denoising. With `qk_fix`, nodes of
    kind q and k are scored through the pattern that they make, its softmax recomputed exactly with the
    patched queries or keys, linear from the pattern on.

    Each call also patches exactly `check` random nodes and the `claims` largest ones, as
    `edge_attribution` does.

    Source: Nanda 2023; Kramar et al. 2024 (arXiv 2403.00745), section 3.1 for the fix.

    Args:
        kinds: site kinds, such as z, mlp_out, resid_pre, resid_post, attn_out, q, k, v.
        rules: ``none``, or ``relp`` for gradients that pass norms at a frozen scale and activations by
            the slope of their secant.
        by_position: score every position apart (needs prompts of one length) rather than all together.

    Raises:
        CapabilityError: for a backend without gradients.
        InputError: for kinds that the model lacks, ablations other than corrupt, unequal lengths.
        UnstableRatioError: when clean and corrupt do not differ by three standard errors.
    """
    check_choices(1, rule=(rules, RULES), direction=(direction, DIRECTIONS))
    _check(task, kinds, by_position)
    task.refuse_vanishing()
    nodes = _nodes(task, kinds, by_position)
    base, other = (task.clean, task.corrupt) if direction == "noising" else (task.corrupt, task.clean)

    def run(prompts: Sequence[int]) -> Floats:
        with backward_rules(task.model, rules):
            return _scores(task, base, other, kinds, by_position, qk_fix, list(prompts))

    def exact(items: Sequence[int], prompts: Sequence[int]) -> Floats:
        chosen = [nodes[item] for item in items]
        return exact_nodes(task, chosen, direction, prompts, memory_budget)

    size = max(1, (memory_budget or DEFAULT_BUDGET) // _bytes_per_prompt(task))
    parts, used = shrinking(range(len(task)), min(size, len(task)), run, progress)
    scores = np.concatenate(parts)
    return AttributionResult(
        model=task.model.info.name,
        task=task.name,
        what="nodes",
        method=("relp" if rules == "relp" else "atp") + (" with the QK fix" if qk_fix else ""),
        direction=direction,
        ablation=task.ablation,
        metric=task.metric_name,
        labels=tuple(str(node) for node in nodes),
        graph=None,
        scores=scores,
        full=task.full,
        empty=task.empty,
        groups=task.groups,
        approximation=measure_error(scores, exact, check, check_prompts, seed),
        claims=make_claims(task, scores, exact, claims, seed),
        seed=seed,
        at_once=used,
    )


def exact_nodes(
    task: CircuitTask,
    nodes: Sequence[Node],
    direction: Direction,
    prompts: Sequence[int],
    memory_budget: int | None = None,
) -> Floats:
    """What patching one node changes in the metric, [prompt, node]."""
    base, other = (task.clean, task.corrupt) if direction == "noising" else (task.corrupt, task.clean)
    start = task.full if direction == "noising" else task.empty
    edits = [node.patch() for node in nodes]
    rows = [Row(prompt, edit) for prompt in prompts for edit in edits]
    runs = {"base": base, "other": other}
    values = row_values(task.model, runs, rows, task.metric, memory_budget=memory_budget)
    return values.reshape(len(prompts), len(nodes)) - start[list(prompts)][:, None]


def _check(task: CircuitTask, kinds: Sequence[str], by_position: bool) -> None:
    info = task.model.info
    if task.ablation != "corrupt":
        raise InputError(
            f"Nodes are patched with the corrupt run, not with ablation {task.ablation!r}.",
            "Use ablation corrupt, or attribute edges.",
        )
    if Capability.GRADIENTS not in info.capabilities:
        raise CapabilityError(
            f"The backend {info.backend} gives no gradients.", "Use the default backend, huggingface."
        )
    for kind in kinds:
        if kind in info.missing_kinds or kind not in KINDS:
            why = info.missing_kinds.get(kind, "it is no kind of site")
            raise InputError(
                f"Nodes cannot be of kind {kind!r}: {why}.", nearest(kind, KINDS) or "See sites."
            )
        if KINDS[kind].over_keys or not KINDS[kind].in_block:
            raise InputError(
                f"Nodes of kind {kind!r} are not scored.", "Use kinds inside blocks with features, such as z."
            )
    if not kinds:
        raise InputError("No kinds of nodes were given.", "Give for example z and mlp_out.")
    if by_position and len(set(task.clean.lengths)) > 1:
        raise InputError(
            f"The prompts have {min(task.clean.lengths)} to {max(task.clean.lengths)} tokens, so positions "
            "do not align.",
            "Use prompts of one length, or pool over positions.",
        )


def _nodes(task: CircuitTask, kinds: Sequence[str], by_position: bool) -> list[Node]:
    """In the order of the scores' columns: kind, layer, position, head."""
    info = task.model.info
    places: list[int | None] = list(range(task.clean.lengths[0])) if by_position else [None]
    return [
        Node(Site(kind, layer, head), position)
        for kind in kinds
        for layer in range(info.n_layers)
        for position in places
        for head in (range(info.heads(kind)) if KINDS[kind].heads else [None])
    ]


def _scores(
    task: CircuitTask,
    base: Tokens,
    other: Tokens,
    kinds: Sequence[str],
    by_position: bool,
    qk_fix: bool,
    prompts: list[int],
) -> Floats:
    """[prompt, node]."""
    from mech_interp.methods.circuits.qk_fix import through_pattern

    layers = range(task.model.info.n_layers)
    fixed = [kind for kind in kinds if qk_fix and kind in ("q", "k")]
    sites = [Site(kind, layer) for kind in kinds if kind not in fixed for layer in layers]
    patterns = [Site("pattern", layer) for layer in layers] if fixed else []
    own, outer = base.select(prompts), other.select(prompts)
    values, gradients = gradients_at(task, own, [*sites, *patterns], prompts)
    changed = task.model.forward(outer, capture=sites, logits="none").activations if sites else {}
    columns = []
    for kind in kinds:
        for layer in layers:
            site = Site(kind, layer)
            if kind in fixed:
                gradient = gradients[Site("pattern", layer)]
                part = through_pattern(task.model, own, outer, site, gradient, by_position)
            else:
                part = ((changed[site] - values[site]).double() * gradients[site].double()).sum(-1)
                part = part if by_position else part.sum(1, keepdim=True)
            columns.append(part.reshape(len(prompts), -1))
    return np.concatenate([as_floats(column) for column in columns], 1)


def gradients_at(
    task: CircuitTask, tokens: Tokens, sites: Sequence[Site], prompts: Sequence[int]
) -> tuple[Activations, dict[Site, Tensor]]:
    """Values of the sites on `tokens`, and the metric's gradient at each; prompts as the task counts."""
    import torch

    metric = task.metric
    result = task.model.forward(tokens, capture=sites, logits=list(metric.positions), grad=True)
    assert result.logits is not None
    logits, wanted = result.logits, metric.token_ids(prompts)
    if wanted is not None:
        ids = wanted.to(logits.device)[:, None].expand(-1, logits.shape[1], -1)
        logits = logits.gather(-1, ids)
    total = metric(logits, prompts).sum()
    found = torch.autograd.grad(total, [result.activations[site] for site in sites], allow_unused=True)
    gradients = {
        site: torch.zeros_like(result.activations[site]) if gradient is None else gradient
        for site, gradient in zip(sites, found, strict=True)
    }
    return result.activations, gradients


def _bytes_per_prompt(task: CircuitTask) -> int:
    """A graph of about 20 streams a layer, its MLPs and patterns."""
    info, width = task.model.info, task.clean.ids.shape[1]
    layer = 20 * info.d_model + 4 * info.d_mlp + 4 * info.n_heads * width
    return 8 * width * info.n_layers * layer
