"""Write docs/experiments.md from the families and the ready specs; `--check` fails when it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from mech_interp.config import read_specs, spec_files
from mech_interp.experiments import get
from mech_interp.experiments.data import OTHER_NAMES, DataParams, PairRecord

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "experiments.md"

INTRO = """\
# Experiments

Written by `tools/experiment_docs.py` from the families and from the specs in `experiments/`.

A **family** is a kind of experiment: typed parameters and a run function that asks for its work in
resumable units. A **spec** is a YAML file that names a family, a model and parameters. Every run states its
question, its method, numbers with n and interval, controls, and what would change the conclusion. A run whose
sanity control fails is *void*: none of its numbers count.

```bash
mech families                                # what can be asked
mech experiments                             # the ready specs
mech run --name circuit-patching-smoke       # one of them, in seconds
```

Numbers over prompts carry 95 % intervals from a cluster bootstrap over groups (template and item); with
fewer than eight groups there is no interval, and the run says so. A strongest site is chosen on one half of
the groups and quoted on the other. Claims over many sites use a sign-flip max-T test.
"""

DATA = """\
## Data

Families that read prompts take exactly one of:

- `task` with `n`, `split`, `data_seed` and `task_options`: a generator that works with any tokenizer, keeps
  the items whose answers are single tokens and notes what it dropped. Without `data_seed` the run's own seed
  draws the items, so that replicate seeds vary them;
- `prompts`: texts, or mappings like those of `prompt_pairs`; at the top of the spec or under `parameters`;
- `prompt_pairs`: mappings written in the spec;
- `dataset_path` with, if wanted, `dataset_sha256`: JSON lines of such mappings, or a saved `TaskSet`.

What is hashed into the run key is the content, not the path. A pair has these fields; the names of other
platforms mean the same: {names}.
"""

MEASURES = {
    "activation_capture": """\
Norms, means, spread, largest entries, exact zeros, and the share of the mean vector in the squared length,
at any sites, over the tokens that count. Metrics: `norm.SITE` (beside the norm at the first token),
`std.SITE`, `mean_vector_share.SITE`. Sanity: a prompt by itself gives the same activations as beside a longer
one. Last-token activations are offered as tensors and kept only where
`artifact_policy: {retain_activation_tensors: true}` says so.""",
    "logit_lens": """\
The residual stream after each layer, read through the model's own final norm and unembedding
(nostalgebraist 2020): rank, probability and cross-entropy of the answer. Metrics: `final_rank` (geometric
mean), `final_probability`, `final_cross_entropy`, `final_top1_rate`, `advantage` over the control token in
nats, `crossover_layer` (first layer where the answer is the first choice), `decision_layer` (from where it
stays so; prompts where it never does count as the number of layers). Control: another prompt's answer.
Sanity: the last stream gives the model's own logits.""",
    "direct_logit_attribution": """\
The logit difference between answer and foil, split exactly into what every component added to the residual
stream (Elhage et al. 2021). Metrics: `logit_difference`, `embedding_total`, `attention_total`, `mlp_total`,
`bias_total`, `top_contribution`, `significant_components`. Control: other prompts' answers. Sanity: the terms
sum to the model's own difference.""",
    "circuit_patching": """\
Activation patching over a grid of sites or a list of them: the other run's activation is put in at one cell
at a time (Vig et al. 2020; Wang et al. 2022). Metrics: `clean_metric`, `corrupt_metric`, `top_effect` (with
the same patch from an unrelated pair beside it), `significant_cells`, `weak_pairs`,
`top_control_site_effect`. Sanity: a run patched with itself does not move; the whole input patched gives the
other run. Positions without a position axis are patched together; where prompts differ in length, a
position axis defaults to the pairs' named words and `last`.""",
    "causal_tracing": """\
The subject is corrupted by noise or by another subject, one clean state at a time is put back, and the
answer's probability is read (Meng et al. 2022). Metrics: `known_rate`, `clean_probability`,
`corrupted_probability`, `total_effect`, and for each kind of state `subject_effect_KIND` and
`subject_layer_KIND`, the strongest place inside the subject (late states of the last token are near the
output, so they stand in the tables and figures only). Control: an unrelated fact's clean state. Sanity:
noise of size zero, the whole input restored, and literally noised rows.""",
    "attribution_patching": """\
The first-order effect of every edge, node or site from a few backward passes (Nanda 2023; Syed et al. 2023;
integrated gradients after Hanna et al. 2024), with frozen weights. Every run measures its own error: exact
interventions on random items give `approximation_pearson`, `approximation_spearman`, `approximation_error`;
the strongest items are chosen on one half of the groups and tested exactly on the other (`discovered`). Edges
also make a circuit, judged like all circuits: see [circuits](circuits.md).""",
    "acdc_edge": """\
Removes every edge whose removal raises the loss by less than `tau`, from the logits backwards (Conmy et al.
2023). The decisions are those of the sequential algorithm, taken many at a time; `evaluated`, `unevaluated`,
`wasted_rows` and `close_calls` say what the search cost and which decisions lie within rounding of `tau`. A
killed search goes on behind the last stored readers. Judged like all circuits: [circuits](circuits.md).""",
    "acdc_lite": """\
The same over heads and MLPs: one decision per node, from the latest backwards; a removed node carries its
ablated value into every reader. The circuit is all edges among the nodes that stay.""",
    "path_patching": """\
Patches every path from a sender to a receiver, one at a time: in three passes (Wang et al. 2023), where paths
may go through MLPs, or the direct edge alone (Goldowsky-Dill et al. 2023). Metrics: `top_path_effect` (with
the same path from an unrelated pair beside it), `significant_paths`. Sanity: paths from a run to itself carry
nothing, all writers together give the other run.""",
    "causal_scrubbing": """\
Tests a stated hypothesis by resampling (Chan et al. 2022): what matters takes its value on an input that
agrees on the stated features, the rest on unrelated ones. Metrics: `recovered` (with features dealt out at
random beside it), `model_metric`, `scrubbed_metric`, `unrelated_metric`. Sanity: with every input its own
reference the scrubbed model is the model. The short form names `protected_sites`, `scrubbed_sites` and
`equivalence_label`.""",
    "circuit_evaluation": """\
Judges a circuit: a file of a run (`graphs/circuit.json`), an EAP-IG graph, named edges, all edges among named
nodes, or those that a method's scores rank first. Metrics as for all circuits (see [circuits](circuits.md));
with `reference` also `reference_recall` and `reference_precision` of heads.""",
    "polysemanticity": """\
For every MLP neuron, the classes of document (or of token) that it responds to: the area under the ROC curve
of class against rest reaches `min_auc`, and the permutation p passes Benjamini-Hochberg over all neurons and
classes. Metrics: `selective_share`, `monosemantic_share`, `polysemantic_share` (two classes or more),
`classes_per_selective_neuron`, `replicated_share` (responses of one half of the texts that the other shows),
and the same shares along random directions of the activations. Control: shuffled labels judged by the same
bars. By default the texts are the small world's documents and the classes their kinds.""",
    "superposition": """\
Feature dimensionality of weight directions, D = |W|² / Σ_j (Ŵ · W_j)² (Elhage et al. 2022): 1 for a
direction orthogonal to all others of its set, 1/2 in an antipodal pair. Metrics, for each set:
`dimensionality.SET`, `crowding.SET` (mean squared cosine times the number of dimensions; 1 for random
directions), `nearest.SET` (largest |cosine| to another direction). Control: random directions of equal
lengths. Sanity: frames and antipodal pairs give 1 and 1/2; the summed D is at most the dimensions.""",
}

SPECS = """\
## Ready specs

*Run here* marks the specs that were run, with the models that ship with the package, before this page was
written. The others are for models from the hub: their parameters are checked by the tests, but they were not
run here. What a model or a backend cannot do is refused with a sentence before anything is loaded; see
[architectures](architectures.md) and [backends](backends.md).

| spec | family | model | run here |
| --- | --- | --- | --- |
"""
RUN_HERE = ("tinyworld", "tinyworld-llama", "tinyworld-chat")


def page() -> str:
    """The whole page."""
    names = ", ".join(f"`{other}` (`{own}`)" for other, own in OTHER_NAMES.items())
    parts = [INTRO, DATA.format(names=names), table(PairRecord), shared()]
    for name, text in MEASURES.items():
        family = get(name)
        shared_fields = set(DataParams.model_fields) if issubclass(family.Params, DataParams) else set()
        parts += [
            f"\n## {name}\n",
            f"{family.summary} Version {family.version}.\n",
            f"{text}\n",
            table(family.Params, leave_out=shared_fields),
        ]
    return "\n".join([*parts, "\n" + SPECS + specs(), ""])


def shared() -> str:
    """The parameters by which families take prompts."""
    return "\nAll families that read prompts take these, described once:\n\n" + table(DataParams)


def table(model: Any, leave_out: set[str] | None = None) -> str:
    """The fields of a parameter model."""
    schema = model.model_json_schema()
    lines = ["| parameter | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, info in model.model_fields.items():
        if name in (leave_out or ()):
            continue
        kind = _type(schema["properties"][name])
        default = (
            "required" if info.is_required() else f"`{_value(info.get_default(call_default_factory=True))}`"
        )
        lines.append(f"| `{name}` | {kind} | {default} | {info.description} |")
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return "[" + ", ".join(map(str, value)) + "]" if isinstance(value, list) else str(value)


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return "mapping"
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        kinds = [_type(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    words = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}
    return words.get(str(schema.get("type")), "mapping")


def specs() -> str:
    """A line per ready spec."""
    lines = []
    for file in spec_files(ROOT / "experiments"):
        for spec in read_specs(file):
            ran = "yes" if spec.model in RUN_HERE else "no"
            lines.append(f"| `{spec.name}` | {spec.family} | `{spec.model}` | {ran} |")
    return "\n".join(lines)


def main() -> int:
    """Write or check the page; 1 when a check fails."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print("Out of date: docs/experiments.md. Run: python tools/experiment_docs.py")
    return 1


if __name__ == "__main__":
    sys.exit(main())
