"""Identities that every opened model must satisfy before it is handed out.

A wrong layout gives plausible wrong tensors; these sums catch it without any reference values. Only
the logits are compared with a reference: the library's own forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mech_interp.backends.protocol import Activations, InstrumentedModel, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import IdentityError
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

# Largest deviation, relative to the largest magnitude on either side (at least 1).
TOLERANCE = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
# A probe past a sliding window has at most so many tokens, and so many times the model's parameters:
# beyond, it would take longer than loading the model (about half a minute on two CPU cores).
LONGEST_PROBE = 520
DEAREST_PROBE = 2.5e11


@dataclass(frozen=True)
class Identity:
    """One identity measured on a probe: its largest relative deviation and the bound it must keep."""

    name: str
    layer: int | None
    deviation: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the deviation is within the bound (NaN is not)."""
        return self.deviation <= self.bound


def probe_tokens(info: ModelInfo) -> Tokens:
    """Two prompts of different lengths, spread over the vocabulary; the same for every run.

    The longer one runs two tokens past the shortest sliding window where that is cheap. Elsewhere (the
    windows of thousands of tokens in large checkpoints) nothing at load shows whether a layer has the
    right window; that its kind of window is computed rightly is shown on tiny models, by the tests.
    """
    past = min((window + 2 for window in info.windows if window is not None), default=0)
    cheap = past <= LONGEST_PROBE and 1.5 * past * info.n_parameters <= DEAREST_PROBE
    longest = max(2, min(max(9, past if cheap else 0), info.context - 1))
    rows = [[(37 + 101 * i) % info.vocabulary for i in range(longest)]]
    rows.append([(11 + 53 * i) % info.vocabulary for i in range(max(1, longest // 2))])
    return Tokens.from_lists(rows).to(info.device)


def measure_identities(
    model: InstrumentedModel, reference: Callable[[Tokens], list[Tensor]] | None = None
) -> list[Identity]:
    """Measure every identity that the model's sites allow, on the probe prompts.

    `reference` gives the library's own logits, one [position, vocabulary] tensor per prompt.
    """
    info = model.info
    bound = TOLERANCE.get(info.dtype, 6e-2)
    tokens = probe_tokens(info)
    kinds = ["resid_pre", "v", "pattern", "z", "attn_out_own", "attn_out", "mlp_post", "mlp_out_own"]
    kinds += ["mlp_out", "resid_mid", "resid_post"]
    offered = [kind for kind in kinds if kind in info.site_kinds]
    found = []
    places = [(kind, layer) for kind in offered for layer in range(info.n_layers)]
    result = model.forward(
        tokens, capture=[Site(*place) for place in places if place not in info.missing_sites]
    )
    assert result.logits is not None
    if reference is not None:
        expected = reference(tokens)
        gaps = [_gap(result.logits[i, : tokens.lengths[i]], expected[i]) for i in range(len(tokens))]
        found.append(Identity("logits = the library's own forward", None, max(gaps), bound))
    for layer in range(info.n_layers):
        found += _block_identities(model, result.activations, tokens, layer, bound)
    return found


def verify(model: InstrumentedModel, reference: Callable[[Tokens], list[Tensor]] | None = None) -> None:
    """Refuse a model that fails an identity.

    Raises:
        IdentityError: naming the identity, the layer and the deviation.
    """
    for identity in measure_identities(model, reference):
        if not identity.holds:
            where = "" if identity.layer is None else f" in layer {identity.layer}"
            raise IdentityError(
                f"{model.info.name} fails the identity '{identity.name}'{where}: it is off by "
                f"{identity.deviation:.2g}, where {identity.bound:.0e} is allowed.",
                "Its sites would carry wrong values, so it is not opened; the checkpoint's weights or the "
                f"layout of {info_architecture(model)} are at fault.",
            )


def info_architecture(model: InstrumentedModel) -> str:
    """The architecture's name for messages."""
    return model.info.architecture


def _block_identities(
    model: InstrumentedModel, seen: Activations, tokens: Tokens, layer: int, bound: float
) -> list[Identity]:
    import torch

    mask = tokens.mask
    has = {site.kind for site in seen if site.layer == layer}

    def at(kind: str) -> Tensor:
        return seen[Site(kind, layer)]

    def add(name: str, left: Tensor, right: Tensor) -> None:
        found.append(Identity(name, layer, _gap(left[mask], right[mask]), bound))

    found: list[Identity] = []
    if {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= has:
        total = at("resid_pre") + at("attn_out") + at("mlp_out")
        add("resid_pre + attn_out + mlp_out = resid_post", total, at("resid_post"))
    if {"resid_pre", "attn_out", "resid_post"} <= has and "mlp_out" not in has:
        add("resid_pre + attn_out = resid_post", at("resid_pre") + at("attn_out"), at("resid_post"))
    if {"resid_pre", "attn_out", "resid_mid"} <= has:
        add("resid_pre + attn_out = resid_mid", at("resid_pre") + at("attn_out"), at("resid_mid"))
    if "pattern" in has:
        rows = at("pattern").transpose(1, 2)
        add("pattern rows sum to 1", rows.double().sum(-1), torch.ones_like(rows[..., 0]).double())
    if {"pattern", "v", "z"} <= has:
        values = at("v").repeat_interleave(model.info.n_heads // model.info.n_kv_heads, dim=2)
        mixed = torch.einsum("rhqk,rkhd->rqhd", at("pattern"), values)
        add("pattern · v = z", mixed, at("z"))
    if {"z", "attn_out_own"} <= has:
        summed = torch.einsum("rphd,hdm->rpm", at("z"), model.weights("W_O", layer))
        summed = _plus(model, summed, "b_O", layer)
        add("sum over heads of z W_O + b_O = attn.hook_out", summed, at("attn_out_own"))
    for own, added, norm in (
        ("attn_out_own", "attn_out", "ln1_post"),
        ("mlp_out_own", "mlp_out", "ln2_post"),
    ):
        if {own, added} <= has:
            normed = _post_norm(model, at(own), norm, layer)
            add(f"what is added by the sublayer = its own output through {norm}", normed, at(added))
    if {"mlp_post", "mlp_out_own"} <= has:
        projected = at("mlp_post") @ model.weights("W_out", layer)
        projected = _plus(model, projected, "b_out", layer)
        add("mlp_post W_out + b_out = mlp.hook_out", projected, at("mlp_out_own"))
    return found


def _plus(model: InstrumentedModel, x: Tensor, bias: str, layer: int) -> Tensor:
    from mech_interp.errors import InputError

    try:
        return x + model.weights(bias, layer)
    except InputError:
        return x  # the architecture has no such bias


def _post_norm(model: InstrumentedModel, x: Tensor, norm: str, layer: int) -> Tensor:
    """The post-norm written out from its weights; x itself where the architecture has none."""
    from mech_interp.errors import InputError

    try:
        gain = model.weights(f"{norm}.w", layer)
    except InputError:
        return x
    wide = x.double()
    rms = (wide.pow(2).mean(-1, keepdim=True) + model.info.norm_eps).sqrt()
    return wide / rms * gain.double()


def _gap(left: Tensor, right: Tensor) -> float:
    """Largest difference relative to the largest magnitude (at least 1); infinite when not finite."""
    import torch

    left, right = left.double(), right.double()
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        return float("inf")
    scale = max(1.0, float(left.abs().max()), float(right.abs().max()))
    return float((left - right).abs().max()) / scale
