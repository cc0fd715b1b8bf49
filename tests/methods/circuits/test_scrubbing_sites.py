"""Scrubbing a list of sites, against one plain forward per draw."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from edge_models import in_double

from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.interventions import Intervention, Replace
from mech_interp.methods.circuits.scrubbing_sites import downstream, site_scrubbing
from mech_interp.methods.circuits.scrubbing_tree import Draws, Inputs
from mech_interp.sites import Site

LENGTHS = (5, 5, 4, 5, 5, 4, 5, 5)
LABELS = [0, 1, 0, 0, 1, 0, 1, 0]
METRIC = LogitDifference(tuple(range(11, 19)), tuple(range(40, 48)))


@pytest.fixture(scope="module", params=["gpt2", "qwen3", "gpt_neox", "olmo2"])
def model(request: pytest.FixtureRequest) -> Iterator[Any]:
    with in_double(request.param) as opened:
        yield opened


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(1, 97, (n,), generator=generator).tolist() for n in LENGTHS]


def options(**changes: Any) -> dict[str, Any]:
    return {
        "prompts": Tokens.from_lists(prompts()),
        "metric": METRIC,
        "protected_sites": ["z.1.2", "mlp_out.0"],
        "scrubbed_sites": ["z.1.0", "mlp_out.1"],
        "equivalence_label": LABELS,
        **changes,
    }


def test_equals_one_forward_per_draw(model: Any) -> None:
    ids = prompts()
    found = site_scrubbing(model, samples=3, seed=5, **options())
    draws = Draws(Inputs.of(LENGTHS, {"label": LABELS}), 3, 5)
    protected, scrubbed = [Site("z", 1, 2), Site("mlp_out", 0)], [Site("z", 1, 0), Site("mlp_out", 1)]
    seen = [model.forward([row], capture=[*protected, *scrubbed], logits="last") for row in ids]
    changed = 0
    for prompt, row in enumerate(ids):
        for sample in range(3):
            agreeing = [x for x in range(8) if len(ids[x]) == len(row) and LABELS[x] == LABELS[prompt]]
            pool = [x for x in range(8) if len(ids[x]) == len(row)]
            like = agreeing[int(draws.uniform("protected")[sample, prompt] * len(agreeing))]
            unlike = pool[int(draws.uniform("scrubbed|random")[sample, prompt] * len(pool))]
            edits = [Intervention(s, Replace(seen[like].activations[s][0])) for s in protected]
            edits += [Intervention(s, Replace(seen[unlike].activations[s][0])) for s in scrubbed]
            logits = model.forward([row], interventions=edits, logits="last").logits[0]
            expected = float(logits[METRIC.correct[prompt]] - logits[METRIC.wrong[prompt]])
            assert found.scrubbed[prompt, sample] == pytest.approx(expected, abs=1e-9)
            random = seen[unlike].logits[0]
            expected = float(random[METRIC.correct[prompt]] - random[METRIC.wrong[prompt]])
            assert found.random[prompt, sample] == pytest.approx(expected, abs=1e-9)
            changed += abs(found.scrubbed[prompt, sample] - found.plain[prompt]) > 1e-3
    assert changed > 12
    assert found.nodes[0].agreeing == pytest.approx(np.mean([3, 3, 2, 3, 3, 2, 3, 3]))
    assert found.form == "sites"


def test_identities(model: Any) -> None:
    logits = model.forward(prompts(), logits="last").logits
    change = logits - logits.mean(0)
    metric = LogitDifference(tuple(change.argmax(1).tolist()), tuple(change.argmin(1).tolist()))
    nothing = site_scrubbing(
        model, **options(metric=metric, protected_sites=[], scrubbed_sites=["resid_pre.0"])
    )
    assert nothing.recovered.value == pytest.approx(0.0, abs=1e-12)
    own = options(metric=metric, scrubbed_sites=["mlp_out.2"], equivalence_label=list(range(8)))
    same = site_scrubbing(model, **own)
    alone = site_scrubbing(model, **{**own, "protected_sites": []})
    np.testing.assert_allclose(same.scrubbed, alone.scrubbed, atol=1e-9)
    assert same.vacuous == ["protected sites"]


@pytest.mark.parametrize(
    ("site", "source", "expected"),
    [
        ("z.2.0", "z.1.3", True),
        ("z.1.0", "z.1.3", False),
        ("z.1", "z.1.3", None),
        ("z.1.0", "q.1.0", True),
        ("z.1.0", "q.1.1", False),
        ("pattern.1", "v.1.0", False),
        ("z.1.1", "v.1.0", True),
        ("q.1.0", "k.1.0", False),
        ("mlp_out.1", "z.1.0", True),
        ("attn_out.1", "z.1.0", True),
        ("z.1.0", "mlp_out.1", False),
        ("resid_pre.0", "embed", True),
        ("logits", "mlp_out.2", True),
        ("resid_post.1", "resid_mid.1", True),
        ("mlp_post.1", "attn_out.1", True),
    ],
)
def test_what_lies_downstream(site: str, source: str, expected: bool | None) -> None:
    """`expected` None: the same site, which is another error."""
    with in_double("llama") as model:  # two query heads to a key/value head
        found = downstream(Site.parse(site), Site.parse(source), model.info)
    assert found is bool(expected)


def test_heads_of_a_parallel_block_do_not_reach_its_mlp() -> None:
    with in_double("gpt_neox") as model:
        assert not downstream(Site("mlp_out", 1), Site("z", 1, 0), model.info)
        assert downstream(Site("mlp_out", 1), Site("ln2", 1), model.info)
        assert downstream(Site("resid_post", 1), Site("z", 1, 0), model.info)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"protected_sites": ["z.2.0"], "scrubbed_sites": ["z.1.0"]},
            r"protected site blocks\.2\.attn\.hook_z\[0\] lies downstream of the scrubbed site "
            r"blocks\.1\.attn\.hook_z\[0\]",
        ),
        ({"protected_sites": ["z.1"]}, "both protected and scrubbed"),
        ({"scrubbed_sites": []}, "no sites to scrub"),
        ({"scrubbed_sites": ["z.9.0"]}, "layer 9"),
        ({"equivalence_label": [1]}, "1 labels for 8 prompts"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    with in_double("gpt2") as model, pytest.raises(InputError, match=message):
        site_scrubbing(model, **options(**changes))
