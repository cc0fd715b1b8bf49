"""Causal scrubbing: resample everything that a hypothesis says does not matter, and see what is left."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import InstrumentedModel, Progress
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair, TaskSet
from mech_interp.errors import CapabilityError, InputError
from mech_interp.graph import CircuitGraph
from mech_interp.methods.circuits.common import shrinking
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis
from mech_interp.methods.circuits.scrubbing_result import NodeDraws, ScrubbingResult
from mech_interp.methods.circuits.scrubbing_tree import Draws, Inputs, Use, unroll
from mech_interp.methods.common import Floats, SanityError, check_groups, rounding

if TYPE_CHECKING:
    from torch import Tensor

    from mech_interp.methods.circuits.scrubbing_rows import Scrubber, Unimportant, Work

DEFAULT_BUDGET = 1 << 30


@dataclass(frozen=True)
class AnswerLoss:
    """Cross-entropy of one token per prompt, in nats (of the whole vocabulary)."""

    token: tuple[int, ...]
    position: int = -1

    @property
    def positions(self) -> tuple[int, ...]:
        """The position read."""
        return (self.position,)

    def token_ids(self, prompts: Sequence[int]) -> Tensor | None:
        """The whole vocabulary."""
        return None

    def __call__(self, logits: Tensor, prompts: Sequence[int]) -> Tensor:
        import torch

        ids = torch.tensor([self.token[p] for p in prompts], device=logits.device)
        return -logits[:, 0].double().log_softmax(-1).gather(1, ids[:, None])[:, 0]


def features_of(pairs: TaskSet | Sequence[PromptPair]) -> dict[str, list[Hashable]]:
    """Columns of prompt pairs: answer, wrong, group, words under named spans, plain facts."""
    items = tuple(pairs)
    columns: dict[str, list[Hashable]] = {
        name: [getattr(pair, name) for pair in items] for name in ("answer", "wrong", "group")
    }
    for name in sorted(set.intersection(*(set(pair.spans) for pair in items)) if items else ()):
        columns.setdefault(name, [pair.span_text(name) for pair in items])
    for name in sorted(set.intersection(*(set(pair.metadata) for pair in items)) if items else ()):
        values = [pair.metadata[name] for pair in items]
        if all(isinstance(value, Hashable) for value in values):
            columns.setdefault(name, values)
    return columns


def causal_scrubbing(
    model: InstrumentedModel,
    prompts: Tokens | Sequence[str] | Sequence[Sequence[int]],
    metric: Metric,
    hypothesis: Hypothesis,
    features: Mapping[str, Sequence[Hashable]],
    *,
    groups: Sequence[str] | None = None,
    samples: int = 4,
    unimportant: Unimportant = "shared",
    within: Sequence[str] = (),
    control: bool = True,
    metric_name: str = "metric",
    seed: int = 0,
    memory_budget: int | None = None,
    progress: Progress | None = None,
) -> ScrubbingResult:
    """Test a hypothesis by resampling (Chan et al. 2022, "Causal scrubbing", algorithm run_scrub).

    Scrub(node, reference): each important input of the node is scrubbed in turn on an input drawn
    uniformly from those that agree with the reference on that node's features, the reference itself
    included; all unimportant inputs take their values on inputs drawn from the whole data set; the node's
    own computation runs on these. A leaf of the hypothesis gives the model's value on its input. The model
    is treeified: a node used in two places, or heard by two readers, draws independently for each.

        recovered = (scrubbed - random) / (model - random)

    are means over prompts of the metric under scrubbing, of the model on unrelated inputs by the labels
    of the prompts, and of the model. The unrelated inputs are those that the root draws for what is
    unimportant, so that a hypothesis under which nothing matters recovers exactly 0.

    Checked in every call, and refused when wrong: with every input its own reference the scrubbed model
    is the model. Controlled in every call: the same hypothesis with features dealt out at random.

    Args:
        prompts: the data set; prompts of equally many tokens stand in for each other.
        metric: one value per prompt, by the prompt's own label; a loss or a score.
        hypothesis: nodes, the sites they stand for, the features they depend on.
        features: columns of the data set, one label per prompt; "prompt" (each its own class) is there.
        samples: draws per prompt.
        unimportant: ``shared`` draws one input for all unimportant inputs of a node (as published),
            ``separate`` one for each.
        within: features in which every input drawn must equal the prompt's own.
        control: whether to measure shuffled features too.
        memory_budget: bytes for the values of one batch. progress: called with (rows done, rows in all).

    Raises:
        InputError: for a node that matches no site (naming it), an unknown feature, one node too many.
        CapabilityError: for a backend or an architecture without edges.
        UnstableRatioError: when model and random inputs do not differ by three standard errors (when the
            recovered share is asked for).
        SanityError: when the identity fails.
    """
    from mech_interp.backends.huggingface.edges import graph_of
    from mech_interp.backends.huggingface.model import HuggingFaceModel
    from mech_interp.backends.huggingface.writers import refuse_without_edges
    from mech_interp.methods.circuits.scrubbing_rows import Scrubber, Work

    if not isinstance(model, HuggingFaceModel):
        raise CapabilityError(
            f"The backend {model.info.backend} cannot scrub nodes of a circuit.",
            "Open the model with the default backend, huggingface, or scrub a list of sites.",
        )
    if unimportant not in ("shared", "separate"):
        raise InputError(f"There is no way {unimportant!r} to resample.", "Use shared or separate.")
    refuse_without_edges(model)
    tokens = model.tokens(prompts)
    check_scrubbing(tokens, samples, groups)
    inputs = Inputs.of(tokens.lengths, features, within)
    for node in hypothesis.nodes.values():
        inputs.classes(node.depends_on)
    root = unroll(hypothesis, graph_of(model))
    scrubber, work = Scrubber(model, tokens), Work()
    sweep = _Sweep(scrubber, hypothesis, root, metric, unimportant, memory_budget)
    draws = Draws(inputs, samples, seed)
    numbers = list(range(len(tokens)))
    own = scrubber.plain(np.array(numbers), numbers, metric)
    identity = sweep.identity(inputs, own, rounding(model))
    scrubbed = sweep.run(draws, work, progress)
    unrelated = sweep.random(draws)
    shuffled = None
    if control:
        shuffled = sweep.run(Draws(inputs.shuffled(seed), samples, seed), Work())
    return ScrubbingResult(
        model=model.info.name,
        hypothesis=hypothesis.to_dict(),
        form="hypothesis",
        metric=metric_name,
        unimportant=unimportant,
        samples=samples,
        scrubbed=scrubbed,
        random=unrelated,
        plain=own,
        shuffled=shuffled,
        groups=tuple(groups) if groups is not None else tuple(str(i) for i in numbers),
        nodes=node_draws(hypothesis, inputs, root, scrubber.graph),
        sanity={"own_reference": identity},
        computed=work.computed,
        recursive=work.recursive,
        pools=len(set(inputs.pools)),
        within=tuple(within),
        notes=("the scale of the norm behind attention is held at the input of each node",)
        if scrubber.frozen
        else (),
        seed=seed,
    )


def check_scrubbing(tokens: Tokens, samples: int, groups: Sequence[str] | None) -> None:
    """Refuse no samples, a wrong number of groups, or a single prompt."""
    check_groups(groups, len(tokens))
    if samples < 1:
        raise InputError(f"{samples} samples are none.", "Draw at least one per prompt.")
    if len(tokens) < 2:
        raise InputError("There is one prompt, so nothing can be drawn in its place.", "Give more.")


def node_draws(
    hypothesis: Hypothesis, inputs: Inputs, root: Use, graph: CircuitGraph
) -> tuple[NodeDraws, ...]:
    """How free every node's draws are."""
    uses = list(root.walk())
    found = []
    for name, node in hypothesis.nodes.items():
        classes = inputs.classes(node.depends_on)
        sizes = np.bincount(classes)[classes]
        part = next(use.part for use in uses if use.part.name == name)
        parts = [str(part.reader)] if part.reader else []
        for writer, heard_by in part.writers.items():
            only = sorted(heard_by, key=graph.reader_index.__getitem__) if heard_by is not None else []
            parts += [f"{writer}->{reader}" for reader in only] or [str(writer)]
        places = sum(use.part.name == name for use in uses)
        found.append(NodeDraws(name, tuple(parts), places, float(sizes.mean()), float((sizes == 1).mean())))
    return tuple(found)


@dataclass
class _Sweep:
    """Runs one tree under different draws."""

    scrubber: Scrubber
    hypothesis: Hypothesis
    root: Use
    metric: Metric
    unimportant: Unimportant
    budget: int | None

    def run(self, draws: Draws, work: Work, progress: Progress | None = None) -> Floats:
        """The metric of the scrubbed model, [prompt, sample]."""
        from mech_interp.methods.circuits.scrubbing_rows import Evaluation

        n = len(draws.inputs)

        def some(numbers: Sequence[int]) -> Floats:
            part = np.array(numbers)
            evaluation = Evaluation(
                self.scrubber, self.hypothesis, self.root, draws, self.unimportant, part, work
            )
            final = evaluation.final(max(1, self._rows_at_once() // 4))
            return self.scrubber.read(final, (part % n).tolist(), self.metric)

        # Prompts vary slowest, so that samples of one prompt, which share values, fall into one block.
        order = np.arange(draws.samples * n).reshape(draws.samples, n).T.ravel()
        parts, _ = shrinking(order.tolist(), self._rows_at_once(), some, progress)
        values = np.concatenate(parts)
        if values.ndim != 1:
            raise InputError("The metric gives several values per prompt.", "Use a metric with one value.")
        if np.isnan(values).any():
            raise SanityError("The metric of a scrubbed prompt is not a number.", "Check the weights.")
        return values.reshape(n, draws.samples)

    def random(self, draws: Draws) -> Floats:
        """The metric of the model on the inputs that the root draws for what does not matter."""
        drawn = draws.random(self.root.path).T.ravel()
        labels = np.repeat(np.arange(len(draws.inputs)), draws.samples)
        found = self.scrubber.plain(drawn, labels.tolist(), self.metric)
        return found.reshape(len(draws.inputs), draws.samples)

    def identity(self, inputs: Inputs, own: Floats, most: float) -> float:
        """Error of scrubbing with every input its own reference, which must be the model."""
        from mech_interp.methods.circuits.scrubbing_rows import Evaluation, Work

        some = np.arange(min(4, len(inputs)))
        draws = Draws(inputs, 1, 0, own=True)
        final = Evaluation(
            self.scrubber, self.hypothesis, self.root, draws, self.unimportant, some, Work()
        ).final(len(some))
        found = self.scrubber.read(final, some.tolist(), self.metric)
        error = float(np.abs(found - own[some]).max()) / max(1.0, float(np.abs(own).max()))
        if not error <= most:
            raise SanityError(
                f"Scrubbing with every input its own reference missed the model by {error:.1e} of the "
                "metric's size.",
                "Scrubbing is wrong for this model, so its numbers are void; report it.",
            )
        return error

    def _rows_at_once(self) -> int:
        """Rows whose values fit the budget: what every node writes, for all its places."""
        info, width = self.scrubber.model.info, self.scrubber.tokens.ids.shape[1]
        vectors = sum(len(use.part.writers) or 1 for use in self.root.walk() if use.slots)
        size = self.scrubber.engine.clean.embed.element_size()
        per_row = width * size * (vectors * info.d_model + 6 * info.d_model + 2 * info.d_mlp)
        return max(1, (self.budget or DEFAULT_BUDGET) // per_row)
