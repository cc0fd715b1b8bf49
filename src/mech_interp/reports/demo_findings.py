"""The three sentences of the demo, each with its number, interval and control."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mech_interp.methods.dla_result import DLAResult
    from mech_interp.methods.lens_result import LensResult
    from mech_interp.methods.patching_result import PatchingResult
    from mech_interp.statistics import Estimate


@dataclass(frozen=True)
class Finding:
    """One sentence with the number behind it and the same number where the effect must be absent."""

    method: str
    sentence: str
    quantity: str
    unit: str
    estimate: Estimate
    control: Estimate | None
    control_what: str

    def to_dict(self) -> dict[str, Any]:
        """What `summary.json` holds."""
        control = None if self.control is None else self.control.to_dict()
        found = self.estimate.to_dict()
        return {
            "method": self.method,
            "finding": self.sentence,
            "quantity": self.quantity,
            "unit": self.unit,
            "value": found["value"],
            "interval": found["interval"],
            "n": found["n"],
            "interval_method": found["method"],
            "reason": found["reason"],
            "control": {"what": self.control_what, **(control or {"value": None, "interval": None, "n": 0})},
        }


def attribution_finding(dla: DLAResult) -> Finding:
    """The component that writes most of the answer, chosen on half of the countries, quoted on the rest."""
    from mech_interp.statistics import select_then_quote

    chosen = select_then_quote(dla.terms, dla.groups, seed=dla.seed)
    top = chosen.site[0]
    label, total = dla.components[top].label, dla.total
    if total.interval is not None and total.interval[0] > 0:
        sentence = (
            f"{label} writes most of the answer: {chosen.estimate.value:.1f} of the {total.value:.1f} logits "
            "by which the right capital beats another country's."
        )
    else:
        sentence = f"The right capital does not beat another country's; {label} differs most between them."
    return Finding(
        method="direct logit attribution",
        sentence=sentence,
        quantity=f"contribution of {label}",
        unit="logits",
        estimate=chosen.estimate,
        control=dla.control_estimates.at(top),
        control_what="the same component, for the capitals of two other countries"
        if dla.control_kind.startswith("answers")
        else f"the same component, for {dla.control_kind}",
    )


def lens_finding(lens: LensResult) -> Finding:
    """From which layer on the capital is the first choice."""
    from mech_interp.statistics import bootstrap_mean

    rank_one = int((lens.target.rank[:, -1] == 1).sum())
    never = lens.n_layers
    control = [never if layer is None else layer for layer in lens.control.decision]
    layer, share = lens.decision_layer, f"{rank_one} of {len(lens)} countries"
    if layer is None:
        sentence = f"The capital is the first choice at the output in {share} only."
    else:
        when = "from the embedding on" if layer < 0 else f"after layer {layer}"
        sentence = f"The capital becomes the first choice {when} (median); at the output it is in {share}."
    return Finding(
        method="logit lens",
        sentence=sentence,
        quantity="first layer after which the capital stays first choice",
        unit=f"layer (0 to {never - 1}; {never} = never)",
        estimate=lens.decision_estimate,
        control=bootstrap_mean(control, lens.groups, seed=lens.seed),
        control_what="another country's capital",
    )


def patching_finding(residual: PatchingResult, heads: PatchingResult) -> Finding:
    """Where the country's identity travels, and the head that carries most of it to the last token."""
    top = heads.top_site
    cell = top.site if top is not None else heads.top(1)[0]
    estimate = top.estimate if top is not None else heads.estimates.at(*cell)
    name = f"L{cell[0]}H{cell[1]}"
    control = heads.control_estimates
    if heads.normalised:
        sentence = (
            f"{_travel(residual)}; at the last token head {name} alone restores {estimate.value:.0%} of it."
        )
        unit = "share of the clean-corrupt logit difference"
    else:
        sentence = "The model does not tell one country from another here, so there is nothing to restore."
        unit = "logits"
    return Finding(
        method="activation patching",
        sentence=sentence,
        quantity=f"effect of head {name} at the last token",
        unit=unit,
        estimate=estimate,
        control=None if control is None else control.at(*cell),
        control_what=f"{name} patched from an unrelated country, which takes away the wrong answer (about "
        "half) but cannot bring the right one",
    )


def _travel(residual: PatchingResult) -> str:
    """Between which layers the answer moves from the country's tokens to the last one."""
    effects, names = residual.estimates.value, residual.labels[1]
    at_country, at_last = effects[:, names.index("country")], effects[:, -1]
    held = [layer for layer, value in enumerate(at_country) if value >= 0.5]
    arrived = [layer for layer, value in enumerate(at_last) if value >= 0.5]
    leaves = f"up to layer {held[-1]}" if held else "at no layer"
    comes = f"from layer {arrived[0]} on" if arrived else "only behind the last layer"
    return f"The input of the blocks holds the country at its own token {leaves}, at the last token {comes}"
