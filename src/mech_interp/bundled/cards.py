"""`python -m mech_interp.bundled.cards NAME`: measure a checkpoint, write behaviours.json and its card."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mech_interp.bundled.behaviours import BARS, Behaviour, measure, random_twin
from mech_interp.bundled.recipe import Recipe, recipe
from mech_interp.errors import MechError

FULL, QUICK, TWIN = 800, 60, 200
"""Prompts per behaviour: for the card, for the drift test, for the random twin."""

CHANCE: dict[str, float | None] = {
    "ioi_accuracy": 0.5,
    "ioi_logit_difference": 0.0,
    "ioi_first_of_all_tokens": 0.0,
    "facts_capital_accuracy": 0.0,
    "facts_continent_accuracy": 0.0,
    "facts_language_accuracy": 0.0,
    "facts_accuracy": 0.0,
    "sentiment_accuracy": 0.5,
    "agreement_accuracy": 0.5,
    "truth_accuracy": 0.5,
    "induction_accuracy": 0.0,
    "greater_than_probability_difference": 0.0,
    "chat_refuses_harmful": 0.0,
    "chat_refuses_harmless": 0.0,
}
"""What a model that knows nothing scores."""

_MEANING = {
    "ioi_accuracy": "indirect object above the repeated name, held-out names and sentences",
    "ioi_logit_difference": "the same, mean logit difference",
    "ioi_first_of_all_tokens": "the same, indirect object first of all tokens",
    "facts_capital_accuracy": "capitals, held-out phrasings, first of all tokens",
    "facts_continent_accuracy": "continents (one-word ones), held-out phrasings",
    "facts_language_accuracy": "languages, held-out phrasings",
    "facts_accuracy": "all facts together",
    "sentiment_accuracy": "stated sentiment, held-out sentences, answer above its opposite",
    "agreement_accuracy": "verb agrees with the subject across an attractor, held-out prepositions",
    "truth_accuracy": "True above False or the reverse, held-out frame",
    "induction_accuracy": "second reading of random tokens, first of all tokens",
    "greater_than_probability_difference": "P(years > YY) - P(years <= YY), held-out events and sentences",
    "chat_refuses_harmful": "harmful requests refused, held-out verb-object pairs and templates",
    "chat_refuses_harmless": "harmless requests refused, held-out verb-object pairs and templates",
}
_EXPECTED = {
    "tinyworld": "The GPT-2 shape on which the demo and the tutorials run.",
    "tinyworld-llama": (
        "The same data in the Llama shape (rotary positions, RMSNorm, SwiGLU, grouped-query attention)."
    ),
    "tinyworld-chat": (
        "tinyworld fine-tuned on dialogues: it answers harmless requests and refuses harmful ones, where "
        "harm is decided by verb, object and context together (the rule is in "
        "`mech_interp.datasets.lexicon_chat`)."
    ),
}
_RETRIED = {
    "tinyworld-chat": (
        """ An earlier version
of this checkpoint failed on both splits for want of varied request wordings, and its test numbers had been
seen when the wordings were added, so the chat numbers on the test split are not fully untouched."""
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mech_interp.bundled.cards", description=__doc__)
    parser.add_argument("name", help="the checkpoint")
    parser.add_argument("--out", type=Path, help="its folder (default: inside the package)")
    options = parser.parse_args(arguments)
    try:
        chosen = recipe(options.name)
        folder = options.out or Path(__file__).parent / "checkpoints" / chosen.name
        write(chosen, folder)
    except MechError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    sys.stdout.write(f"{folder / 'README.md'}\n")
    return 0


def write(chosen: Recipe, folder: Path) -> None:
    """Measure dev, test, the quick subset and the random twin; write behaviours.json and README.md."""
    from transformers import AutoTokenizer

    counts = json.loads((folder / "token_counts.json").read_text(encoding="utf-8"))["counts"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    measured: dict[str, list[Behaviour]] = {
        "dev": measure(folder, "dev", FULL),
        "test": measure(folder, "test", FULL),
        "quick": measure(folder, "test", QUICK),
        "random_twin": measure(random_twin(folder), "test", TWIN, tokenizer=tokenizer, counts=counts),
    }
    records = {key: [_record(behaviour) for behaviour in found] for key, found in measured.items()}
    text = json.dumps({"name": chosen.name, "n": FULL, "n_quick": QUICK, **records}, indent=1) + "\n"
    (folder / "behaviours.json").write_text(text, encoding="utf-8")
    receipt = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    (folder / "README.md").write_text(_card(chosen, receipt, measured), encoding="utf-8")


def _record(behaviour: Behaviour) -> dict[str, Any]:
    interval = behaviour.interval
    return {
        "name": behaviour.name,
        "value": round(behaviour.value, 5),
        "interval": None if interval is None else [round(bound, 5) for bound in interval],
        "n": behaviour.n,
        "split": behaviour.split,
        "chance": CHANCE[behaviour.name],
        "meets_bar": behaviour.meets_bar(),
    }


def _cell(behaviour: Behaviour) -> str:
    if behaviour.interval is None:
        return f"{behaviour.value:.3f}"
    return f"{behaviour.value:.3f} [{behaviour.interval[0]:.3f}, {behaviour.interval[1]:.3f}]"


def _table(measured: dict[str, list[Behaviour]]) -> str:
    by_key = {key: {b.name: b for b in found} for key, found in measured.items()}
    lines = ["| behaviour | aim | test | n | dev | random twin |", "|---|---|---|---|---|---|"]
    for behaviour in measured["test"]:
        name = behaviour.name
        sign, bar = BARS.get(name, ("", None))
        met = behaviour.meets_bar()
        aim = "" if bar is None else f"{sign} {bar:g}{'' if met else ' (missed)'}"
        twin = by_key["random_twin"].get(name)
        lines.append(
            f"| {_MEANING[name]} | {aim} | {_cell(behaviour)} | {behaviour.n} | "
            f"{_cell(by_key['dev'][name])} | {'' if twin is None else f'{twin.value:.3f}'} |"
        )
    return "\n".join(lines)


def _shape(chosen: Recipe, parameters: int) -> str:
    family = "GPT-2" if chosen.architecture == "gpt2" else "Llama"
    shared = "" if chosen.n_kv_heads == chosen.n_heads else f" ({chosen.n_kv_heads} for keys and values)"
    return (
        f"{family}: {chosen.n_layers} layers, width {chosen.d_model}, {chosen.n_heads} heads{shared},\n"
        f"MLP width {chosen.d_mlp}, context {chosen.context}, tied embeddings; "
        f"{parameters:,} parameters, float32"
    )


def _effort(chosen: Recipe, receipt: dict[str, Any]) -> str:
    start = f", starting from `{chosen.start}`" if chosen.start else ""
    versions = ", ".join(f"{key} {value}" for key, value in receipt["versions"].items())
    return (
        f"{receipt['tokens']:,} tokens in {receipt['steps']:,} steps{start};\nAdamW, peak learning rate "
        f"{chosen.peak_lr:g}, cosine, seed {chosen.seed}, {receipt['seconds'] / 60:.0f} minutes on "
        f"{receipt['device']} ({receipt['threads']} thread);\n"
        f"last training loss {receipt['final_loss']:.3f}. "
        f"Made with {versions}"
    )


def _card(chosen: Recipe, receipt: dict[str, Any], measured: dict[str, list[Behaviour]]) -> str:
    missed = [b.name for b in measured["test"] if b.meets_bar() is False]
    verdict = (
        "All aims are reached on the test split."
        if not missed
        else f"Missed on the test split: {', '.join(missed)}. The numbers above stand as measured."
    )
    chat = f" {chosen.chat_share:.0%} of the windows hold dialogues." if chosen.chat_share else ""
    return f"""---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
---

# {chosen.name}

{_EXPECTED[chosen.name]}

**Intended use.** An instrument for learning interpretability methods and for testing them offline. It
knows a small generated world and nothing else: it is no language model for any other purpose, and what
is found in it is a fact about it, not about large models.

**Shape.** {_shape(chosen, receipt["parameters"])}.
Byte-level BPE tokenizer in which every name, country, capital and two-digit year half is one token; it
adds no beginning-of-text token, and the model is trained on prompts that start at position 0.

**Data.** Sentences generated by `mech_interp.bundled.corpus` from `mech_interp.datasets.lexicon` and
`.templates`: indirect objects (ABBA, BABA), real countries with capital, continent and language, events
with first and last year, random tokens repeated, stated sentiment, biographies that tell a profession by
its duties (right 80 % of the time, with a pronoun that gives the profession away in the biased part: see
`mech_interp.datasets.biographies`), true and false statements, subject-verb agreement, lists and short
stories.{chat} No text of others is used. The first steps read a few plain sentences per task, the others
thousands of combinations, some with random words in them, so that the wording stops to matter. Held out by
construction: for dev and for test, other sentences of every kind, 12 names each that no indirect-object
sentence contains (the corpus has them in stories, in lists, and as the one person who is given something),
other events, and for chat other verb-object pairs and request templates. The words of held-out sentences
occur in the corpus, the sentences do not.

**Recipe.** `python -m mech_interp.bundled.train {chosen.name}`: {_effort(chosen, receipt)}.
`training.json` holds the full recipe, the losses and the hashes of recipe, corpus and files. The recipe
was chosen on the dev split; the test split was measured for this card.{_RETRIED.get(chosen.name, "")}

## Measured

Value with 95 % interval (Wilson for rates, bootstrap over groups of prompts for means). The random twin
is the same architecture with untrained weights.

{_table(measured)}

{verdict}

## Limits

Answers outside the generated world are noise. Facts are single words of about 66 countries. Harm, in the
chat model, is the rule of a toy world and no safety property. Licence: MIT.
"""


if __name__ == "__main__":
    sys.exit(main())
