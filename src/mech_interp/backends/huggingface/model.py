"""The default backend: a Hugging Face causal language model opened into named sites."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.entries import gather_entries, site_means
from mech_interp.backends.huggingface.generation import CachedSteps, default_stops, generate
from mech_interp.backends.huggingface.layouts.base import Layout
from mech_interp.backends.huggingface.rows import run_rows
from mech_interp.backends.huggingface.stack import embed, finish, frame_for, logits_of, run_blocks
from mech_interp.backends.metrics import Metric
from mech_interp.backends.protocol import (
    Activations,
    ForwardResult,
    Generation,
    InstrumentedModel,
    LogitsChoice,
    ModelInfo,
    Progress,
    Row,
    RowResult,
)
from mech_interp.backends.tokenize import tokenize
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, nearest
from mech_interp.interventions import Intervention
from mech_interp.sites import Site

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | Tokens


class HuggingFaceModel:
    """Runs the checkpoint's own submodules piece by piece; implements `InstrumentedModel`.

    `attention` is ``sdpa`` (fused; scores and patterns are computed step by step only in layers where
    they are asked for) or ``eager``. Use `mech_interp.load_model` or `opening.open_module` to make one.
    """

    def __init__(self, layout: Layout, tokenizer: Any, info: ModelInfo) -> None:
        self.layout = layout
        self._tokenizer = tokenizer
        self._info = info

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        return self._info

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None."""
        return self._tokenizer

    @property
    def module(self) -> Any:
        """The Hugging Face module whose parts are run."""
        return self.layout.module

    def __repr__(self) -> str:
        return f"HuggingFaceModel({self.info.name!r}, {self.info.architecture}, {self.info.dtype})"

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
        """Run the model; see `InstrumentedModel.forward`. Captures see the value after interventions.

        `prompt_ids` numbers the prompts as the other runs do (by default 0, 1, …).
        """
        tokens = self.tokens(prompts)
        sites = ed.resolve_captures(self._info, capture)
        self._check_stop(stop_after)
        ids = list(range(len(tokens))) if prompt_ids is None else list(prompt_ids)
        if len(ids) != len(tokens) or min(ids) < 0:
            raise InputError(
                f"prompt_ids={ids} does not number the {len(tokens)} prompts.",
                "Give one number from 0 up for each prompt.",
            )
        edits = ed.compile_edits(self._info, tokens, interventions, ids)
        with nullcontext() if grad else torch.no_grad():
            sources = RunReader(self, interventions, runs or {})
            tap = ed.Tap(
                edits,
                {(s.kind, s.layer) for s in sites},
                reader=sources if runs else None,
                lengths=self._info.keys_seen(tokens),
            )
            out = self._forward(tokens, tap, logits, stop_after, grad)
        tap.check_all_fired()
        return ForwardResult(out, Activations(ed.slice_captured(sites, tap.captured)), tokens)

    def _forward(
        self, tokens: Tokens, tap: ed.Tap, logits: LogitsChoice, stop_after: int | None, grad: bool
    ) -> Tensor | None:
        positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device)[None]
        x = embed(self.layout, tokens.ids, positions, tap, grad=grad)
        last = self._info.n_layers - 1 if stop_after is None else stop_after
        explicit, lengths = self._info.attention == "eager", self._info.keys_seen(tokens)
        frame = frame_for(self.layout, x, positions, explicit=explicit, lengths=lengths)
        x = run_blocks(self.layout, x, range(last + 1), frame, tap)
        if stop_after is not None:
            return None
        if logits == "none" and not tap.wants("ln_final", None) and not tap.wants("logits", None):
            return None
        return self._read_logits(x, tokens, tap, logits)

    def _read_logits(self, x: Tensor, tokens: Tokens, tap: ed.Tap, logits: LogitsChoice) -> Tensor | None:
        if logits in ("all", "none") or tap.wants("ln_final", None) or tap.wants("logits", None):
            out = finish(self.layout, x, tap)
            if logits == "none":
                return None
            return out if logits == "all" else pick(out, tokens, logits)
        return finish(self.layout, pick(x, tokens, logits), tap)

    def rows(
        self,
        runs: Tokens | Mapping[str, Tokens],
        rows: Sequence[Row],
        metric: Metric,
        *,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[RowResult]:
        """Evaluate a metric on many rows, reusing what an intervention cannot change."""
        return run_rows(self, runs, rows, metric, memory_budget=memory_budget, progress=progress)

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Final norm, unembedding and softcap of [..., d_model].

        `token_ids` [..., k] (or [k]) computes only those logits.
        """
        normed = self.layout.final_norm(resid)
        return logits_of(self.layout, normed, token_ids)

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """The gradient of <final_norm(x), direction> at frozen scale, [..., d_model].

        With LayerNorm the mean subtraction is part of the linear map; with RMSNorm there is none.
        """
        if self.layout.norm == "none":
            return direction
        gain = direction * self.layout.weights()["ln_final.w"]
        if self.layout.norm == "layer":
            centred = resid - resid.mean(-1, keepdim=True)
            scale = (centred.pow(2).mean(-1, keepdim=True) + self.layout.norm_eps).sqrt()
            return (gain - gain.mean(-1, keepdim=True)) / scale
        return gain / (resid.pow(2).mean(-1, keepdim=True) + self.layout.norm_eps).sqrt()

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """One weight tensor in the convention of `InstrumentedModel.weights`.

        Raises:
            InputError: naming the kinds there are, when the model has no such weight.
        """
        if layer is not None and not 0 <= layer < self._info.n_layers:
            raise InputError(
                f"There is no layer {layer}: {self._info.name} has {self._info.n_layers} layers.",
                f"Use 0 to {self._info.n_layers - 1}.",
            )
        found = self.layout.weights() if layer is None else self.layout.blocks[layer].weights()
        if kind not in found:
            where = "outside the blocks" if layer is None else f"in layer {layer}"
            raise InputError(
                f"{self._info.name} has no weight {kind!r} {where}.",
                nearest(kind, found) or f"There are: {', '.join(found)}.",
            )
        weight = found[kind].detach()
        if head is None:
            return weight
        if weight.dim() < 2 or kind not in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V"):
            raise InputError(f"{kind} is not divided into heads.", "Leave out head=.")
        if not 0 <= head < weight.shape[0]:
            raise InputError(f"{kind} has no head {head}.", f"Use 0 to {weight.shape[0] - 1}.")
        return weight[head]

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
        """Continue prompts with a key/value cache; see `generation.generate`."""
        tokens = self.tokens(prompts)
        return generate(
            self,
            tokens,
            lambda interventions, new: CachedSteps(self, tokens, interventions, new),
            default_stops=default_stops(self.module),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
            stop_ids=stop_ids,
            interventions=interventions,
        )

    def _check_stop(self, stop_after: int | None) -> None:
        if stop_after is not None and not 0 <= stop_after < self._info.n_layers:
            raise InputError(
                f"stop_after={stop_after} is out of range.",
                f"{self._info.name} has layers 0 to {self._info.n_layers - 1}.",
            )


class RunReader:
    """Values of sites in other runs, computed once, when first needed."""

    def __init__(
        self, model: InstrumentedModel, interventions: Sequence[Intervention], runs: Mapping[str, Tokens]
    ) -> None:
        wanted = ed.needed_sources(interventions)
        means = ed.needed_means(interventions)
        self._causal = model.info.causal
        self._values: dict[tuple[str, Site], Tensor] = {}
        self._masks: dict[str, Tensor] = {}
        for run in {*wanted, *means}:
            if run not in runs:
                raise InputError(
                    f"An intervention reads the run {run!r}, which was not given.",
                    f"Pass it in runs=; given: {', '.join(runs) or 'none'}.",
                )
            places = [Site(*place) for place in wanted.get(run, set()) | means.get(run, set())]
            result = model.forward(runs[run], capture=places, logits="none")
            self._masks[run] = result.tokens.mask
            self._values |= {(run, site): result.activations[site] for site in places}

    def gather(
        self, run: str, site: Site, prompts: Tensor, positions: Tensor, heads: Tensor | None, seen: Tensor
    ) -> Tensor:
        """[n, features] of a site in a run."""
        values, lengths = self._values[run, site.whole], self._masks[run].sum(1)
        return gather_entries(values, lengths, site, prompts, positions, heads, seen)

    def mean(self, run: str, site: Site, positional: bool) -> Tensor:
        """Mean of a site over the real tokens of a run."""
        return site_means(site, self._values[run, site.whole], self._masks[run], positional, self._causal)


def pick(x: Tensor, tokens: Tokens, logits: LogitsChoice) -> Tensor:
    """Each prompt's last token [prompt, ...] or chosen positions [prompt, n, ...]."""
    rows = torch.arange(len(tokens), device=x.device)
    if logits == "last":
        return x[rows, torch.tensor(tokens.lengths, device=x.device) - 1]
    assert not isinstance(logits, str)
    columns = [[tokens.position(i, p) for p in logits] for i in range(len(tokens))]
    return x[rows[:, None], torch.tensor(columns, device=x.device)]
