"""The pages docs/architectures.md and docs/backends.md, for `make_docs.py`.

Sites, facts and identities are measured when the page is made; what needs packages that are not in every
environment is read from docs/parity.json, which `measure_parity.py` writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mech_interp.backends import architectures
from mech_interp.backends.architectures import Architecture
from mech_interp.backends.checks import TOLERANCE, measure_identities
from mech_interp.backends.huggingface.layouts import layouts, tiny_module
from mech_interp.backends.huggingface.opening import library_logits, open_module
from mech_interp.backends.protocol import Capability
from mech_interp.backends.registry import BACKENDS, DEFAULT
from mech_interp.methods.parity import KL_BOUND
from mech_interp.sites import KINDS

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "docs" / "parity.json"
EXAMPLE = "mistral"
"""The architecture whose layout is shown as the example of how to add one."""

# Each identity of `backends.checks` by the beginning of its name, and the head of its column.
IDENTITIES = {
    "logits =": "logits",
    "resid_pre + attn_out + mlp_out": "stream",
    "resid_pre + attn_out = resid_mid": "mid",
    "pattern rows": "rows",
    "pattern · v": "z",
    "sum over heads": "heads",
    "what is added by the sublayer = its own output through": "added",
    "mlp_post W_out": "MLP",
}
YES, NO = "✓", "–"


def architectures_page() -> str:
    """docs/architectures.md."""
    every = architectures.every()
    parts = [
        _ARCHITECTURES.format(n=len(every)),
        table(
            ["architecture", "`model_type`", "what it has"],
            [[one.title, f"`{one.model_type}`", ", ".join(one.notes)] for one in every],
        ),
        _IDENTITIES.format(bound=TOLERANCE["float32"]),
        table(["architecture", *IDENTITIES.values()], [identities(one) for one in every]),
        _SITES.format(everywhere=_quoted(_everywhere(every))),
        _site_table(every),
        "\nWhy:\n",
        *_reasons(every),
        _HALF.format(
            load=", ".join(f"{bound:g} in {name}" for name, bound in TOLERANCE.items() if name.endswith("16"))
        ),
        _BLOCK_LEVEL.strip(),
        _ADD.format(
            example=EXAMPLE,
            title=layouts()[EXAMPLE].title,
            source=(ROOT / _layout_file(EXAMPLE)).read_text(encoding="utf-8").strip(),
            path=_layout_file(EXAMPLE),
        ),
    ]
    return "\n".join(parts).rstrip() + "\n"


def identities(one: Architecture) -> list[str]:
    """A row of the table of identities: measured now, on a tiny random model in single precision."""
    module = tiny_module(one.model_type)
    model = open_module(module, name=one.model_type, check=False)
    found = measure_identities(model, lambda tokens: library_logits(module, tokens))
    row = [one.title]
    for begins in IDENTITIES:
        mine = [identity for identity in found if identity.name.startswith(begins)]
        row.append(NO if not mine else YES if all(identity.holds for identity in mine) else "**fails**")
    unknown = [identity.name for identity in found if not identity.name.startswith(tuple(IDENTITIES))]
    if unknown:
        raise SystemExit(f"No column of the table shows the identity {unknown[0]!r}.")
    return row


def backends_page() -> str:
    """docs/backends.md."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    parts = [_BACKENDS]
    for one in BACKENDS.values():
        install = f"`{one.install}`" if one.install else "comes with mech"
        parts += [f"### {one.name}\n", f"{one.about}\n", f"Install: {install}.\n"]
    parts += [
        _CAPABILITIES,
        table(
            ["backend", *_capabilities(), "attention", "devices", "number formats"],
            [
                [
                    one.name,
                    *(YES if capability in one.capabilities else NO for capability in _capabilities()),
                    " or ".join(one.attention),
                    ", ".join(one.devices),
                    ", ".join(one.dtypes),
                ]
                for one in BACKENDS.values()
            ],
        ),
        _ATTENTION.rstrip(),
        _RUNS,
        table(["architecture", *BACKENDS], list(_runs(record))),
        "\nWhat single backends do not show, or only show:\n",
        *_lacks(record),
        _PARITY.format(
            bounds=", ".join(
                f"{one.name} {one.bound:.0e}" for one in BACKENDS.values() if one.name != DEFAULT
            ),
            kl=f"{KL_BOUND:.0e}",
            machine=record["machine"],
            versions=", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        ).rstrip(),
    ]
    for name, report in record["models"].items():
        lengths = report["prompt_lengths"]
        about = f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens, {report['dtype']}"
        parts += [f"\n### {name}\n", f"{about}; “L3” is layer 3.\n", parity_table(report)]
    return "\n".join([*parts, _COMPATIBILITY]).rstrip() + "\n"


def parity_table(report: Mapping[str, Any]) -> str:
    """Backends × site kinds and families, the worst layer of each."""
    found = {name: report["backends"][name] for name in BACKENDS if name != DEFAULT}
    rows = []
    for kind in KINDS:
        if any(kind in one["sites"] for one in found.values()):
            rows.append([f"`{kind}`", *(_gap(one["sites"].get(kind)) for one in found.values())])
    for family in report["families"]:
        rows.append([family, *(_gap([one["families"].get(family), None]) for one in found.values())])
    rows.append(
        ["KL of next-token distributions, nats", *(_gap([one["kl"], None]) for one in found.values())]
    )
    for label, key in (("tokens read", "tokens_equal"), ("greedy continuations", "continuations_equal")):
        rows.append([label, *("equal" if one[key] else "**differ**" for one in found.values())])
    return table(["", *found], rows)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _gap(found: Sequence[Any] | None) -> str:
    if found is None or found[0] is None:
        return NO
    gap, layer = found
    return ("0" if gap == 0 else f"{gap:.0e}") + ("" if layer is None or gap == 0 else f" L{layer}")


def _capabilities() -> list[str]:
    return [str(one) for one in Capability]


def _everywhere(every: Sequence[Architecture]) -> list[str]:
    return [kind for kind in KINDS if all(kind in one.site_kinds for one in every)]


def _site_table(every: Sequence[Architecture]) -> str:
    some = [kind for kind in KINDS if kind not in _everywhere(every)]

    def cell(one: Architecture, kind: str) -> str:
        if kind not in one.site_kinds:
            return NO
        return "some layers" if kind in {missing for missing, _ in one.missing_sites} else YES

    return table(
        ["architecture", *(f"`{kind}`" for kind in some)],
        [[one.title, *(cell(one, kind) for kind in some)] for one in every],
    )


def _reasons(every: Sequence[Architecture]) -> list[str]:
    """A line per reason: the kinds that it takes away, and from which architectures."""
    reasons: dict[str, tuple[list[str], list[str]]] = {}
    for one in every:
        single = ((kind, why) for (kind, _), why in one.missing_sites.items())
        for kind, why in [*one.missing_kinds.items(), *single]:
            if "is not a mixture of experts" in why:
                continue  # said once, for all
            kinds, titles = reasons.setdefault(why.replace(one.title, "it"), ([], []))
            kinds += [kind] if kind not in kinds else []
            titles += [one.title] if one.title not in titles else []
    lines = [f"- {_quoted(kinds)}: {why} ({', '.join(titles)})." for why, (kinds, titles) in reasons.items()]
    return ["- the `router_` and `expert_` sites: the MLP is not a mixture of experts.", *lines]


def _runs(record: Mapping[str, Any]) -> Iterable[list[str]]:
    """Which backends run which architecture."""
    for model_type, layout in sorted(layouts().items()):
        cells = [YES]
        for name in list(BACKENDS)[1:]:
            one = record["architectures"][name].get(model_type, {"refused": ""})
            partly = "lacks" in one or "capture_only" in one
            cells.append(NO if "refused" in one else "some sites missing" if partly else YES)
        yield [layout.title, *cells]


def _lacks(record: Mapping[str, Any]) -> list[str]:
    """A line per backend and reason: the kinds, and of which architectures."""
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for name in list(BACKENDS)[1:]:
        for model_type, one in record["architectures"][name].items():
            title = layouts()[model_type].title
            if "refused" in one and not BACKENDS[name].models:
                lines[name, "", "", one["refused"].rstrip(".")] = [title]
            for key, what in (("lacks", ": "), ("capture_only", " can be read, not changed: ")):
                reasons: dict[str, list[str]] = {}
                for kind, why in one.get(key, {}).items():
                    reasons.setdefault(why, []).append(kind)
                for why, kinds in reasons.items():
                    plain = re.sub(r"^for \w+ ", "", why.replace(f"library's {title}", "library's model"))
                    lines.setdefault((name, _quoted(kinds), what, plain), []).append(title)
    return [
        f"- {name}, {', '.join(of)}: {kinds}{what}{why}." for (name, kinds, what, why), of in lines.items()
    ]


def _quoted(kinds: Iterable[str]) -> str:
    return ", ".join(f"`{kind}`" for kind in kinds)


def _layout_file(model_type: str) -> str:
    module = layouts()[model_type].__module__
    return f"src/{module.replace('.', '/')}.py"


_ARCHITECTURES = """\
# Architectures

Written by `tools/make_docs.py` from the layouts in `mech_interp.backends.huggingface.layouts`: the code
that runs the models speaks. `mech list-hf-architectures` prints the same.

```bash
mech list-hf-architectures                   # all of them
mech list-hf-architectures llama             # the sites of one, and why it lacks others
```

{n} architectures open with all the sites that they have:
"""

_IDENTITIES = """
## Identities

Whenever a model is loaded these are measured on a probe, and a model that fails one is refused with its
name. Here each was measured on a tiny random model of the architecture, in single precision, when this page
was made (✓: off by at most {bound:g} of the largest value; –: the architecture has no such parts).

- *logits*: those of the library's own forward under the same attention implementation;
- *stream*: `resid_pre + attn_out + mlp_out = resid_post`; *mid*: `resid_pre + attn_out = resid_mid`;
- *rows*: attention patterns sum to 1; *z*: pattern · v = z;
- *heads*: the heads' outputs and b_O sum to attention's own output;
- *added*: what a sublayer adds is its own output through its post-norm, or just its own output;
- *MLP*: W_out times the activation, and b_out, is the MLP's own output.
"""

_SITES = """
## Sites

Every architecture has {everywhere}. The others:
"""

_HALF = """
## Half precision

Half-precision models load under the same identities with wider bounds, relative to the largest value: {load}.
The conformance suite holds their logits to the library's own forward in the same number format.
"""

_BLOCK_LEVEL = """
## Architectures without a layout

Any other causal language model of the library runs at block level, by plain hooks, and says so: the
embedding, the residual stream between blocks, logits, gradients and generation. Experiments that need heads
or weights are refused with that sentence. It is checked at load like any other: the hooks must fire, and a
stream that is put back unchanged must change nothing. Models that come with code of their own are refused;
that code is never run.

Checkpoints in HookedTransformer form (a config and a state dict, as toy models are published) open like any
other folder.
"""

_ADD = """
## How to add one

Write one module in `src/mech_interp/backends/huggingface/layouts/`; it is found by itself. A layout says
where the library's model keeps its parts and what is special about them; what is like a known architecture
is inherited. {title} is `{path}`, whole:

```text
{source}
```

`tiny` is the config of a small model with every feature of the architecture in use. From it the conformance
suite makes a random model and tests all of the above, padding, rows, gradients, generation and every backend;
there is no other test to write:

```text
pytest tests/backends -k {example}
```

A layout that points at the wrong module is refused at load: see `mech_interp.backends.checks`.
"""

_BACKENDS = """\
# Backends

Written by `tools/make_docs.py` from `mech_interp.backends.registry` and from a measurement
(`docs/parity.json`).

A backend is what runs the model. An experiment does not depend on it: the same spec gives the same numbers on
each, and a run records which one it used. What a backend cannot do is refused before anything is loaded, with
the backends that can.

```bash
mech run circuit-patching-smoke --set backend=hooks
mech parity tinyworld-llama --backends hooks # does it give the same numbers for this model?
mech validate --smoke                        # which are installed, and does this installation work?
```

```text
mech demo --backend nnsight                  # any of them prints the same findings
load_model("gpt2", backend="transformerlens")
```

## What they are
"""

_CAPABILITIES = """\
## What they can do

*Rows* are many interventions at a time; the default backend alone reuses what they have in common. A
package of yours can add a backend through the entry point `mech_interp.backends`.
"""

_ATTENTION = """
The attention setting of a spec is what the default backend takes as it is. A backend with one way of its own
computes that, and the run's key and receipt say so.
"""

_RUNS = """
## What they run

Measured on a tiny random model of each architecture:
"""

_PARITY = """
## Parity

`mech parity MODEL` runs a model on every installed backend and compares all that it shows with the
default one: every site at every layer, next-token distributions, greedy continuations, and the metrics of
a small run of each family. Differences at sites are relative to the largest value there; those of metrics
to the metric, or to a hundredth of the largest value in its unit (of the largest logit, for metrics in
logits). It stores the report in the folder `parity` of the store and exits with 8 where a bound is
missed. Bounds in single precision: {bounds}; KL divergence at most {kl} nats.

Measured on {machine}, with {versions}.
"""

_COMPATIBILITY = """
## TransformerLens' compatibility mode

TransformerLens is known for models with folded norms and centred weights. The backend leaves the weights as
they are, so that its numbers are those of the checkpoint. From Python the other form can be had:
`mech_interp.backends.transformerlens.open_loaded(loaded, compatibility=True)`. Predictions are the same:
probabilities, most likely tokens, losses. Logits differ from the checkpoint's by a constant per position;
the residual stream, lens readings, direct attributions and weights are in other coordinates, and the
model's notice says so. Folding is done on a copy. """
