"""Whether a backend shows the same values as the default engine, and lets the same edits through.

The identities of `checks` say nothing about queries, keys or norms; a port that points at the wrong
module shows only beside another implementation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mech_interp.backends.checks import TOLERANCE, probe_tokens
from mech_interp.errors import IdentityError
from mech_interp.interventions import Intervention, Scale
from mech_interp.sites import KINDS, Site

if TYPE_CHECKING:
    from mech_interp.backends.protocol import InstrumentedModel, ModelInfo
    from mech_interp.backends.tokens import Tokens


def require_agreement(model: InstrumentedModel, reference: InstrumentedModel) -> None:
    """Refuse a model whose sites differ from the reference's on the probe, as they are or under edits.

    The edits scale every site at once: one that reaches nothing makes what comes after it differ.

    Raises:
        IdentityError: naming the first site, in order of computation, that differs.
    """
    info = model.info
    # The heads' own outputs are large and follow from z, which is compared.
    sites = [site for site in sites_of(info) if site.kind != "result"]
    edits = [
        Intervention(site, Scale(0.9 if (site.layer or 0) % 2 else 1.1))
        for site in sites
        # Numbers of experts are not scaled; what can only be captured is not edited.
        if site.kind != "expert_indices" and site.kind not in info.capture_only
    ]
    bound = TOLERANCE.get(info.dtype, 6e-2)
    _compare(model, reference, sites, (), bound, "")
    # Rounding of narrow types adds up over hundreds of edits.
    wide = info.dtype in ("float32", "float64")
    _compare(model, reference, sites, edits, bound if wide else 4 * bound, " when the sites are edited")


def sites_of(info: ModelInfo) -> list[Site]:
    """Every site of a model, in order of computation."""
    kinds = [kind for kind in KINDS if kind in info.site_kinds]
    found = [Site(kind) for kind in kinds if not KINDS[kind].in_block]
    found += [
        Site(kind, layer)
        for kind in kinds
        if KINDS[kind].in_block
        for layer in range(info.n_layers)
        if (kind, layer) not in info.missing_sites
    ]
    return sorted(found, key=lambda site: site.order)


def _compare(
    model: InstrumentedModel,
    reference: InstrumentedModel,
    sites: Sequence[Site],
    edits: Sequence[Intervention],
    bound: float,
    when: str,
) -> None:
    tokens = probe_tokens(model.info)
    mine, theirs = (one.forward(tokens, capture=sites, interventions=edits) for one in (model, reference))
    for site in sites:
        gap = _gap(*(_real(one.activations[site], site, tokens, model.info) for one in (mine, theirs)))
        if not gap <= bound:
            raise IdentityError(
                f"{model.info.name} shows other values at {site} on the backend {model.info.backend} than on "
                f"{reference.info.backend}{when}: off by {gap:.2g}, where {bound:.0e} is allowed.",
                f"So it is not opened; the layout of {model.info.architecture} points at the wrong module.",
            )


def _gap(left: Tensor, right: Tensor) -> float:
    """Largest difference, relative to the largest magnitude (at least 1); infinite when not finite."""
    if left.shape != right.shape or not bool(torch.isfinite(left).all()):
        return float("inf")
    scale = max(1.0, float(left.abs().max()), float(right.abs().max()))
    return float((left - right).abs().max()) / scale


def _real(value: Tensor, site: Site, tokens: Tokens, info: ModelInfo) -> Tensor:
    """The values at real positions, [n, ...]; keys that a query does not see are zero."""
    hidden = max(torch.finfo(value.dtype).min / 2, -1e30) if value.is_floating_point() else -torch.inf
    value = value.detach().double()
    if site.spec.over_keys:
        seen = tokens.mask[:, None, :].expand(value.shape[0], value.shape[-1], -1)
        if info.causal:
            seen = seen & torch.ones_like(seen).tril()
        # A window hides keys too, with the lowest number that there is.
        value = value.transpose(1, 2)
        value = value.masked_fill(~seen[:, :, None] | (value < hidden), 0)
    return value[tokens.mask]
