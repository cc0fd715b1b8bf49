"""Direct logit attribution: which components write the answer into the residual stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.backends.protocol import ForwardResult, InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.methods.common import (
    Floats,
    SanityError,
    Text,
    answer_ids,
    as_floats,
    at_position,
    batches,
    check_groups,
    is_exact,
    other_choice,
    prompt_positions,
    prompt_texts,
    token_text,
    widest,
)
from mech_interp.methods.dla_result import Component, DLAResult
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

TOLERANCE = 1e-4
"""Largest accepted gap between the sum of all terms and the logit difference, per max(1, |logit|)."""


def direct_logit_attribution(
    model: InstrumentedModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens,
    correct: Text | Sequence[Text],
    wrong: Text | Sequence[Text],
    *,
    position: int | Sequence[int] = -1,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> DLAResult:
    """Split logit(correct) - logit(wrong) exactly into what every component wrote.

    With u = W_U[:, correct] - W_U[:, wrong] and the final norm's scale sigma frozen at the full final
    residual stream, a component that wrote x contributes <(x - mean(x)) * gain / sigma, u> (RMSNorm:
    without the mean). Components: token and position embeddings, each head z_h W_O^h, each b_O, each MLP
    (its output bias included), the final norm's bias <beta, u>, and b_U[correct] - b_U[wrong]. Their sum
    is checked against the model's own logits in every call. Where the model caps its logits, the logits
    *before* the cap are attributed. Where attention's output passes a norm before it is added, heads
    are not linear in it, so the added output stands as one term per layer.

    The control is the same attribution along another prompt's answers (or random tokens'), where the
    components have no reason to agree.

    Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits" (direct path);
    Wang et al. 2022 (arXiv 2211.00593), section 3 and appendix.

    Args:
        model: a model with the sites z, attn_out, mlp_out and weights W_O, W_U.
        prompts: texts, lists of ids, or `Tokens`; n prompts.
        correct, wrong: answer tokens, as texts with leading space or ids; one, or one per prompt.
        position: where the answer is predicted, one or one per prompt; negative from the prompt's end.
        groups: bootstrap group per prompt.
        seed: of the control answers and the resampling.

    Returns:
        A `DLAResult`; terms are [n, components] in logits (nats).

    Raises:
        InputError: for answers that are not single tokens, or equal.
        SanityError: when the terms do not sum to the logit difference to 1e-4 * max(1, |logit|) in
            float32 or better (in half precision the remainder is a row of its own).
    """
    tokens = model.tokens(prompts)
    check_groups(groups, len(tokens))
    where = prompt_positions(tokens, position)
    right = answer_ids(model, tokens, correct, "correct")
    foil = answer_ids(model, tokens, wrong, "wrong")
    same = [i for i, (a, b) in enumerate(zip(right, foil, strict=True)) if a == b]
    if same:
        raise InputError(
            f"Prompt {same[0]} has the same correct and wrong answer.", "Give two different tokens."
        )
    pairs = list(zip(right, foil, strict=True))
    others, control_kind = other_choice(pairs, model.info.vocabulary, seed)
    answers = np.array([pairs, others], dtype=np.int64)
    split = _Splitter(model, len(tokens))
    width = model.info.n_layers * (5 * model.info.d_model) + model.info.vocabulary // 8
    for chosen, at in batches(tokens, where, width):
        split.add(tokens.select(chosen), at, answers[:, chosen], np.array(chosen))
    split.settle()
    return DLAResult(
        model=model.info.name,
        prompts=prompt_texts(tokens),
        positions=tuple(where),
        correct=tuple(token_text(model, i) for i in right),
        wrong=tuple(token_text(model, i) for i in foil),
        components=split.components,
        terms=split.terms[0],
        logit_difference=split.difference[0],
        control_terms=split.terms[1],
        control_difference=split.difference[1],
        control_kind=control_kind,
        gap=split.gap,
        softcapped=split.softcapped,
        n_layers=model.info.n_layers,
        n_heads=model.info.n_heads,
        groups=None if groups is None else tuple(groups),
        seed=seed,
    )


@dataclass(frozen=True)
class _Directions:
    """For target (0) and control (1) answers of a batch, on the host in the widest float.

    `pulled` [2, prompt, d_model] reads the residual stream, `raw` [2, prompt, d_model] the normalised one.
    """

    pulled: Tensor
    raw: Tensor
    bias: Tensor


class _Splitter:
    """Collects terms [target or control, prompt, component] batch by batch."""

    def __init__(self, model: InstrumentedModel, n: int) -> None:
        info = model.info
        self.model, self.n = model, n
        self.with_positions = "pos_embed" in info.site_kinds
        self.components: list[Component] = []
        self.terms = np.zeros((2, n, 0))
        self.difference = np.zeros((2, n))
        self.scale = np.ones((2, n))
        self.gap = 0.0
        self.softcapped = False
        layers = range(info.n_layers)
        kinds = ("z", "attn_out_own", "attn_out", "mlp_out")
        self.sites = [Site("embed"), *([Site("pos_embed")] if self.with_positions else [])]
        lacking = {("mlp_out", layer) for layer in layers if "mlp_out" not in info.site_kinds}
        lacking |= set(info.missing_sites)
        self.mlps = {layer for layer in layers if ("mlp_out", layer) not in lacking}  # not in attention-only
        self.sites += [Site(kind, n) for n in layers for kind in kinds if kind != "mlp_out" or n in self.mlps]
        self.sites += [Site("resid_post", info.n_layers - 1), Site("ln_final")]

    def add(self, tokens: Tokens, position: int, answers: Any, index: Any) -> None:
        """Attribute one batch; `answers` [2, prompt, 2], `index` where its prompts go."""
        import torch

        with torch.no_grad():
            result = self.model.forward(tokens, capture=self.sites, logits=(position,))
            vectors = {site: at_position(result.activations[site], tokens, position) for site in self.sites}
            ids = torch.as_tensor(answers, device=tokens.ids.device)
            along = self._directions(vectors, ids)
            parts = self._parts(vectors, along)
            self._reference(result, vectors, along, ids, index)
        components = [component for component, _ in parts]
        if not self.components:
            self.components = components
            self.terms = np.zeros((2, self.n, len(components)))
        if components != self.components:
            raise SanityError(
                "Attention's added output equals its own output for some prompts only.",
                "The backend's attn_out is inconsistent; report this model.",
            )
        self.terms[:, index] = np.stack([term for _, term in parts], axis=-1)

    def _directions(self, vectors: Mapping[Site, Tensor], ids: Tensor) -> _Directions:
        unembed = self.model.weights("W_U")
        raw = widest(unembed[:, ids[..., 0]] - unembed[:, ids[..., 1]]).permute(1, 2, 0)
        resid = widest(vectors[Site("resid_post", self.model.info.n_layers - 1)])
        bias = _weight(self.model, "b_U")
        none = raw.new_zeros(raw.shape[:2])
        offset = none if bias is None else widest(bias[ids[..., 0]]) - widest(bias[ids[..., 1]])
        return _Directions(self.model.final_norm_direction(resid, raw), raw, offset)

    def _parts(self, vectors: Mapping[Site, Tensor], along: _Directions) -> list[tuple[Component, Floats]]:
        """(component, [2, prompt]) in order of computation."""
        parts = [(Component("embed"), _dot(along.pulled, vectors[Site("embed")]))]
        if self.with_positions:
            parts.append((Component("pos_embed"), _dot(along.pulled, vectors[Site("pos_embed")])))
        for layer in range(self.model.info.n_layers):
            parts += self._attention(layer, vectors, along.pulled)
            if layer in self.mlps:
                parts.append((Component("mlp", layer), _dot(along.pulled, vectors[Site("mlp_out", layer)])))
        beta = _weight(self.model, "ln_final.b")
        if beta is not None:
            parts.append((Component("norm_bias"), _dot(along.raw, beta)))
        if _weight(self.model, "b_U") is not None:
            parts.append((Component("unembed_bias"), as_floats(along.bias)))
        return parts

    def _attention(
        self, layer: int, vectors: Mapping[Site, Tensor], pulled: Tensor
    ) -> list[tuple[Component, Floats]]:
        """Heads and b_O, or the added output as a whole where a norm stands between."""
        import torch

        own, added = vectors[Site("attn_out_own", layer)], vectors[Site("attn_out", layer)]
        if not bool((own == added).all()):
            return [(Component("attn", layer), _dot(pulled, added))]
        z = widest(vectors[Site("z", layer)])
        written = torch.einsum("phk,hkd->phd", z, widest(self.model.weights("W_O", layer)))
        values = as_floats(torch.einsum("tpd,phd->tph", pulled, written))
        parts = [(Component("head", layer, head), values[..., head]) for head in range(values.shape[-1])]
        bias = _weight(self.model, "b_O", layer)
        if bias is not None:
            parts.append((Component("attn_bias", layer), _dot(pulled, bias)))
        return parts

    def _reference(
        self,
        result: ForwardResult,
        vectors: Mapping[Site, Tensor],
        along: _Directions,
        ids: Tensor,
        index: Any,
    ) -> None:
        """The logit differences to be explained: the model's own, before its softcap where it has one."""
        assert result.logits is not None
        prompts = np.arange(len(index))[None, :, None]
        own = as_floats(result.logits[:, 0])[prompts, ids.cpu().numpy()]
        before = _dot(along.raw, vectors[Site("ln_final")]) + as_floats(along.bias)
        scale = np.maximum(1.0, np.abs(own).max(-1))
        difference = own[..., 0] - own[..., 1]
        if is_exact(self.model) and bool((np.abs(difference - before) > TOLERANCE * scale).any()):
            # A cap only ever shrinks; which cap it is does not matter, since it comes after these terms.
            if not self._is_capped(vectors, own, ids):
                raise SanityError(
                    "The unembedding of the captured final norm does not give the model's logits.",
                    "The backend's ln_final site or W_U is wrong; report this model.",
                )
            self.softcapped = True
            difference = before
        self.difference[:, index], self.scale[:, index] = difference, scale

    def _is_capped(self, vectors: Mapping[Site, Tensor], own: Floats, ids: Tensor) -> bool:
        unembed, bias = self.model.weights("W_U"), _weight(self.model, "b_U")
        columns = widest(unembed[:, ids]).permute(1, 2, 3, 0)  # [2, prompt, answer, d_model]
        normed = widest(vectors[Site("ln_final")])
        before = as_floats((columns * normed[None, :, None]).sum(-1))
        before += 0.0 if bias is None else as_floats(widest(bias[ids]))
        return bool((np.abs(own) <= np.abs(before) + 1e-6).all() and (own * before >= -1e-6).all())

    def settle(self) -> None:
        """Check the sums; in half precision keep what is left over as a row."""
        rest = self.difference - self.terms.sum(-1)
        self.gap = float((np.abs(rest) / self.scale).max())
        if not is_exact(self.model):
            self.components = [*self.components, Component("remainder")]
            self.terms = np.concatenate([self.terms, rest[..., None]], axis=-1)
        elif not self.gap <= TOLERANCE:
            worst = np.unravel_index(np.argmax(np.abs(rest) / self.scale), rest.shape)
            raise SanityError(
                f"The terms sum to {self.terms[worst].sum():.6g} where the logit difference is "
                f"{self.difference[worst]:.6g}: a gap of {self.gap:.1e}, and {TOLERANCE:g} is allowed.",
                "A component is missing for this architecture; report this model.",
            )


def _dot(direction: Tensor, vectors: Tensor) -> Floats:
    """<direction [2, prompt, d], vectors [prompt, d] or [d]> as [2, prompt]."""
    return as_floats((direction * widest(vectors)).sum(-1))


def _weight(model: InstrumentedModel, kind: str, layer: int | None = None) -> Tensor | None:
    """A bias, or None where the architecture has none (the sum check would show a wrong guess)."""
    try:
        return model.weights(kind, layer)
    except InputError:
        return None
