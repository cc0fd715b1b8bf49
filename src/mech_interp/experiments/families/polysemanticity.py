"""Polysemanticity: how many classes of documents or tokens does each MLP neuron respond to?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from mech_interp.backends.protocol import Capability, InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.experiments.context import Context
from mech_interp.experiments.facts import ModelFacts
from mech_interp.experiments.family import Family
from mech_interp.experiments.labelled import LabelledParams, LabelledText, load_texts, texts_hash, token_class
from mech_interp.experiments.parts import check_layers, portions
from mech_interp.experiments.polysemanticity_report import Measured, report
from mech_interp.experiments.result import Result
from mech_interp.experiments.selectivity import Selectivity, measure, replication
from mech_interp.methods.common import token_text
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

Floats = npt.NDArray[np.float64]


class PolysemanticityParams(LabelledParams):
    """Parameters of `polysemanticity`."""

    layers: list[int] | None = Field(
        default=None, min_length=1, description="Layers, from 0; all by default."
    )
    summary: Literal["mean", "max"] = Field(
        default="mean", description="A neuron's activation in a text: mean or largest over its tokens."
    )
    max_tokens: int = Field(default=64, ge=2, le=100_000, description="Tokens read of each text.")
    min_auc: float = Field(
        default=0.75,
        gt=0.5,
        lt=1.0,
        description="Smallest area under the ROC curve of a class against the rest that is a response.",
    )
    q: float = Field(default=0.05, gt=0, lt=0.5, description="False-discovery rate over neurons and classes.")
    shuffles: int = Field(default=100, ge=20, le=10_000, description="Label shuffles for the p-values.")
    random_basis: bool = Field(
        default=True, description="Measure random directions of the same activations too (summary: mean)."
    )


class Polysemanticity(Family[PolysemanticityParams]):
    """Counts the classes that each MLP neuron responds to."""

    name, version = "polysemanticity", 1
    summary = (
        "How many kinds of text each MLP neuron responds to, against shuffled labels and a random basis."
    )
    needs = frozenset({Capability.CAPTURE.value})
    Params = PolysemanticityParams

    def check(self, params: PolysemanticityParams, facts: ModelFacts, tokenizer: Any) -> None:
        """Layers against the config; labels enough to compare."""
        check_layers(facts, params.layers)
        facts.check_kinds(("mlp_post",), self.name, params.layers)
        if tokenizer is None:
            raise InputError(
                f"{facts.name} came without a tokenizer, so it reads no texts.", "Choose another."
            )
        texts = load_texts(params, 0)
        labels = [one.label for one in texts]
        few = sorted(label for label in set(labels) if labels.count(label) < 2)
        if params.labels == "document" and (len(set(labels)) < 2 or few):
            what = f"the class {few[0]!r} has one text" if few else "there is one class"
            raise InputError(f"Selectivity compares classes, and {what}.", "Give more labelled texts.")

    def datasets(self, params: PolysemanticityParams, tokenizer: Any, seed: int) -> dict[str, str]:
        """Hash by name of the texts that a run with this seed will read."""
        return {"texts": texts_hash(load_texts(params, seed))}

    def run(self, context: Context[PolysemanticityParams]) -> Result:
        """Read all texts, a unit per batch, then count responses."""
        params, model = context.params, context.model
        texts = load_texts(params, context.seed)
        context.dataset("texts", texts_hash(texts), len(texts))
        layers = list(range(model.info.n_layers)) if params.layers is None else params.layers

        def batch(at: tuple[int, int]) -> dict[str, Any]:
            return read(model, texts[slice(*at)], layers, params)

        spans = portions(len(texts))
        parts = list(context.each(spans, lambda at: f"texts/{at[0]:06d}", batch, "texts"))
        labels = [label for part in parts for label in part["labels"]]
        owners = [
            start + owner for (start, _), part in zip(spans, parts, strict=True) for owner in part["owners"]
        ]
        strata = owners if params.labels == "token" else None
        cells = [np.concatenate([part[f"layer_{layer}"] for part in parts]) for layer in layers]
        kept = _common(labels)
        values = np.concatenate(cells, axis=1)[kept]
        labels, owners = [labels[i] for i in kept], [owners[i] for i in kept]
        strata = None if strata is None else owners
        rotated = _rotated(cells, kept, context) if params.random_basis and params.summary == "mean" else None
        return report(
            Measured(
                model=model.info.name,
                layers=tuple(layers),
                widths=tuple(one.shape[1] for one in cells),
                found=_measure(values, labels, strata, params, context.subseed("shuffles")),
                replicated=replication(
                    values, labels, owners, strata, min_auc=params.min_auc, seed=context.subseed("halves")
                ),
                random=None
                if rotated is None
                else _measure(rotated, labels, strata, params, context.subseed("random shuffles")),
                labels=params.labels,
                n_texts=len(texts),
            )
        )


def read(
    model: InstrumentedModel,
    texts: Sequence[LabelledText],
    layers: Sequence[int],
    params: PolysemanticityParams,
) -> dict[str, Any]:
    """One observation per text (or per text and class of tokens): activations by layer, label, text."""
    import torch

    # Cut before the model sees them: a text may be longer than its context.
    most = min(params.max_tokens, model.info.context)
    ids = [list(model.tokenizer(one.text)["input_ids"])[:most] for one in texts]
    tokens = model.tokens(ids)
    groups, labels, owners = _cells(model, tokens, texts, params.labels)
    with torch.no_grad():
        sites = [Site("mlp_post", layer) for layer in layers]
        found = model.forward(tokens, capture=sites, logits="none").activations
        out: dict[str, Any] = {"labels": labels, "owners": owners}
        for site in sites:
            rows = [_summary(found[site][owner, columns], params.summary) for owner, columns in groups]
            out[f"layer_{site.layer}"] = torch.stack(rows).float()
    return out


def _cells(
    model: InstrumentedModel, tokens: Tokens, texts: Sequence[LabelledText], by: str
) -> tuple[list[tuple[int, list[int]]], list[str], list[int]]:
    """(text, columns) of each observation, its label, its text."""
    groups: list[tuple[int, list[int]]] = []
    labels: list[str] = []
    for owner, text in enumerate(texts):
        row = tokens.row(owner)
        if by == "document":
            groups.append((owner, list(range(len(row)))))
            labels.append(text.label)
            continue
        classes: dict[str, list[int]] = {}
        for column, token in enumerate(row):
            classes.setdefault(token_class(token_text(model, token)), []).append(column)
        for label, columns in sorted(classes.items()):
            groups.append((owner, columns))
            labels.append(label)
    return groups, labels, [owner for owner, _ in groups]


def _summary(values: Tensor, how: str) -> Tensor:
    """[tokens, neurons] to [neurons]."""
    return (
        values.amax(0)
        if how == "max"
        else values.double().mean(0)
        if values.device.type != "mps"
        else values.mean(0)
    )


def _common(labels: Sequence[str]) -> list[int]:
    """Observations of the classes that occur four times or more: others cannot be halved."""
    counts = {label: labels.count(label) for label in set(labels)}
    return [i for i, label in enumerate(labels) if counts[label] >= 4]


def _rotated(cells: Sequence[npt.NDArray[Any]], kept: list[int], context: Context[Any]) -> Floats:
    """The same activations along random unit directions, as many as there are neurons, layer by layer."""
    out = []
    for number, values in enumerate(cells):
        width = values.shape[1]
        draw = context.generator("basis", number).standard_normal((width, width))
        # Standardised first, so that a direction mixes neurons rather than following the largest one.
        own = values[kept].astype(np.float64)
        spread = own.std(0)
        scaled = np.divide(own - own.mean(0), spread, out=np.zeros_like(own), where=spread > 0)
        out.append(scaled @ (draw / np.linalg.norm(draw, axis=0)))
    return np.concatenate(out, axis=1)


def _measure(
    values: npt.NDArray[Any],
    labels: Sequence[str],
    strata: Sequence[int] | None,
    params: PolysemanticityParams,
    seed: int,
) -> Selectivity:
    return measure(
        values, labels, strata, min_auc=params.min_auc, q=params.q, shuffles=params.shuffles, seed=seed
    )


FAMILY = Polysemanticity()
