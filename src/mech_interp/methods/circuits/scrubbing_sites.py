"""Causal scrubbing of a list of sites: protect some, scrub others, and see what is left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.interventions import FromRun, Intervention, Replace
from mech_interp.methods.circuits.common import row_values
from mech_interp.methods.circuits.scrubbing import check_scrubbing
from mech_interp.methods.circuits.scrubbing_result import NodeDraws, ScrubbingResult
from mech_interp.methods.circuits.scrubbing_tree import Draws, Inputs
from mech_interp.methods.common import Floats, Ints, SanityError, rounding
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.protocol import ModelInfo

# What a kind of site is computed from directly, inside one block.
_FROM = {
    "ln1": "resid_pre",
    "q": "ln1",
    "k": "ln1",
    "v": "ln1",
    "rot_q": "q",
    "rot_k": "k",
    "attn_scores": "rot_q rot_k q k",
    "pattern": "attn_scores",
    "z": "pattern v",
    "result": "z",
    "attn_out_own": "result z",
    "attn_out": "attn_out_own",
    "resid_mid": "attn_out resid_pre",
    "ln2": "resid_mid resid_pre",
    "router_logits": "ln2",
    "expert_indices": "router_logits",
    "expert_weights": "router_logits expert_indices",
    "mlp_pre": "ln2",
    "mlp_pre_linear": "ln2",
    "mlp_post": "mlp_pre mlp_pre_linear",
    "mlp_out_own": "mlp_post expert_indices expert_weights ln2",
    "mlp_out": "mlp_out_own",
    "resid_post": "mlp_out attn_out resid_mid resid_pre",
}
_PARALLEL = _FROM | {"ln2": "resid_pre", "mlp_pre": "ln2 ln1", "mlp_pre_linear": "ln2 ln1"}
_PARALLEL |= {"router_logits": "ln2 ln1", "mlp_out_own": f"{_FROM['mlp_out_own']} ln1"}


def site_scrubbing(
    model: InstrumentedModel,
    prompts: Tokens | Sequence[str] | Sequence[Sequence[int]],
    metric: Metric,
    protected_sites: Sequence[Site | str],
    scrubbed_sites: Sequence[Site | str],
    equivalence_label: Sequence[Hashable],
    *,
    groups: Sequence[str] | None = None,
    samples: int = 4,
    control: bool = True,
    metric_name: str = "metric",
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> ScrubbingResult:
    """Scrub a list of sites and protect others.

    In a run on a prompt, protected sites take their values jointly from one input with an equal label,
    scrubbed sites jointly from one uniformly drawn input; everything else is computed from these. Both
    draws include the prompt itself, and are made among prompts of equally many tokens. The recovered
    share is that of `causal_scrubbing`.

    Checked in every call: values taken from the prompt itself change nothing. Controlled: labels dealt
    out at random.

    Args:
        metric: one value per prompt, by the prompt's own label.
        protected_sites, scrubbed_sites: sites (``z.9.7``, ``blocks.3.hook_mlp_out``).
        equivalence_label: one label per prompt.

    Raises:
        InputError: for a protected site downstream of a scrubbed one, whose scrubbing it would undo; a
            site in both lists; sites that the model lacks; a wrong number of labels.
        SanityError: when the identity fails.
    """
    protected, scrubbed = (
        tuple(Site.parse(one) for one in some) for some in (protected_sites, scrubbed_sites)
    )
    _check_sites(model.info, protected, scrubbed)
    tokens = model.tokens(prompts)
    check_scrubbing(tokens, samples, groups)
    if len(equivalence_label) != len(tokens):
        raise InputError(
            f"There are {len(equivalence_label)} labels for {len(tokens)} prompts.", "Give one per prompt."
        )
    inputs = Inputs.of(tokens.lengths, {"label": list(equivalence_label)})
    sweep = _Sweep(model, tokens, metric, protected, scrubbed, memory_budget)
    draws = Draws(inputs, samples, seed)
    plain = sweep.plain(np.arange(len(tokens)))
    identity = sweep.run(Draws(inputs, 1, seed, own=True), most=4)[:4, 0] - plain[:4]
    worst = float(np.abs(identity).max()) / max(1.0, float(np.abs(plain).max()))
    if not worst <= rounding(model):
        raise SanityError(
            f"Values of the prompt itself moved the metric by {worst:.1e} of its size.",
            "The backend's rows are wrong for this model, so its numbers are void; report it.",
        )
    values = sweep.run(draws, progress=progress)
    shuffled = sweep.run(Draws(inputs.shuffled(seed), samples, seed)) if control else None
    return ScrubbingResult(
        model=model.info.name,
        hypothesis={
            "name": f"{len(protected)} protected, {len(scrubbed)} scrubbed sites",
            "protected_sites": [str(site) for site in protected],
            "scrubbed_sites": [str(site) for site in scrubbed],
        },
        form="sites",
        metric=metric_name,
        unimportant="shared",
        samples=samples,
        scrubbed=values,
        random=sweep.unrelated(draws),
        plain=plain,
        shuffled=shuffled,
        groups=tuple(groups) if groups is not None else tuple(str(i) for i in range(len(tokens))),
        nodes=_nodes(inputs, protected),
        sanity={"own_values": worst},
        pools=len(set(inputs.pools)),
        seed=seed,
    )


class _Sweep:
    def __init__(
        self,
        model: InstrumentedModel,
        tokens: Tokens,
        metric: Metric,
        protected: Sequence[Site],
        scrubbed: Sequence[Site],
        budget: int | None,
    ) -> None:
        self.model, self.tokens, self.metric, self.budget = model, tokens, metric, budget
        self.protected, self.scrubbed = protected, scrubbed

    def run(self, draws: Draws, most: int | None = None, progress: Progress | None = None) -> Floats:
        """The metric with sites replaced, [prompt, sample]; NaN beyond the first `most` prompts."""
        like = draws.agreeing("protected", ("label",), draws.references)
        unlike = draws.random("scrubbed")
        n = len(self.tokens) if most is None else min(most, len(self.tokens))
        rows = []
        for prompt in range(n):
            for sample in range(draws.samples):
                edits = [_from(site, int(like[sample, prompt])) for site in self.protected]
                edits += [_from(site, int(unlike[sample, prompt])) for site in self.scrubbed]
                rows.append(Row(prompt, tuple(edits)))
        found = self._values(rows, progress)
        out = np.full((len(self.tokens), draws.samples), np.nan)
        out[:n] = found.reshape(n, draws.samples)
        return out

    def plain(self, inputs: Ints) -> Floats:
        """The model's own metric, [prompt]."""
        return self._values([Row(int(i)) for i in inputs])

    def unrelated(self, draws: Draws) -> Floats:
        """The metric of the model on the scrubbed input, by the prompt's own label, [prompt, sample]."""
        drawn = draws.random("scrubbed")
        rows = [
            Row(prompt, (_from(Site("resid_pre", 0), int(drawn[sample, prompt])),))
            for prompt in range(len(self.tokens))
            for sample in range(draws.samples)
        ]
        return self._values(rows).reshape(len(self.tokens), draws.samples)

    def _values(self, rows: Sequence[Row], progress: Progress | None = None) -> Floats:
        return row_values(
            self.model, {"base": self.tokens}, rows, self.metric, memory_budget=self.budget, progress=progress
        )


def downstream(site: Site, source: Site, info: ModelInfo) -> bool:
    """Whether a site is computed from another (and is not that site)."""
    here, there = _place(site), _place(source)
    if here[0] != there[0]:
        return here[0] > there[0]
    if site.layer is None or source.layer is None:
        return here > there
    parallel = "resid_mid" in info.missing_kinds
    if not _leads(source.kind, site.kind, _PARALLEL if parallel else _FROM):
        return False
    heads = [_query_heads(one, info) for one in (site, source)]
    between = site.spec.heads is not None and source.spec.heads is not None
    return not between or bool(heads[0] & heads[1])


def _place(site: Site) -> tuple[int, int]:
    """Layer (embeddings first, norm and logits last) and order of computation."""
    return site.order


def _leads(source: str, kind: str, table: Mapping[str, str]) -> bool:
    before = table.get(kind, "").split()
    return source in before or any(_leads(source, one, table) for one in before)


def _query_heads(site: Site, info: ModelInfo) -> set[int]:
    if site.head is None:
        return set(range(info.n_heads))
    if site.spec.heads == "kv":
        shared = info.n_heads // info.n_kv_heads
        return set(range(site.head * shared, (site.head + 1) * shared))
    return {site.head}


def _check_sites(info: ModelInfo, protected: Sequence[Site], scrubbed: Sequence[Site]) -> None:
    from mech_interp.backends.edits import check_site

    if not scrubbed:
        raise InputError("There are no sites to scrub.", "Give at least one.")
    for site in (*protected, *scrubbed):
        check_site(info, site)
    for site in protected:
        for source in scrubbed:
            same_heads = _query_heads(site, info) & _query_heads(source, info)
            if site.whole == source.whole and (site.spec.heads is None or same_heads):
                raise InputError(f"{site} is both protected and scrubbed.", "Name it once.")
            if downstream(site, source, info):
                raise InputError(
                    f"The protected site {site} lies downstream of the scrubbed site {source}.",
                    "Setting it would undo the scrubbing; protect what comes before or beside.",
                )


def _from(site: Site, prompt: int) -> Intervention:
    return Intervention(site, Replace(FromRun("base", prompt=prompt)))


def _nodes(inputs: Inputs, protected: Sequence[Site]) -> tuple[NodeDraws, ...]:
    classes = inputs.classes(("label",))
    sizes = np.bincount(classes)[classes]
    alone = float((sizes == 1).mean())
    parts = tuple(str(site) for site in protected) or ("none",)
    return (NodeDraws("protected sites", parts, 1, float(sizes.mean()), alone),)
