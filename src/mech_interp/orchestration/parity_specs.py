"""What parity asks of a model: prompts of several lengths, and a small run of every family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mech_interp.config.spec import Spec
from mech_interp.errors import InputError, MechError, nearest

if TYPE_CHECKING:
    from mech_interp.backends.architectures import Architecture

TEXTS = (
    "The",
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "One, two, three, four, five: the numbers 1 2 3 4 5 6 7 8 9 go up by one, and 9 8 7 6 5 4 3 2 1 go down.",
)
"""Probe prompts: one word, a fact, a name that returns, digits and punctuation."""
LENGTHS = (1, 5, 19)
"""Tokens of the probe prompts of a model that reads no text."""
SEED = 20
_SWAPS = (
    ("cat", "dog"),
    ("man", "boy"),
    ("red", "big"),
    ("Tom", "Sam"),
    ("he", "it"),
    ("1", "2"),
    ("a", "b"),
)
_FRAME = "the {} is in the"
_ANSWERS = (" house", " box", " man", " a", " b", "a", "b", "e", "1", "2")
_PAIRS, _FACTS = 4, 8


def probe_prompts(tokenizer: Any, config: Mapping[str, Any]) -> list[Any]:
    """Texts that fit the model's context, or token ids for a model without a tokenizer."""
    from mech_interp.experiments.facts import ModelFacts

    facts = ModelFacts.of("the model", config, _architecture(config))
    context = facts.context or max(LENGTHS) + 1
    if tokenizer is not None:
        texts = [text for text in TEXTS if 0 < len(tokenizer(text)["input_ids"]) <= context]
        if texts:
            return texts
    lengths = sorted({min(length, context) for length in LENGTHS})
    return [[(37 + 101 * i + n) % facts.vocabulary for i in range(n)] for n in lengths]


def family_specs(
    model: str,
    tokenizer: Any,
    names: Sequence[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
) -> list[Spec]:
    """A small spec for each built-in family (or those named), as well as the tokenizer allows.

    Raises:
        InputError: a name is not that of a family that parity runs.
    """
    asked = parameters(tokenizer)
    for name in names or ():
        if name not in asked:
            raise InputError(
                f"Parity runs no family {name!r:.80}.",
                nearest(name, asked) or f"It runs: {', '.join(asked)}.",
            )
    return [
        Spec.from_dict(
            {
                "name": f"parity-{family.replace('_', '-')}",
                "family": family,
                "model": model,
                "device": device,
                "dtype": dtype,
                "seed": SEED,
                "parameters": given,
            }
        )
        for family, given in asked.items()
        if names is None or family in names
    ]


def parameters(tokenizer: Any) -> dict[str, dict[str, Any]]:
    """Parameters of each family's small run."""
    pairs = prompt_pairs(tokenizer)
    labelled = [{"text": text, "label": label} for label, group in _LABELLED.items() for text in group]
    texts = [one["text"] for one in labelled]  # of like lengths, so that means over tokens are stable
    return {
        "activation_capture": {"prompts": texts, "sites": ["resid_post", "mlp_out", "attn_out"]},
        "causal_tracing": {**pairs, "samples": 2, "only_known": False},
        "circuit_patching": {**pairs, "kind": "resid_pre", "positions": "last", "normalise": "auto"},
        "direct_logit_attribution": dict(pairs),
        "logit_lens": dict(pairs),
        "polysemanticity": {"prompts": labelled, "shuffles": 20, "random_basis": False, "max_tokens": 16},
        "superposition": {"replicates": 2, "sampled": 64},
    }


_LABELLED = {
    "animals": ("the cat is small", "a dog ran home", "the bird sang", "one fish swam"),
    "numbers": ("1 2 3 4", "7 8 9 10", "2 4 6 8", "9 8 7 6"),
}


def prompt_pairs(tokenizer: Any) -> dict[str, Any]:
    """Where prompt pairs come from: capitals where the tokenizer keeps them whole, else small frames."""
    from mech_interp.datasets.tasks import task

    facts = {"task": "facts", "n": _FACTS}
    if tokenizer is None:
        return facts
    try:
        if len(task("facts", tokenizer, n=_FACTS, split="test", seed=SEED)) >= _PAIRS:
            return facts
    except MechError:
        pass
    return {"prompt_pairs": _framed(tokenizer)}


def _framed(tokenizer: Any) -> list[dict[str, Any]]:
    """Frames with swapped words of equally many tokens, and two answers of one token each."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text)["input_ids"])

    found = []
    for own, other in _SWAPS:
        clean, corrupt = _FRAME.format(own), _FRAME.format(other)
        answers = [text for text in _ANSWERS if ids(clean + text)[: len(ids(clean))] == ids(clean)]
        answers = [text for text in answers if len(ids(clean + text)) == len(ids(clean)) + 1]
        if len(ids(clean)) == len(ids(corrupt)) and len(answers) >= 2 and clean != corrupt:
            pair = {"clean": clean, "corrupt": corrupt, "answer": answers[0], "wrong": answers[1]}
            found.append(pair | {"spans": {"subject": own}, "corrupt_spans": {"subject": other}})
    return found or [{"clean": _FRAME.format("cat")}]


def _architecture(config: Mapping[str, Any]) -> Architecture | None:
    from mech_interp.backends import architectures

    return architectures.of_config("the model", config)
