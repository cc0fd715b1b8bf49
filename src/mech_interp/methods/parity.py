"""Does another backend show the same values? Sites, next-token distributions and continuations compared.

A reading keeps one model's values on the host, so that the models that are compared need never be in
memory together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mech_interp.sites import KINDS, Site

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.protocol import InstrumentedModel, ModelInfo
    from mech_interp.backends.tokens import Tokens

NEW_TOKENS = 8
"""Tokens of every greedy continuation."""
KL_BOUND = 1e-6
"""Largest KL divergence of next-token distributions in single precision, in nats."""
_HALF = {"bfloat16": 6e-2, "float16": 2e-2}
_HALF_KL = 1e-2


def bound_for(dtype: str, bound: float) -> float:
    """The largest relative difference in a number format, where `bound` holds in single precision."""
    return max(bound, _HALF.get(dtype, 0.0))


def kl_bound_for(dtype: str) -> float:
    """The largest KL divergence in a number format, in nats."""
    return _HALF_KL if dtype in _HALF else KL_BOUND


@dataclass(frozen=True)
class Reading:
    """What one model showed.

    Attributes:
        info: the model.
        ids: token ids of each prompt.
        sites: values at real positions, [n, …] on the host; keys that a query does not see are zero.
        log_probs: of the next token, [n, vocabulary], double precision.
        continuations: token ids of the greedy continuation of each prompt.
    """

    info: ModelInfo
    ids: tuple[tuple[int, ...], ...]
    sites: Mapping[Site, Tensor]
    log_probs: Tensor
    continuations: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class SiteGap:
    """The largest difference at sites of one kind, relative to the largest magnitude at that site.

    `layer` is where it lies (None outside the blocks), `n` how many sites of the kind were compared.
    """

    kind: str
    gap: float
    layer: int | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """One model beside the reference.

    Attributes:
        sites: by kind, in order of computation.
        kl: largest KL divergence of next-token distributions over all positions, in nats.
        tokens_equal: whether both read the same token ids from the prompts.
        continuations_equal: whether both go on with the same tokens.
        not_shown: kinds that the reference shows and this one does not, with the reason.
    """

    sites: tuple[SiteGap, ...]
    kl: float
    tokens_equal: bool
    continuations_equal: bool
    not_shown: Mapping[str, str] = field(default_factory=dict)


def read(model: InstrumentedModel, prompts: Sequence[str] | Sequence[Sequence[int]]) -> Reading:
    """Run the prompts: every site that the model has, all logits, greedy continuations."""
    import torch

    info = model.info
    tokens = model.tokens(prompts)
    sites = [site for site in sites_of(info) if site.kind != "logits"]
    result = model.forward(tokens, capture=sites)
    assert result.logits is not None
    mask = tokens.mask.cpu()
    logits = result.logits.detach().cpu()[mask].double()
    kept = {site: real_values(result.activations[site], site, tokens, info) for site in sites}
    made: tuple[tuple[int, ...], ...] = ()
    room = info.context - max(tokens.lengths)
    if "generate" in info.capabilities and room > 0:
        made = model.generate(tokens, max_new_tokens=min(NEW_TOKENS, room), stop_ids=()).ids
    return Reading(
        info,
        tuple(tuple(tokens.row(i)) for i in range(len(tokens))),
        {**kept, Site("logits"): logits.to(torch.float64)},
        logits.log_softmax(-1),
        made,
    )


def compare(reference: Reading, other: Reading) -> Comparison:
    """Both readings, of the same prompts."""
    equal = reference.ids == other.ids
    worst: dict[str, SiteGap] = {}
    for site, wanted in reference.sites.items():
        if site not in other.sites:
            continue
        gap = relative_gap(wanted, other.sites[site]) if equal else math.inf
        before = worst.get(site.kind)
        n = 1 + (0 if before is None else before.n)
        if before is None or not gap <= before.gap:
            worst[site.kind] = SiteGap(site.kind, gap, site.layer, n)
        else:
            worst[site.kind] = SiteGap(site.kind, before.gap, before.layer, n)
    return Comparison(
        sites=tuple(worst[kind] for kind in KINDS if kind in worst),
        kl=divergence(reference.log_probs, other.log_probs) if equal else math.inf,
        tokens_equal=equal,
        continuations_equal=reference.continuations == other.continuations,
        not_shown=_not_shown(reference.info, other.info),
    )


def sites_of(info: ModelInfo) -> list[Site]:
    """Every site of a model, in order of computation."""
    found = [
        Site(kind, layer)
        for kind in KINDS
        if kind in info.site_kinds
        for layer in (range(info.n_layers) if KINDS[kind].in_block else (None,))
        if layer is None or (kind, layer) not in info.missing_sites
    ]
    return sorted(found, key=lambda site: site.order)


def real_values(value: Tensor, site: Site, tokens: Tokens, info: ModelInfo) -> Tensor:
    """The values at real positions, [n, …] on the host; keys that a query does not see become zero."""
    import torch

    value, mask = value.detach().cpu(), tokens.mask.cpu()
    if site.spec.over_keys:  # [prompt, head, query, key] to [prompt, query, head, key]
        width = value.shape[-1]
        seen = mask[:, None, :].expand(-1, width, -1)
        if info.causal:
            seen = seen & torch.ones(width, width, dtype=torch.bool).tril()
        value = value.transpose(1, 2).masked_fill(~seen[:, :, None], 0)
        # A key outside a sliding window counts as unseen, however a library writes minus infinity.
        value = value.masked_fill(value < -1e4, 0)
    return value[mask]


def relative_gap(wanted: Tensor, found: Tensor) -> float:
    """Largest difference relative to the largest wanted magnitude; infinite where it makes no sense.

    Values that are all zero are compared with 1.
    """
    import torch

    if wanted.shape != found.shape:
        return math.inf
    left, right = wanted.double(), found.double()
    if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
        return math.inf
    if not left.numel():
        return 0.0
    scale = float(left.abs().max()) or 1.0
    return float((left - right).abs().max()) / scale


def divergence(wanted: Tensor, found: Tensor) -> float:
    """Largest KL(wanted || found) over rows of log-probabilities [n, vocabulary], in nats."""
    if wanted.shape != found.shape:
        return math.inf
    worst = float((wanted.exp() * (wanted - found)).sum(-1).max())
    # Below zero by rounding only.
    return max(0.0, worst) if math.isfinite(worst) else math.inf


def _not_shown(reference: ModelInfo, other: ModelInfo) -> dict[str, str]:
    lacking = [kind for kind in KINDS if kind in reference.site_kinds - other.site_kinds]
    return {kind: other.missing_kinds.get(kind, "not offered by this backend") for kind in lacking}
