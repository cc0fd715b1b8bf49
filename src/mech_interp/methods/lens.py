"""Logit lens: what the residual stream already says about the next token, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mech_interp.backends.protocol import ForwardResult, InstrumentedModel
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.methods.common import (
    Floats,
    Ints,
    SanityError,
    Text,
    answer_ids,
    as_floats,
    at_position,
    batches,
    check_groups,
    other_choice,
    prompt_positions,
    prompt_texts,
    rounding,
    token_text,
)
from mech_interp.methods.lens_result import LensResult, TargetReading
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor


def logit_lens(
    model: InstrumentedModel,
    prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens,
    targets: Text | Sequence[Text],
    *,
    positions: int | Sequence[int] = -1,
    top_k: int = 5,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> LensResult:
    """Read every layer's residual stream through the model's own final norm and unembedding.

    For the stream x_l after l blocks (l = 0 is the embedding): logits_l = softcap(W_U norm(x_l) + b_U)
    with the norm's statistics of x_l itself. Reported per prompt and stream: the target's rank (1 is
    the most likely token; equal logits rank by token id), probability, cross-entropy -ln p in nats, and
    the most likely tokens. The same is measured for a control target that should not be predicted:
    another prompt's target, or random tokens where there is none.

    Source: nostalgebraist 2020, "interpreting GPT: the logit lens"; notation of Belrose et al. 2023
    (arXiv 2303.08112), equation 2.

    Args:
        model: any instrumented model.
        prompts: texts, lists of ids, or `Tokens`; n prompts.
        targets: the token looked for, as text with its leading space or as an id; one, or one per prompt.
        positions: where to read, one position or one per prompt; negative from the prompt's end.
        top_k: how many of the most likely tokens to keep.
        groups: bootstrap group per prompt; each prompt is its own group by default.
        seed: of the control targets and the resampling.

    Returns:
        A `LensResult`; arrays are [n, n_layers + 1].

    Raises:
        InputError: for a target that is not one token (shown split) or a position out of range.
        SanityError: when the last stream does not give the model's own logits.
    """
    tokens = model.tokens(prompts)
    if not 1 <= top_k <= model.info.vocabulary:
        raise InputError(f"top_k={top_k} is out of range.", f"Use 1 to {model.info.vocabulary}.")
    check_groups(groups, len(tokens))
    where = prompt_positions(tokens, positions)
    ids = answer_ids(model, tokens, targets, "target")
    others, control = other_choice([(i,) for i in ids], model.info.vocabulary, seed)
    wanted = np.array([ids, [other[0] for other in others]], dtype=np.int64).T
    readings = _Readings.empty(len(tokens), model.info.n_layers + 1, top_k)
    width = (model.info.n_layers + 1) * model.info.d_model + model.info.vocabulary
    for chosen, position in batches(tokens, where, width):
        _read(model, tokens.select(chosen), position, wanted[chosen], readings, np.array(chosen))
    names = {int(i): token_text(model, int(i)) for i in np.unique(np.append(readings.top_ids, wanted))}
    return LensResult(
        model=model.info.name,
        prompts=prompt_texts(tokens),
        positions=tuple(where),
        target=readings.of(0, wanted, names),
        control=readings.of(1, wanted, names),
        control_kind=control,
        top_texts=[[[names[int(i)] for i in cell] for cell in row] for row in readings.top_ids],
        top_probability=readings.top_probability,
        final_gap=readings.gap,
        groups=None if groups is None else tuple(groups),
        seed=seed,
    )


@dataclass
class _Readings:
    """Arrays being filled: [prompt, stream, target or control], top tokens [prompt, stream, k]."""

    rank: Ints
    probability: Floats
    cross_entropy: Floats
    top_ids: Ints
    top_probability: Floats
    gap: float = 0.0

    @classmethod
    def empty(cls, n: int, streams: int, k: int) -> _Readings:
        two, top = (n, streams, 2), (n, streams, k)
        return cls(
            np.zeros(two, np.int64), np.zeros(two), np.zeros(two), np.zeros(top, np.int64), np.zeros(top)
        )

    def of(self, column: int, ids: Ints, names: dict[int, str]) -> TargetReading:
        return TargetReading(
            ids=tuple(int(i) for i in ids[:, column]),
            texts=tuple(names[int(i)] for i in ids[:, column]),
            rank=self.rank[..., column],
            probability=self.probability[..., column],
            cross_entropy=self.cross_entropy[..., column],
        )


def _read(
    model: InstrumentedModel, tokens: Tokens, position: int, wanted: Ints, out: _Readings, index: Ints
) -> None:
    """Fill `out` at prompts `index` for one batch that is read at one position."""
    import torch

    n_layers = model.info.n_layers
    streams = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(n_layers))]
    ids = torch.as_tensor(wanted, device=tokens.ids.device)
    with torch.no_grad():
        result = model.forward(tokens, capture=streams, logits=(position,))
        for number, site in enumerate(streams):
            logits = model.unembed(at_position(result.activations[site], tokens, position))
            if number == n_layers:
                out.gap = max(out.gap, _check_last(model, logits, result))
            _record(logits, ids, out, index, number)


def _record(logits: Tensor, ids: Tensor, out: _Readings, index: Ints, stream: int) -> None:
    """Rank, probability and top tokens of one stream's logits [prompt, vocabulary]."""
    import torch

    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_p = logits.log_softmax(-1)
    mine = logits.gather(1, ids)
    earlier = torch.arange(logits.shape[1], device=ids.device) < ids[..., None]
    ahead = (logits[:, None] > mine[..., None]) | ((logits[:, None] == mine[..., None]) & earlier)
    top = log_p.topk(out.top_ids.shape[2], dim=-1)
    chosen = as_floats(log_p.gather(1, ids))
    out.rank[index, stream] = 1 + ahead.sum(-1).cpu().numpy()
    out.probability[index, stream] = np.exp(chosen)
    out.cross_entropy[index, stream] = -chosen
    out.top_ids[index, stream] = top.indices.cpu().numpy()
    out.top_probability[index, stream] = np.exp(as_floats(top.values))


def _check_last(model: InstrumentedModel, logits: Tensor, result: ForwardResult) -> float:
    """Largest |lens - model| of the last stream, relative to max(1, |logit|); refused when not rounding."""
    assert result.logits is not None
    own = result.logits[:, 0]
    gap: Any = (logits - own).abs().max() / own.abs().max().clamp(min=1)
    if not float(gap) <= rounding(model):
        raise SanityError(
            f"The last residual stream of {model.info.name} unembeds to logits that differ from the model's "
            f"own by {float(gap):.1e} of their size.",
            "The backend's unembed() does not match its forward(); report this model.",
        )
    return float(gap)
