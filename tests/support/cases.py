"""Every operation at every site: the cases that forwards and sweeps are tested on, and their oracle."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import reference
import torch
from torch import Tensor

from mech_interp.backends.protocol import Row
from mech_interp.backends.tokens import Tokens
from mech_interp.interventions import (
    Add,
    Custom,
    EditContext,
    Freeze,
    FromRun,
    Intervention,
    Mean,
    Noise,
    Operation,
    ProjectOut,
    Replace,
    Scale,
    SubspaceSet,
    Zero,
)
from mech_interp.sites import KINDS, Site

# Where a value may also be read from another site of the same kind of vector.
NEIGHBOUR = {
    "resid_pre": Site("resid_post", 2),
    "mlp_out": Site("resid_mid", 0),
    "z": Site("z", 0, 1),
    "q": Site("k", 2, 1),
    "v": Site("v", 1),
    "pattern": Site("pattern", 0),
    "mlp_post": Site("mlp_pre", 1),
    "attn_out": Site("result", 1, 3),
    "result": Site("attn_out", 0),
}


def features(model: Any, kind: str) -> int:
    """Features of a vector at a site; over keys any number will do."""
    sizes = {"d_model": model.info.d_model, "d_head": model.info.d_head, "d_mlp": model.info.d_mlp}
    return {**sizes, "vocab": model.info.vocabulary, "key": 6}[KINDS[kind].axes[-1]]


def bend(live: Tensor, context: EditContext) -> Tensor:
    """A user's function: bends each vector by an amount that depends on its position."""
    return live + 0.5 * torch.tanh(live) + 0.1 * context.positions[:, None].to(live)


def operations(model: Any, kind: str) -> dict[str, Operation]:
    """One of each operation, with values that fit the site."""
    generator = torch.Generator().manual_seed(KINDS[kind].stage)
    n = features(model, kind)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    two = torch.stack((draw(n), draw(n)))
    found: dict[str, Operation] = {
        "replace run": Replace(FromRun("other")),
        "replace prompt": Replace(FromRun("far", prompt=2)),
        "replace tensor": Replace(draw(n)),
        "add tensor": Add(draw(n), 0.7),
        "add run": Add(FromRun("far"), -0.5),
        "scale": Scale(-0.5),
        "project out": ProjectOut(two),
        "project out dependent": ProjectOut(torch.stack((two[0], two[1], two[0] - two[1]))),
        "subspace tensor": SubspaceSet(two, draw(n)),
        "subspace run": SubspaceSet(two[0], FromRun("far", prompt=2)),
        "zero": Zero(),
        "mean": Mean("other"),
        "mean by position": Mean("far", positional=True),
        "noise": Noise(0.5, seed=3),
        "freeze": Freeze("base"),
        "custom": Custom(bend),
    }
    if kind in NEIGHBOUR:
        found["replace site"] = Replace(FromRun("far", site=NEIGHBOUR[kind]))
    return found


def site_of(kind: str, layer: int) -> Site:
    """The site of a kind, in the layer where it has one."""
    return Site(kind, layer if KINDS[kind].in_block else None)


def one_of_each(model: Any, seed: int) -> list[Row]:
    """Every site kind with every operation, at random layers, prompts, runs, positions and heads."""
    choose = random.Random(seed)
    rows = []
    for kind in sorted(model.info.site_kinds):
        for name, operation in operations(model, kind).items():
            # Freezing to the base run only does something in another run.
            run = "other" if name == "freeze" else choose.choice(("base", "base", "other"))
            edit = intervention(model, kind, operation, choose)
            rows.append(Row(choose.randrange(3), (edit,), run))
    return rows


def intervention(model: Any, kind: str, operation: Operation, choose: random.Random) -> Intervention:
    """An operation at a random layer, positions (all prompts have five tokens or more) and heads."""
    positions = choose.choice([None, (-1,), (2,), (1, 3), (0, -2), (3,)])
    heads = None
    if KINDS[kind].heads:
        n_heads = model.info.heads(kind)
        # A value from the keys' two heads fits only the first two of the queries' four.
        reads_few = getattr(getattr(operation, "value", None), "site", None) == NEIGHBOUR["v"]
        pick = range(2 if reads_few else n_heads)
        heads = choose.choice([None, (choose.choice(pick),), tuple(choose.sample(pick, 2))])
    return Intervention(site_of(kind, choose.randrange(3)), operation, positions=positions, heads=heads)


def combinations(model: Any, n: int, seed: int) -> list[Row]:
    """Rows of two to four interventions at random sites, the same site included."""
    choose = random.Random(seed)
    kinds = sorted(model.info.site_kinds)
    rows = []
    for _ in range(n):
        edits = []
        kind = choose.choice(kinds)
        for _ in range(choose.randint(2, 4)):
            kind = kind if choose.random() < 0.3 else choose.choice(kinds)
            operation = choose.choice(list(operations(model, kind).values()))
            edits.append(intervention(model, kind, operation, choose))
        rows.append(Row(choose.randrange(3), tuple(edits), choose.choice(("base", "other"))))
    return rows


class Oracle:
    """Rows by the plain decoder: one prompt, one vector, one operation at a time."""

    def __init__(self, model: Any, runs: Mapping[str, Tokens], decoder: Any = reference.run) -> None:
        self.model, self.runs, self.decoder = model, runs, decoder
        self.seen: dict[tuple[str, int], dict[Site, Tensor]] = {}
        for run, tokens in runs.items():
            for prompt in range(len(tokens)):
                self.seen[run, prompt] = sites = {}

                def keep(kind: str, layer: int | None, x: Tensor, sites: Any = sites) -> Tensor:
                    sites[Site(kind, layer)] = x
                    return x

                decoder(model.module, tokens.row(prompt), keep)

    def logits(self, run: str, prompt: int, interventions: Sequence[Intervention]) -> Tensor:
        """[position, vocabulary] of one prompt under interventions."""
        length = self.runs[run].lengths[prompt]

        def edit(kind: str, layer: int | None, x: Tensor) -> Tensor:
            for one in interventions:
                if (one.site.kind, one.site.layer) == (kind, layer):
                    x = x.clone()
                    positions = range(length) if one.positions is None else one.positions
                    for position in positions:
                        self._edit_position(one, x, prompt, position % length)
            return x

        return self.decoder(self.model.module, self.runs[run].row(prompt), edit)

    def _seen(self, position: int, length: int) -> int:
        """How many keys a query sees."""
        return position + 1 if self.model.info.causal else length

    def _edit_position(self, one: Intervention, x: Tensor, prompt: int, position: int) -> None:
        kind = one.site.kind
        if not KINDS[kind].heads:
            x[position] = self._new(one, x[position], prompt, position, None)
            return
        heads = range(self.model.info.heads(kind)) if one.heads is None else one.heads
        for head in heads:
            if KINDS[kind].over_keys:
                seen = self._seen(position, x.shape[-1])
                visible = x[head, position, :seen]
                x[head, position, :seen] = self._new(one, visible, prompt, position, head)
            else:
                x[position, head] = self._new(one, x[position, head], prompt, position, head)

    def _read(
        self, source: FromRun, own: Site, prompt: int, position: int, head: int | None, seen: int
    ) -> Tensor:
        site = source.site or own
        head = head if site.head is None else site.head
        value = self.seen[source.run, prompt if source.prompt is None else source.prompt][site.whole]
        if site.spec.over_keys:
            return value[head, position, :seen]
        return value[position, head] if site.spec.heads else value[position]

    def _mean(self, operation: Mean, site: Site, position: int, head: int | None, n: int) -> Tensor:
        """Sums over real tokens, key by key where the site has keys."""
        total, count = torch.zeros(n, dtype=torch.float64), torch.zeros(n)
        for prompt, length in enumerate(self.runs[operation.run].lengths):
            for at in [position] if operation.positional else range(length):
                if at >= length:
                    continue
                seen = self._seen(at, length)
                vector = self._read(FromRun(operation.run), site, prompt, at, head, seen)[:n]
                total[: len(vector)] += vector
                # A pattern is zero at keys that a query does not see; a score is not defined there.
                count[: n if site.kind == "pattern" else len(vector)] += 1
        return total / count

    def _new(self, one: Intervention, x: Tensor, prompt: int, position: int, head: int | None) -> Tensor:
        operation = one.operation

        def wanted(value: Tensor | FromRun) -> Tensor:
            if isinstance(value, FromRun):
                return self._read(value, one.site, prompt, position, head, len(x))
            return widen(value, len(x))[: len(x)].to(x)

        match operation:
            case Replace(value):
                return wanted(value)
            case Add(value, scale):
                return x + scale * wanted(value)
            case Scale(factor):
                return x * factor
            case Zero():
                return torch.zeros_like(x)
            case ProjectOut(directions):
                return x - inside_span(x, directions)
            case SubspaceSet(directions, value):
                return x + inside_span(wanted(value) - x, directions)
            case Mean():
                return self._mean(operation, one.site, position, head, len(x))
            case Freeze(run):
                return wanted(FromRun(run))
            case Custom():
                return x + 0.5 * torch.tanh(x) + 0.1 * position
        raise AssertionError(operation)


def widen(x: Tensor, n: int) -> Tensor:
    """Zeros behind, to at least n."""
    return torch.cat((x, x.new_zeros(max(0, n - len(x)))))


def inside_span(x: Tensor, directions: Tensor) -> Tensor:
    """The component of x in the span of directions, by least squares."""
    rows = directions.reshape(-1, directions.shape[-1]).double()
    width = max(len(x), rows.shape[1])
    matrix = torch.stack([widen(row, width) for row in rows], 1)
    inside = matrix @ torch.linalg.pinv(matrix) @ widen(x, width).double()
    return inside[: len(x)].to(x)
