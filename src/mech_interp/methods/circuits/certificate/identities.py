"""Identities that attribution must satisfy, whatever the model: planted ones and random architectures.

The right-hand sides share no code with the scores: gradients at sites of a plain forward, and the exact
edge engine differentiated with respect to its masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mech_interp import planted
from mech_interp.backends.huggingface.edge_gradients import edge_scores
from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.huggingface.layouts import tiny_module
from mech_interp.backends.huggingface.model import HuggingFaceModel
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.huggingface.writers import EDGE_LEVEL
from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.methods.circuits.certificate.cases import Bench
from mech_interp.methods.circuits.certificate.result import Bar, Measure
from mech_interp.sites import Site

IDENTITY_BAR = Bar("at most", 1e-5)
PLANTED = ("induction", "reverse", "or-gate", "null-random-weights")
NODE = "sum over readers = writer"
FINAL = "sum into logits = final stream"
SLOPE = "sum of all = common mask"
MASK = "edges = masks"
_LENGTHS = (7, 7, 5)


@dataclass(frozen=True)
class Subject:
    """A model with prompts and a metric."""

    name: str
    model: HuggingFaceModel
    clean: Tokens
    corrupt: Tokens
    metric: LogitDifference


def identities_section(bench: Bench) -> list[Measure]:
    """The largest error of each identity, relative to the largest edge score, per model."""
    measures = []
    for subject in subjects(bench):
        dtype = subject.model.info.dtype.removeprefix("torch.")
        for identity, (error, note) in errors(subject).items():
            measures.append(
                Measure(
                    "identities",
                    identity,
                    subject.name,
                    "largest error, relative to the largest score",
                    error,
                    len(subject.clean),
                    "prompts",
                    condition=dtype,
                    bar=IDENTITY_BAR,
                    note=note,
                )
            )
    return measures


def subjects(bench: Bench) -> Iterator[Subject]:
    """Planted models in double precision, and tiny random ones of every architecture in single."""
    for name in PLANTED:
        made = planted.build(name, 6.0, 0, torch.float64)
        pairs = made.pairs(4)
        yield Subject(name, made.open(), pairs.clean, pairs.corrupt, pairs.metric)
    chosen = bench.scope.architectures
    for name in EDGE_LEVEL if chosen is None else chosen:
        if name != "mech-planted":
            yield _random(name)


def errors(subject: Subject) -> dict[str, tuple[float, str]]:
    """By identity, its largest error relative to the largest |edge score|, and a note."""
    engine = EdgeEngine(subject.model, subject.clean, subject.corrupt)
    scores = edge_scores(engine, subject.metric).double()
    fresh = EdgeEngine(subject.model, subject.clean, subject.corrupt)
    size = float(scores.abs().max())
    slopes, masks = _mask_gradients(fresh, subject.metric)
    nodes, final, note = _by_sites(subject, fresh)
    edges_of = torch.stack([scores[:, number].sum(-1) for number in nodes], 1)
    found = {
        NODE: (edges_of - torch.stack(list(nodes.values()), 1), note),
        FINAL: (scores[:, :, -1].sum(-1) - final, ""),
        SLOPE: (scores.sum((1, 2)) - slopes, ""),
        MASK: (scores - masks, ""),
    }
    return {name: (float(gap.abs().max()) / size, said) for name, (gap, said) in found.items()}


def _mask_gradients(engine: EdgeEngine, metric: LogitDifference) -> tuple[Tensor, Tensor]:
    """Of the exact engine, per prompt: dm/da with every mask 1 - a, and -dm/d mask of every edge."""
    full = torch.tensor(engine.graph.possible).to(engine.clean.embed)
    slopes, gradients = [], []
    for prompt in range(len(engine.tokens)):
        alpha = torch.zeros((), dtype=full.dtype, requires_grad=True)
        value = engine.evaluate(((1 - alpha) * full)[None], metric, prompts=[prompt]).sum()
        slopes.append(torch.autograd.grad(value, alpha)[0])
        masks = full[None].clone().requires_grad_()
        value = engine.evaluate(masks, metric, prompts=[prompt]).sum()
        gradients.append(-torch.autograd.grad(value, masks)[0][0] * full)
    return torch.stack(slopes).double(), torch.stack(gradients).double()


def _by_sites(subject: Subject, engine: EdgeEngine) -> tuple[dict[int, Tensor], Tensor, str]:
    """Attribution of writers and of the final stream, from gradients at sites of a plain forward.

    By writer's number [prompt]; [prompt]; and what was left out.
    """
    model, graph = subject.model, engine.graph
    last = model.info.n_layers - 1
    held = any(block.post_attention is not None for block in model.layout.blocks)
    note = "the last MLP alone: earlier writers pass through held norm scales" if held else ""
    wanted: dict[Site, list[int]] = {}
    if not held:
        wanted[Site("resid_pre", 0)] = [graph.writer("input")]
    for layer in range(graph.n_layers):
        if not held:
            wanted[Site("z", layer)] = [graph.writer(f"a{layer}.h{head}") for head in range(graph.n_heads)]
        if graph.mlps and (not held or layer == last):
            wanted[Site("mlp_out", layer)] = [graph.writer(f"m{layer}")]
    sites = [*wanted, Site("resid_post", last)]
    run = model.forward(subject.clean, capture=sites, grad=True, logits="last")
    rows = torch.arange(len(subject.clean))
    logits: Any = run.logits
    logits = logits.reshape(len(rows), -1)
    value = logits[rows, list(subject.metric.correct)] - logits[rows, list(subject.metric.wrong)]
    gradients = torch.autograd.grad(value.sum(), [run.activations[site] for site in sites])
    other = model.forward(subject.corrupt, capture=sites, logits="none").activations
    real = subject.clean.mask
    totals: dict[int, Tensor] = {}
    final = torch.empty(0)
    for site, gradient in zip(sites, gradients, strict=True):
        change = other[site] - run.activations[site].detach()
        per_feature = torch.where(_wide(real, change), change * gradient, 0).double()
        if site.kind == "z":
            by_head = per_feature.sum((1, 3))
            totals |= {number: by_head[:, head] for head, number in enumerate(wanted[site])}
        elif site.kind == "resid_post":
            final = per_feature.sum((1, 2))
        else:
            totals[wanted[site][0]] = per_feature.sum((1, 2))
    return totals, final, note


def _wide(mask: Tensor, like: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *([1] * (like.dim() - 2)))


def _random(model_type: str) -> Subject:
    """A tiny random model with random prompt pairs, two of them of another length."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_module(tiny_module(model_type), name=f"random {model_type}")
        assert isinstance(model, HuggingFaceModel)  # every architecture with edges has a layout
        vocabulary = model.info.vocabulary
        clean, corrupt = ([torch.randint(1, vocabulary, (n,)).tolist() for n in _LENGTHS] for _ in range(2))
        answers = torch.randint(1, vocabulary, (2, len(_LENGTHS))).tolist()
    metric = LogitDifference(tuple(answers[0]), tuple(answers[1]))
    return Subject(
        f"random {model_type}", model, Tokens.from_lists(clean), Tokens.from_lists(corrupt), metric
    )
