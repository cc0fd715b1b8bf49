"""Causal tracing: where a corrupted subject can be healed so that the fact comes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from mech_interp.backends.protocol import InstrumentedModel, Progress
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.datasets.tokens import token_span
from mech_interp.errors import InputError
from mech_interp.methods.common import answer_id, as_floats, token_text
from mech_interp.methods.tracing_result import TracingResult
from mech_interp.methods.tracing_rows import Fact, Setup, trace
from mech_interp.statistics import wilson

Kind = Literal["resid_post", "mlp_out", "attn_out"]
Severed = Literal["mlp", "attn"]
Mode = Literal["noise", "interchange"]
KINDS: tuple[Kind, ...] = ("resid_post", "mlp_out", "attn_out")


def causal_tracing(
    model: InstrumentedModel,
    facts: TaskSet | Sequence[PromptPair],
    *,
    kinds: Sequence[Kind] | None = None,
    window: int | None = None,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    severed: Severed | None = None,
    mode: Mode = "noise",
    span: str = "subject",
    only_known: bool = True,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> TracingResult:
    """Corrupt the subject, restore one clean state at a time, watch the answer's probability.

    Three runs per fact: clean; corrupted, with noise N(0, (noise x sigma)^2) on the embeddings of all
    subject tokens, sigma being the standard deviation of all entries of all subjects' token embeddings;
    and corrupted with the state at one (layer, token) put back to its clean value. With P the probability
    of the answer, averaged over noise samples:

        total effect    TE = P(clean) - P(corrupted)
        indirect effect IE(layer, token) = P(corrupted, state restored) - P(corrupted)

    For resid_post one state is restored; for mlp_out and attn_out a window of layers centred on the
    layer. `severed` holds the MLP (or attention) outputs at the restored token at their corrupted values
    of the same noise sample in all later layers, which shows how far the effect runs through them.
    "interchange" takes another subject (the pair's corrupt prompt) instead of noise. Tokens before the
    corruption are already clean, so their effect is zero and is not run.

    Checked in every call, and refused when wrong: noise of size zero changes nothing; restoring the
    whole input gives the clean probability; sample rows agree with literally noised ones. Controlled in
    every call: at the last subject token, the clean state of an unrelated fact is put in instead.

    Source: Meng et al. 2022, "Locating and Editing Factual Associations in GPT" (arXiv 2202.05262),
    section 2 and appendix B; interchange as Zhang and Nanda 2023 (arXiv 2309.16042) recommend.

    Args:
        model: any instrumented model that evaluates rows.
        facts: prompts with a character span named `span`, an answer that is one token, and (for
            interchange) a corrupt prompt.
        kinds: what is restored; resid_post, mlp_out and attn_out by default (resid_post if severed).
        window: layers restored together for mlp_out and attn_out; by default 10, at most a quarter of
            the layers.
        noise: size of the noise in units of sigma.
        samples: noise draws per fact.
        seed: of noise, donors and resampling.
        severed: None, "mlp" or "attn".
        mode: "noise" or "interchange".
        span: the name of the subject's span.
        only_known: keep only facts whose answer is the model's most likely next token.
        memory_budget: bytes for the sweep. progress: called with (facts done, facts).

    Returns:
        A `TracingResult`; indirect effects are [n_layers, n_tokens] per fact and kind, in probability.

    Raises:
        InputError: for facts without the span, options out of range, or no fact that the model knows.
        SanityError: when a check fails.
    """
    chosen = _check(model, kinds, window, noise, samples, severed, mode)
    items = _facts(model, facts, span, mode)
    known = [fact for fact in items if fact.known or not only_known]
    if not known:
        raise InputError(
            f"{model.info.name} predicts the answer of none of the {len(items)} facts.",
            "Use facts that it knows, or only_known=False.",
        )
    setup = Setup(
        model=model,
        kinds=chosen,
        window=window or _default_window(model.info.n_layers),
        noise_std=noise * _embedding_std(model, items) if mode == "noise" else 0.0,
        samples=samples if mode == "noise" else 1,
        seed=seed,
        severed=severed,
        interchange=mode == "interchange",
        memory_budget=memory_budget,
    )
    found = trace(setup, known, progress)
    return TracingResult(
        model=model.info.name,
        mode=mode,
        kinds=chosen,
        window=setup.window,
        noise=noise if mode == "noise" else None,
        noise_std=setup.noise_std if mode == "noise" else None,
        samples=setup.samples,
        severed=severed,
        tokens=[[token_text(model, i) for i in fact.ids] for fact in known],
        subjects=tuple((fact.start, fact.stop) for fact in known),
        answers=tuple(token_text(model, fact.answer) for fact in known),
        prompts=tuple(fact.pair.clean for fact in known),
        clean=found.clean,
        corrupted=found.corrupted,
        effects=found.effects,
        control=found.control,
        groups=tuple(fact.pair.group for fact in known),
        known=wilson(sum(fact.known for fact in items), len(items)),
        dropped=len(items) - len(known),
        sanity=found.sanity,
        seed=seed,
    )


def _check(
    model: InstrumentedModel,
    kinds: Sequence[Kind] | None,
    window: int | None,
    noise: float,
    samples: int,
    severed: Severed | None,
    mode: Mode,
) -> tuple[Kind, ...]:
    """The kinds to trace, after checking the options."""
    chosen: tuple[Kind, ...] = tuple(kinds) if kinds is not None else ("resid_post",) if severed else KINDS
    wrong = [kind for kind in chosen if kind not in KINDS]
    if wrong or not chosen:
        raise InputError(
            f"Causal tracing does not restore {wrong[0] if wrong else 'nothing'}.", f"Use {', '.join(KINDS)}."
        )
    if severed not in (None, "mlp", "attn") or mode not in ("noise", "interchange"):
        raise InputError(
            f"severed={severed!r}, mode={mode!r} is not understood.",
            'severed is None, "mlp" or "attn"; mode is "noise" or "interchange".',
        )
    if severed and set(chosen) != {"resid_post"}:
        raise InputError("A severed trace restores the residual stream only.", 'Use kinds=("resid_post",).')
    if window is not None and not 1 <= window <= model.info.n_layers:
        raise InputError(f"window={window} is out of range.", f"Use 1 to {model.info.n_layers} layers.")
    if samples < 1 or not noise >= 0:
        raise InputError(
            f"samples={samples}, noise={noise} is out of range.", "Use samples >= 1, noise >= 0."
        )
    return chosen


def _default_window(n_layers: int) -> int:
    """10 as in the paper, where the model had 48 layers; never more than a quarter of the layers."""
    return max(1, min(10, n_layers // 4))


def _facts(
    model: InstrumentedModel, facts: TaskSet | Sequence[PromptPair], span: str, mode: Mode
) -> list[Fact]:
    """Facts with their tokens, subject columns, answer id and whether the model knows them."""
    pairs = list(facts)
    if not pairs:
        raise InputError("There are no facts.", "Give at least one.")
    for number, pair in enumerate(pairs):
        if span not in pair.spans:
            raise InputError(
                f"Fact {number} ({pair.clean!r}) has no span {span!r}.",
                f"Its spans: {', '.join(pair.spans) or 'none'}.",
            )
    tokens = model.tokens([pair.clean for pair in pairs])
    corrupt = _corrupt_ids(model, pairs, tokens.lengths) if mode == "interchange" else [None] * len(pairs)
    found = []
    for number in range(0, len(pairs), 32):
        part = list(range(number, min(number + 32, len(pairs))))
        logits = model.forward(tokens.select(part), logits="last").logits
        assert logits is not None
        likely = logits.argmax(-1).tolist()
        for i, top in zip(part, likely, strict=True):
            answer = answer_id(model, pairs[i].clean, pairs[i].answer)
            start, stop = token_span(model.tokenizer, pairs[i].clean, pairs[i].spans[span])
            found.append(Fact(i, pairs[i], tokens.row(i), corrupt[i], start, stop, answer, top == answer))
    return found


def _corrupt_ids(
    model: InstrumentedModel, pairs: Sequence[PromptPair], lengths: Sequence[int]
) -> list[list[int] | None]:
    for number, pair in enumerate(pairs):
        if pair.corrupt is None:
            raise InputError(
                f"Fact {number} ({pair.clean!r}) has no corrupt prompt.",
                'Interchange needs one; or use mode="noise".',
            )
    tokens = model.tokens([pair.corrupt or "" for pair in pairs])
    for number, (a, b) in enumerate(zip(lengths, tokens.lengths, strict=True)):
        if a != b:
            raise InputError(
                f"Fact {number} does not line up: its clean prompt has {a} tokens and its corrupt one {b}.",
                "Use prompts with equally many tokens.",
            )
    found = [tokens.row(i) for i in range(len(tokens))]
    clean = model.tokens([pair.clean for pair in pairs])
    same = [i for i, row in enumerate(found) if row == clean.row(i)]
    if same:
        raise InputError(f"Fact {same[0]} has the same clean and corrupt prompt.", "Name another subject.")
    return [*found]


def _embedding_std(model: InstrumentedModel, facts: Sequence[Fact]) -> float:
    """Standard deviation of all entries of all subjects' token embeddings."""
    subjects = [fact.ids[fact.start : fact.stop] for fact in facts]
    tokens = model.tokens(subjects)
    captured = model.forward(tokens, capture=["embed"], logits="none", stop_after=0).activations["embed"]
    entries = as_floats(captured)[tokens.mask.cpu().numpy()]
    return float(np.std(entries, ddof=1))
