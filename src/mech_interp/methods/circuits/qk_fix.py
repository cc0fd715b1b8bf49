"""The QK fix of AtP*: queries and keys scored through the exact softmax that they make.

The softmax saturates, so a linear estimate at the queries or keys misses what a large change of them
does. Here the pattern is recomputed with the patched queries or keys, and only what follows the pattern
is linear: ``sum <pattern' - pattern, dm/d pattern>`` (Kramar et al. 2024, arXiv 2403.00745, section 3.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.backends.tokens import Tokens


def through_pattern(
    model: InstrumentedModel, base: Tokens, other: Tokens, site: Site, gradient: Tensor, by_position: bool
) -> Tensor:
    """Scores of the q or k nodes of one layer, [prompt, position or 1, head].

    Args:
        base, other: the runs patched into and from, prompt by prompt.
        site: q or k of a layer; k's heads are key/value heads.
        gradient: dm/d pattern at `base`, [prompt, head, query, key].

    A query's position is its row of the pattern. Patched keys compete in one softmax, so that the score
    of all positions together is not the sum of their scores.
    """
    scores = Site("attn_scores", site.layer)
    before = model.forward(base, capture=[scores], logits="none", stop_after=site.layer).activations[scores]
    edit = Intervention(site, Replace(FromRun("other")))
    after = model.forward(
        base,
        capture=[scores],
        interventions=[edit],
        runs={"other": other},
        logits="none",
        stop_after=site.layer,
    ).activations[scores]
    before, after, gradient = before.double(), after.double(), gradient.double()
    pattern = before.softmax(-1)
    if site.kind == "q":
        by_query = ((after.softmax(-1) - pattern) * gradient).sum(-1)  # [prompt, head, query]
        found = by_query.transpose(1, 2)
        return found if by_position else found.sum(1, keepdim=True)
    if by_position:
        found = _key_by_key(before, after, pattern, gradient)
    else:
        found = ((after.softmax(-1) - pattern) * gradient).sum((-1, -2))[:, None]
    n_kv = model.info.n_kv_heads
    return found.reshape(*found.shape[:2], n_kv, -1).sum(-1)


def _key_by_key(before: Tensor, after: Tensor, pattern: Tensor, gradient: Tensor) -> Tensor:
    """Keys patched one position at a time, [prompt, position, head]; a key makes one column of scores."""
    import torch

    parts = []
    for key in range(before.shape[-1]):
        mixed = before.clone()
        mixed[..., key] = after[..., key]
        parts.append(((mixed.softmax(-1) - pattern) * gradient).sum((-1, -2)))
    return torch.stack(parts, 1)
