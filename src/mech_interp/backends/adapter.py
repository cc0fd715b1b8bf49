"""What the backends beside the default one share: everything that follows from one whole forward.

A backend says how to run its model with every site passing through a `Tap`; captures, interventions,
rows and generation follow from that, in the same words and with the same checks as the default engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.generation import Phase, Steps, add_phase, generate
from mech_interp.backends.huggingface.model import Prompts, RunReader, pick
from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import (
    Activations,
    ForwardResult,
    Generation,
    LogitsChoice,
    ModelInfo,
    Progress,
    Row,
    RowResult,
)
from mech_interp.backends.rows.batched import batched_rows
from mech_interp.backends.tokenize import tokenize
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError, NotFiredError
from mech_interp.interventions import Intervention
from mech_interp.sites import Site


class Adapter(ABC):
    """Base of the backends that run whole forwards; implements `InstrumentedModel`."""

    def __init__(self, info: ModelInfo, tokenizer: Any) -> None:
        self._info, self._tokenizer = info, tokenizer

    @abstractmethod
    def run(self, tokens: Tokens, tap: ed.Tap, *, grad: bool = False) -> Tensor:
        """One forward over the left-justified batch: logits [prompt, position, vocabulary].

        Every site that ``tap.wants(kind, layer)`` goes through ``tap(kind, layer, value)`` in the shape
        of its `SiteKind` ([prompt, *axes]), in order of computation, and computing goes on with what
        the tap returns. Columns past a prompt's length must not influence earlier ones. With `grad` the
        embedding and everything after it carry gradients; the weights never do.
        """

    @abstractmethod
    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Final norm, unembedding and softcap of [..., d_model]; see `InstrumentedModel.unembed`."""

    @abstractmethod
    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """See `InstrumentedModel.final_norm_direction`."""

    @abstractmethod
    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """See `InstrumentedModel.weights`."""

    @property
    @abstractmethod
    def stop_ids(self) -> Sequence[int]:
        """The end-of-text ids at which generation stops by default."""

    def close(self) -> None:  # noqa: B027  # most change nothing
        """Give back whatever opening the model changed; the model is not used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return self._info

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""
        return self._tokenizer

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.info.name!r}, {self.info.architecture}, {self.info.dtype})"

    def tokens(self, prompts: Prompts) -> Tokens:
        """Tokenise text, or check ids; see `Tokens`. Never longer than the model's context."""
        return tokenize(prompts, self._tokenizer, self._info).to(self._info.device)

    def forward(
        self,
        prompts: Prompts,
        *,
        capture: Sequence[Site | str] = (),
        interventions: Sequence[Intervention] = (),
        runs: Mapping[str, Tokens] | None = None,
        logits: LogitsChoice = "all",
        stop_after: int | None = None,
        grad: bool = False,
        prompt_ids: Sequence[int] | None = None,
    ) -> ForwardResult:
        """Run the model; see `InstrumentedModel.forward`. Captures see the value after interventions."""
        if grad and "gradients" not in self.info.capabilities:
            raise CapabilityError(
                f"The backend {self.info.backend} computes no gradients.", "Use backend: huggingface."
            )
        tokens = self.tokens(prompts)
        sites = ed.resolve_captures(self.info, capture)
        ids = list(range(len(tokens))) if prompt_ids is None else list(prompt_ids)
        if len(ids) != len(tokens) or min(ids) < 0:
            raise InputError(
                f"prompt_ids={ids} does not number the {len(tokens)} prompts.",
                "Give one number from 0 up for each prompt.",
            )
        edits = ed.compile_edits(self.info, tokens, interventions, ids)
        self._check_stop(stop_after, [*sites, *(i.site for i in interventions)])
        with nullcontext() if grad else torch.no_grad():
            reader = RunReader(self, interventions, runs or {})
            tap = ed.Tap(
                edits,
                {(s.kind, s.layer) for s in sites},
                reader=reader if runs else None,
                lengths=self.info.keys_seen(tokens),
            )
            out: Tensor | None = self.run(tokens, tap, grad=grad)
        tap.check_all_fired()
        if logits == "none" or stop_after is not None:
            out = None
        elif logits != "all":
            assert out is not None
            out = pick(out, tokens, logits)
        return ForwardResult(out, Activations(ed.slice_captured(sites, tap.captured)), tokens)

    def evaluate(self, tokens: Tokens, tap: ed.Tap, positions: Sequence[int]) -> Tensor:
        """Logits [prompt, n, vocabulary] at chosen positions of a batch of rows."""
        with torch.no_grad():
            out = pick(self.run(tokens, tap), tokens, positions)
        tap.check_all_fired()
        return out

    def rows(
        self,
        runs: Tokens | Mapping[str, Tokens],
        rows: Sequence[Row],
        metric: Metric,
        *,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[RowResult]:
        """Evaluate a metric on many rows by whole forwards, many rows at a time."""
        return batched_rows(self, runs, rows, metric, progress=progress)

    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Generation:
        """Continue prompts, by default computing the whole text anew for every token; see `steps`."""
        tokens = self.tokens(prompts)
        return generate(
            self,
            tokens,
            lambda interventions, new: self.steps(tokens, interventions, new),
            default_stops=self.stop_ids,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=stop_ids,
            interventions=interventions,
        )

    def steps(self, tokens: Tokens, interventions: Sequence[Intervention], max_new_tokens: int) -> Steps:
        """What computes the logits of each further token of a generation."""
        return WholeSteps(self, tokens, interventions)

    def _check_stop(self, stop_after: int | None, sites: Sequence[Site]) -> None:
        if stop_after is None:
            return
        if not 0 <= stop_after < self.info.n_layers:
            raise InputError(
                f"stop_after={stop_after} is out of range.",
                f"{self.info.name} has layers 0 to {self.info.n_layers - 1}.",
            )
        for site in sites:
            if site.order[0] > stop_after:
                raise NotFiredError(
                    f"Nothing was computed at {site}, so it could not be captured or changed.",
                    "Look at stop_after and logits: the site lies beyond where this forward stopped.",
                )


class WholeSteps:
    """`Steps` without a cache: every step runs the text so far, with all its edits."""

    def __init__(self, model: Adapter, tokens: Tokens, interventions: Sequence[Intervention]) -> None:
        self.model, self.prompts, self.interventions = model, tokens, interventions
        self.text = [tokens.row(i) for i in range(len(tokens))]
        self.made: list[Tensor] = []

    def __call__(self, ids: Tensor, positions: Tensor, phase: Phase) -> Tensor:
        if phase == "generated":
            self.text = [[*row, int(token)] for row, token in zip(self.text, ids[:, 0], strict=True)]
            self.made.append(positions)
        edits = ed.Edits(self.model.info.windows)
        info, prompts, interventions = self.model.info, self.prompts, self.interventions
        add_phase(edits, info, prompts, positions, interventions, "prompt")
        for earlier in self.made:
            add_phase(edits, info, prompts, earlier, interventions, "generated")
        tokens = Tokens.from_lists(self.text).to(info.device)
        tap = ed.Tap(edits)
        logits = self.model.run(tokens, tap)
        tap.check_all_fired()
        if phase == "prompt":
            return logits
        rows = torch.arange(len(logits), device=logits.device)
        return logits[rows, positions[:, 0]][:, None]
