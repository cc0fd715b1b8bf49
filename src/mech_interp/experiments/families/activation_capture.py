"""Activation capture: what the values at chosen sites look like over a set of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from mech_interp.backends.protocol import Capability, InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import InputError
from mech_interp.experiments.capture_report import SiteStatistics, report
from mech_interp.experiments.context import Context
from mech_interp.experiments.data import DataParams, Need
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.parts import DataFamily, check_layers, data_of, portions
from mech_interp.experiments.places import named_sites, short
from mech_interp.experiments.result import Result
from mech_interp.methods.common import rounding
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

_PER_PROMPT = ("norm", "first_norm", "total", "square", "largest", "zeros", "tokens")


class ActivationCaptureParams(DataParams):
    """Parameters of `activation_capture`."""

    hook_site: str | None = Field(
        default=None, description="One site to capture, such as blocks.3.hook_resid_post."
    )
    hook_sites: list[str] | None = Field(default=None, min_length=1, description="Sites or kinds to capture.")
    sites: list[str] | None = Field(default=None, min_length=1, description="The same as hook_sites.")
    layers: list[int] | None = Field(
        default=None, min_length=1, description="Layers (from 0) that a kind stands for; all by default."
    )
    positions: Literal["all", "last"] | list[int] = Field(
        default="all", description="Tokens that count: all, the last, or positions (negative from the end)."
    )
    skip_first: bool = Field(
        default=False, description="Leave out each prompt's first token, whose norm is often of another size."
    )
    sample_prompts: int = Field(
        default=16,
        ge=0,
        le=4096,
        description="Prompts whose last token's activation is offered as a tensor; kept only if the artifact "
        "policy retains activation tensors.",
    )

    @model_validator(mode="after")
    def _one_way(self) -> ActivationCaptureParams:
        given = [name for name in ("hook_site", "hook_sites", "sites") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"sites are given as {' and as '.join(given)}; give one of them")
        if isinstance(self.positions, list) and not self.positions:
            raise ValueError("positions is an empty list")
        return self

    def need(self) -> Need:
        """Prompts alone."""
        return "prompt"

    def named(self) -> list[str]:
        """The sites or kinds asked for; the residual stream after every layer by default."""
        return list(self.hook_sites or self.sites or [self.hook_site or "resid_post"])


class ActivationCapture(DataFamily[ActivationCaptureParams]):
    """Captures sites and summarises their values."""

    name, version = "activation_capture", 1
    summary = "Norms, means, spread and sparsity of the activations at chosen sites."
    needs = frozenset({Capability.CAPTURE.value})
    Params = ActivationCaptureParams

    def check_data(self, params: ActivationCaptureParams, facts: ModelFacts, data: TaskSet) -> None:
        """Sites and layers against the config."""
        check_layers(facts, params.layers)
        for site in _sites(params, facts.n_layers):
            facts.check_site(site)

    def positions(self, params: ActivationCaptureParams, pair: PromptPair) -> list[int]:
        """Those that count, where they are numbers."""
        return list(params.positions) if isinstance(params.positions, list) else []

    def run(self, context: Context[ActivationCaptureParams]) -> Result:
        """Capture all prompts, a unit per batch, and summarise."""
        params, model, data = context.params, context.model, data_of(context)
        sites = _sites(params, model.info.n_layers)
        tokens = model.tokens(data.clean)

        def batch(at: tuple[int, int]) -> dict[str, Any]:
            return capture(
                model, tokens.select(range(*at)), sites, params, max(0, params.sample_prompts - at[0])
            )

        spans = portions(len(data))
        parts = list(context.each(spans, lambda at: f"prompts/{at[0]:06d}", batch, "prompts"))
        gap = context.unit("alone", lambda: {"gap": _alone(model, tokens, sites)})["gap"]
        return report(
            [_joined(site, parts, data.groups, context.seed) for site in sites],
            model=model.info.name,
            data=data,
            samples={f"activations.{short(site)}": _stack(parts, site) for site in sites}
            if params.sample_prompts
            else {},
            gap=float(gap),
            room=rounding(model),
            skipped=params.skip_first,
        )


def capture(
    model: InstrumentedModel,
    tokens: Tokens,
    sites: Sequence[Site],
    params: ActivationCaptureParams,
    samples: int,
) -> dict[str, Any]:
    """Per-prompt sums over the tokens that count, for every site; and the last token of some prompts."""
    import torch

    with torch.no_grad():
        found = model.forward(tokens, capture=sites, logits="none").activations
        mask = _counted(tokens, params)
        out: dict[str, Any] = {}
        for site in sites:
            name, values = short(site), _flat(found[site])
            norms = values.norm(dim=-1)
            inside, where = mask.sum(1), mask[..., None]
            out |= {
                f"{name}.norm": torch.where(mask, norms, 0).sum(1),
                f"{name}.first_norm": norms[:, 0],
                f"{name}.total": torch.where(where, values, 0).sum((1, 2)),
                f"{name}.square": torch.where(mask, norms**2, 0).sum(1),
                f"{name}.largest": torch.where(where, values.abs(), 0).amax((1, 2)),
                f"{name}.zeros": (where & (values == 0)).sum((1, 2)).double(),
                f"{name}.tokens": inside.double(),
                f"{name}.vector": torch.where(where, values, 0).sum((0, 1)),
            }
            if samples:
                last = torch.tensor(tokens.lengths, device=values.device) - 1
                rows = values[torch.arange(len(tokens), device=values.device), last]
                out[f"{name}.sample"] = rows[:samples].float()
    return out


def _sites(params: ActivationCaptureParams, n_layers: int) -> list[Site]:
    sites = named_sites(params.named(), params.layers, n_layers)
    for site in sites:
        if site.spec.over_keys:
            raise InputError(
                f"{site} holds weights over keys, not a vector for each token.",
                "Capture z or result instead.",
            )
    return sites


def _flat(values: Tensor) -> Tensor:
    """[prompt, position, features] in double precision; heads are joined."""
    return (
        values.detach().flatten(2).double()
        if values.device.type != "mps"
        else values.detach().flatten(2).float()
    )


def _counted(tokens: Tokens, params: ActivationCaptureParams) -> Tensor:
    """[prompt, position], true on tokens that count."""
    import torch

    mask = tokens.mask
    if params.positions != "all":
        wanted = [-1] if params.positions == "last" else list(params.positions)
        chosen = torch.zeros_like(mask)
        for prompt in range(len(tokens)):
            chosen[prompt, [tokens.position(prompt, position) for position in wanted]] = True
        mask = mask & chosen
    if params.skip_first:
        mask = mask.clone()
        mask[:, 0] = False
    if not bool(mask.any(1).all()):
        empty = int((~mask.any(1)).nonzero()[0])
        raise InputError(
            f"No token of prompt {empty} of its batch counts.", "Change positions or skip_first."
        )
    return mask


def _joined(site: Site, parts: Sequence[dict[str, Any]], groups: Sequence[str], seed: int) -> SiteStatistics:
    name = short(site)
    arrays = {one: np.concatenate([part[f"{name}.{one}"] for part in parts]) for one in _PER_PROMPT}
    vector = np.sum([part[f"{name}.vector"] for part in parts], axis=0)
    return SiteStatistics(site=site, vector=vector, groups=tuple(groups), seed=seed, **arrays)


def _stack(parts: Sequence[dict[str, Any]], site: Site) -> np.ndarray[Any, Any]:
    name = f"{short(site)}.sample"
    return np.concatenate([part[name] for part in parts if name in part])


def _alone(model: InstrumentedModel, tokens: Tokens, sites: Sequence[Site]) -> float:
    """Largest relative difference between the shortest prompt in its batch and by itself."""
    import torch

    shortest = int(np.argmin(tokens.lengths))
    longest = int(np.argmax(tokens.lengths))
    worst = 0.0
    with torch.no_grad():
        both = model.forward(tokens.select([shortest, longest]), capture=sites, logits="none").activations
        own = model.forward(tokens.select([shortest]), capture=sites, logits="none").activations
        for site in sites:
            alone = _flat(own[site])[0]
            shared = _flat(both[site])[0, : alone.shape[0]]
            scale = alone.abs().max().clamp(min=1)
            worst = max(worst, float((alone - shared).abs().max() / scale))
    return worst


FAMILY = ActivationCapture()
