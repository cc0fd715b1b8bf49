"""Causal tracing as sweep rows.

A corrupted run is not a run of plain tokens, so it cannot be a base run of the executor. Instead each
fact's corrupted states are captured once per noise sample, and a row starts where the restoration
happens: the corrupted residual stream is set at that layer at every token from the corruption on, except
where it is restored. This equals noising the embeddings and restoring later (checked in every call), and
lets the executor skip all earlier layers and tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mech_interp.backends.metrics import Probability
from mech_interp.backends.protocol import InstrumentedModel, Progress, Row
from mech_interp.backends.tokens import Tokens
from mech_interp.datasets.pairs import PromptPair
from mech_interp.interventions import FromRun, Intervention, Operation, Replace
from mech_interp.methods.common import Floats, SanityError, as_floats, rounding
from mech_interp.methods.operations import AddFromTable, SetFromTable
from mech_interp.methods.paired import donors
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor

_STATE_BYTES = 256 * 2**20
Edits = tuple[Intervention, ...]


@dataclass(frozen=True)
class Fact:
    """One prompt: its ids, the ids of the other subject's prompt, subject columns [start, stop)."""

    number: int
    pair: PromptPair
    ids: list[int]
    corrupt: list[int] | None
    start: int
    stop: int
    answer: int
    known: bool

    @property
    def first(self) -> int:
        """The first column that the corruption changes."""
        if self.corrupt is None:
            return self.start
        return next(i for i, (a, b) in enumerate(zip(self.ids, self.corrupt, strict=True)) if a != b)


@dataclass(frozen=True)
class Setup:
    """What is traced and how."""

    model: InstrumentedModel
    kinds: Sequence[str]
    window: int
    noise_std: float
    samples: int
    seed: int
    severed: str | None
    interchange: bool
    memory_budget: int | None

    def layers_restored(self, layer: int) -> range:
        """The window of layers centred on `layer`, cut at the ends of the model."""
        low = layer - self.window // 2
        return range(max(0, low), min(self.model.info.n_layers, low + self.window))


@dataclass(frozen=True)
class Found:
    """Per fact: probabilities, indirect effects [layer, token] and control [layer] by kind."""

    clean: Floats
    corrupted: Floats
    effects: dict[str, list[Floats]]
    control: dict[str, Floats]
    sanity: dict[str, float]


def trace(setup: Setup, facts: Sequence[Fact], progress: Progress | None) -> Found:
    """Trace all facts, a few at a time so that their corrupted states fit in memory."""
    n_layers = setup.model.info.n_layers
    clean, corrupted = np.zeros(len(facts)), np.zeros((len(facts), setup.samples))
    effects: dict[str, list[Floats]] = {kind: [] for kind in setup.kinds}
    control = {kind: np.full((len(facts), n_layers), np.nan) for kind in setup.kinds}
    partner = donors([fact.pair for fact in facts], [0] * len(facts), setup.seed)
    sanity: dict[str, float] = {}
    for chosen in _portions(setup, facts):
        part = _Part(setup, [facts[i] for i in chosen])
        clean[chosen], corrupted[chosen] = part.clean, part.corrupted
        for name, error in part.checks().items():
            sanity[name] = max(error, sanity.get(name, 0.0))
        unrelated = [partner[i] for i in chosen]
        for kind in setup.kinds:
            effects[kind] += part.effects(kind)
            control[kind][chosen] = part.control(kind, [None if j is None else facts[j] for j in unrelated])
        if progress is not None:
            progress(chosen[-1] + 1, len(facts))
    return Found(clean, corrupted, effects, control, sanity)


def subject_noise(fact: Fact, sample: int, seed: int, d_model: int) -> Tensor:
    """Standard normal draws [subject token, d_model]; they depend on seed, prompt and sample only."""
    import torch

    key = f"{seed}|{sample}|{fact.ids}|{fact.start}".encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:7], "big"))
    return torch.randn(fact.stop - fact.start, d_model, generator=generator, dtype=torch.float64)


def _portions(setup: Setup, facts: Sequence[Fact]) -> Iterator[list[int]]:
    info = setup.model.info
    per_token = 4 * setup.samples * info.d_model * (info.n_layers + 1) * (2 if setup.severed else 1)
    chosen: list[int] = []
    width = 0
    for i, fact in enumerate(facts):
        wider = max(width, len(fact.ids))
        if chosen and per_token * wider * (len(chosen) + 1) > _STATE_BYTES:
            yield chosen
            chosen, wider = [], len(fact.ids)
        chosen.append(i)
        width = wider
    yield chosen


class _Part:
    """Some facts, each present once per sample: prompt number = fact x samples + sample."""

    def __init__(self, setup: Setup, facts: Sequence[Fact]) -> None:
        import torch

        self.setup, self.facts, self.model = setup, facts, setup.model
        self.copies = [(fact, sample) for fact in facts for sample in range(setup.samples)]
        self.base = self.model.tokens([fact.ids for fact, _ in self.copies])
        self.metric = Probability(tuple(fact.answer for fact, _ in self.copies))
        self.noise = self._noise()
        n_layers = self.model.info.n_layers
        streams = [Site("resid_pre", 0), *(Site("resid_post", layer) for layer in range(n_layers))]
        frozen = (
            []
            if setup.severed is None
            else [Site(f"{setup.severed}_out", layer) for layer in range(n_layers)]
        )
        with torch.no_grad():
            result = self.model.forward(
                self.corrupt_tokens, capture=[*streams, *frozen], interventions=self.start, logits="last"
            )
        self.states = {site: SetFromTable(result.activations[site]) for site in (*streams, *frozen)}
        self.clean = self._per_fact(self._values([Row(i) for i in range(len(self.copies))])).mean(1)
        assert result.logits is not None
        self.corrupted = self._per_fact(
            as_floats(self.metric(result.logits[:, None], range(len(self.copies))))
        )

    @property
    def corrupt_tokens(self) -> Tokens:
        """The prompts whose corrupted states are captured: with noise, the clean ones."""
        if not self.setup.interchange:
            return self.base
        return self.model.tokens([fact.corrupt or fact.ids for fact, _ in self.copies])

    @property
    def start(self) -> Edits:
        """What corrupts `corrupt_tokens`: the noise, or nothing."""
        return () if self.noise is None else (Intervention("embed", AddFromTable(self.noise)),)

    def _noise(self, scale: float = 1.0) -> Tensor | None:
        import torch

        if self.setup.interchange:
            return None
        width, d_model = self.base.ids.shape[1], self.model.info.d_model
        dtype = getattr(torch, self.model.info.dtype)
        out = torch.zeros(len(self.copies), width, d_model, dtype=dtype)
        for i, (fact, sample) in enumerate(self.copies):
            draw = subject_noise(fact, sample, self.setup.seed, d_model)
            out[i, fact.start : fact.stop] = (scale * self.setup.noise_std * draw).to(dtype)
        return out.to(self.model.info.device)

    def _stream(self, layer: int) -> Site:
        """The residual stream entering a layer, as it was captured."""
        return Site("resid_pre", 0) if layer == 0 else Site("resid_post", layer - 1)

    def _restored(self, fact: Fact, kind: str, layer: int, column: int) -> Edits:
        """The corrupted run, restored at one token."""
        after = range(fact.first, len(fact.ids))
        if kind == "resid_post":
            held = tuple(c for c in after if c != column)
            site = Site("resid_post", layer)
            edits = (Intervention(site, self.states[site], held),) if held else ()
            return (*edits, *self._severed(layer, column))
        window = self.setup.layers_restored(layer)
        site = self._stream(window.start)
        clean = Replace(FromRun("base"))
        put_back = (Intervention(Site(kind, one), clean, column) for one in window)
        return (Intervention(site, self.states[site], tuple(after)), *put_back)

    def _severed(self, layer: int, column: int) -> Edits:
        """Later MLP (or attention) outputs at the restored token, held at their corrupted values."""
        if self.setup.severed is None:
            return ()
        later = (Site(f"{self.setup.severed}_out", one) for one in range(layer + 1, self.model.info.n_layers))
        return tuple(Intervention(site, self.states[site], column) for site in later)

    def _literal(self, kind: str, layer: int, column: int) -> Edits:
        """The same as `_restored`, said plainly: corrupt, then put the clean state back."""
        window = [layer] if kind == "resid_post" else self.setup.layers_restored(layer)
        clean = Replace(FromRun("base"))
        put_back = (Intervention(Site(kind, one), clean, column) for one in window)
        return (*self.start, *put_back, *self._severed(layer, column))

    def _reaches(self, kind: str, layer: int, column: int, length: int) -> bool:
        """Whether a restoration can reach the last token: in the last layer only its own state can."""
        first = layer if kind == "resid_post" else self.setup.layers_restored(layer).start
        return first < self.model.info.n_layers - 1 or column == length - 1

    def effects(self, kind: str) -> list[Floats]:
        """Indirect effects [layer, token] of every fact, averaged over samples."""
        n_layers = self.model.info.n_layers
        places = [
            (f, layer, column)
            for f, fact in enumerate(self.facts)
            for layer in range(n_layers)
            for column in range(fact.first, len(fact.ids))
            if self._reaches(kind, layer, column, len(fact.ids))
        ]
        values = self._rows(places, lambda fact, layer, column: self._restored(fact, kind, layer, column))
        out = [np.zeros((n_layers, len(fact.ids))) for fact in self.facts]
        for (f, layer, column), value in zip(places, values, strict=True):
            out[f][layer, column] = value.mean() - self.corrupted[f].mean()
        return out

    def control(self, kind: str, unrelated: Sequence[Fact | None]) -> Floats:
        """The last subject token set to the clean state of an unrelated fact's, [fact, layer]."""
        n_layers = self.model.info.n_layers
        out = np.full((len(self.facts), n_layers), np.nan)
        numbers = [f for f, other in enumerate(unrelated) if other is not None]
        if not numbers:
            return out
        foreign = self._foreign(kind, unrelated)
        places = [(f, layer, self.facts[f].stop - 1) for f in numbers for layer in range(n_layers)]

        def edits(fact: Fact, layer: int, column: int) -> Edits:
            own = self._restored(fact, kind, layer, column)
            swapped = [layer] if kind == "resid_post" else self.setup.layers_restored(layer)
            kept = own if kind == "resid_post" else own[:1]
            put = (Intervention(Site(kind, one), foreign[Site(kind, one)], column) for one in swapped)
            return (*kept, *put)

        values = self._rows(places, edits)
        for (f, layer, _), value in zip(places, values, strict=True):
            out[f, layer] = value.mean() - self.corrupted[f].mean()
        return out

    def _foreign(self, kind: str, unrelated: Sequence[Fact | None]) -> dict[Site, Operation]:
        """Each site's clean vector at the unrelated facts' last subject token, for every position."""
        import torch

        facts = [other or self.facts[f] for f, other in enumerate(unrelated)]
        sites = [Site(kind, layer) for layer in range(self.model.info.n_layers)]
        tokens = self.model.tokens([fact.ids for fact in facts])
        with torch.no_grad():
            found = self.model.forward(tokens, capture=sites, logits="none").activations
        columns = torch.tensor([fact.stop - 1 for fact in facts])
        width = self.base.ids.shape[1]
        out: dict[Site, Operation] = {}
        for site in sites:
            vectors = found[site][torch.arange(len(facts)), columns].repeat_interleave(self.setup.samples, 0)
            out[site] = SetFromTable(vectors[:, None].expand(-1, width, -1))
        return out

    def checks(self) -> dict[str, float]:
        """Largest errors of what must hold exactly; refused when more than rounding."""
        found = {"restore_all": self._check_restore_all(), "literal_rows": self._check_literal()}
        if not self.setup.interchange:
            found["zero_noise"] = self._check_zero_noise()
        for name, error in found.items():
            if not error <= rounding(self.model):
                raise SanityError(
                    f"The check {name!r} of causal tracing is off by {error:.1e} in probability.",
                    "The backend's rows are wrong for this model, so its traces are void; report it.",
                )
        return found

    def _check_restore_all(self) -> float:
        whole = Intervention("resid_pre.0", Replace(FromRun("base")))
        chosen = range(min(4, len(self.copies)))
        values = self._values([Row(i, (*self.start, whole), "corrupt") for i in chosen])
        clean = [self.clean[i // self.setup.samples] for i in chosen]
        return float(np.abs(values - clean).max())

    def _check_zero_noise(self) -> float:
        none = self._noise(0.0)
        assert none is not None
        edit = (Intervention("embed", AddFromTable(none)),)
        values = self._per_fact(self._values([Row(i, edit) for i in range(len(self.copies))]))
        return float(np.abs(values - self.clean[:, None]).max())

    def _check_literal(self) -> float:
        fact = self.facts[0]
        layer = self.model.info.n_layers // 2
        cells = [(kind, layer, c) for kind in self.setup.kinds for c in (fact.stop - 1, len(fact.ids) - 1)]
        fast = [Row(0, self._restored(fact, *cell)) for cell in cells]
        plain = [Row(0, self._literal(*cell), "corrupt") for cell in cells]
        return float(np.abs(self._values(fast) - self._values(plain)).max())

    def _rows(
        self, places: Sequence[tuple[int, int, int]], edits: Callable[[Fact, int, int], Edits]
    ) -> Floats:
        """Answer probability for every (fact, layer, column) and sample, [places, samples]."""
        samples = self.setup.samples
        rows = []
        for f, layer, column in places:
            shared = edits(self.facts[f], layer, column)
            rows += [Row(f * samples + sample, shared) for sample in range(samples)]
        return self._values(rows).reshape(len(places), samples)

    def _values(self, rows: Sequence[Row]) -> Floats:
        runs = {"base": self.base, "corrupt": self.corrupt_tokens}
        values = np.full(len(rows), np.nan)
        for result in self.model.rows(runs, rows, self.metric, memory_budget=self.setup.memory_budget):
            values[result.index] = float(result.value)
        return values

    def _per_fact(self, values: Floats) -> Floats:
        return values.reshape(len(self.facts), self.setup.samples)
