"""Batched continuation with a key/value cache, under interventions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.stack import embed, finish, frame_for, run_blocks
from mech_interp.backends.protocol import Generation, InstrumentedModel, ModelInfo
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, InputError
from mech_interp.interventions import Intervention

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel

Phase = Literal["prompt", "generated"]


class Cache:
    """Keys and values of every layer, [row, position, kv_head, d_head], written at true positions."""

    def __init__(self, n_rows: int, width: int) -> None:
        self.n_rows, self.width = n_rows, width
        self.filled = 0
        self._store: dict[int, tuple[Tensor, Tensor]] = {}
        self._at: tuple[Tensor, Tensor] | None = None

    def write_at(self, positions: Tensor) -> None:
        """Say where the next columns belong, positions [row, column]."""
        rows = torch.arange(self.n_rows, device=positions.device)[:, None]
        self._at = (rows.expand_as(positions), positions)
        self.filled = max(self.filled, int(positions.max()) + 1)

    def __call__(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self._store:
            shape = (self.n_rows, self.width, *k.shape[2:])
            self._store[layer] = (k.new_zeros(shape), v.new_zeros(shape))
        keys, values = self._store[layer]
        assert self._at is not None
        keys[self._at], values[self._at] = k, v
        # Slots past a row's own position hold padding or zeros; the mask hides them.
        return keys[:, : self.filled], values[:, : self.filled]


class Steps(Protocol):
    """Computes logits of further tokens; remembers what came before."""

    def __call__(self, ids: Tensor, positions: Tensor, phase: Phase) -> Tensor:
        """Logits [row, column, vocabulary] of tokens [row, column] at positions [row, column]."""
        ...


class CachedSteps:
    """`Steps` of the default engine: each token is computed once, keys and values are kept."""

    def __init__(
        self,
        model: HuggingFaceModel,
        tokens: Tokens,
        interventions: Sequence[Intervention],
        max_new_tokens: int,
    ) -> None:
        self.model, self.tokens, self.interventions = model, tokens, interventions
        self.cache = Cache(len(tokens), tokens.ids.shape[1] + max_new_tokens)

    def __call__(self, ids: Tensor, positions: Tensor, phase: Phase) -> Tensor:
        model = self.model
        self.cache.write_at(positions)
        edits = ed.Edits(model.info.windows)
        add_phase(edits, model.info, self.tokens, positions, self.interventions, phase)
        tap = ed.Tap(edits)
        if phase == "generated":
            tap.read_positions = positions
        x = embed(model.layout, ids, positions, tap)
        explicit = model.info.attention == "eager"
        frame = frame_for(model.layout, x, positions, kv=self.cache, explicit=explicit)
        x = run_blocks(model.layout, x, range(model.info.n_layers), frame, tap)
        logits = finish(model.layout, x, tap)
        tap.check_all_fired()
        return logits


@torch.no_grad()
def generate(
    model: InstrumentedModel,
    tokens: Tokens,
    steps: Callable[[Sequence[Intervention], int], Steps],
    *,
    default_stops: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    stop_ids: Sequence[int] | None,
    interventions: Sequence[Intervention],
) -> Generation:
    """Continue each prompt; greedy at temperature 0, otherwise sampled with one seeded stream per prompt.

    Intervention positions count from the start of the prompt and go on into the continuation (negative
    ones count from the prompt's end); `phase` restricts them to prompt or generated tokens. `steps` makes
    what computes the logits, from the interventions and the number of new tokens.

    Raises:
        InputError: when prompt and continuation do not fit the context, or an option is out of range.
    """
    _check_options(model, tokens, max_new_tokens, temperature, top_k, top_p)
    for intervention in interventions:
        _check_intervention(model, tokens, max_new_tokens, intervention)
    stops = set(default_stops if stop_ids is None else stop_ids)
    step_on = steps(interventions, max_new_tokens)
    lengths = torch.tensor(tokens.lengths, device=tokens.ids.device)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in range(len(tokens))]
    made: list[list[int]] = [[] for _ in range(len(tokens))]
    ended = [False] * len(tokens)

    positions = torch.arange(tokens.ids.shape[1], device=tokens.ids.device).expand(len(tokens), -1)
    logits = step_on(tokens.ids, positions, "prompt")
    last = logits[torch.arange(len(tokens)), lengths - 1]
    for step in range(max_new_tokens):
        chosen = [_choose(row, temperature, top_k, top_p, g) for row, g in zip(last, generators, strict=True)]
        for row, token in enumerate(chosen):
            if not ended[row]:
                made[row].append(token)
                ended[row] = token in stops
        if all(ended) or step == max_new_tokens - 1:
            break
        ids = torch.tensor(chosen, device=tokens.ids.device)[:, None]
        last = step_on(ids, (lengths + step)[:, None], "generated")[:, 0]
    finished: list[Literal["stop", "length"]] = ["stop" if e else "length" for e in ended]
    texts = tuple(model.tokenizer.decode(row) if model.tokenizer else "" for row in made)
    return Generation(tuple(map(tuple, made)), texts, tuple(finished))


def add_phase(
    edits: ed.Edits,
    info: ModelInfo,
    tokens: Tokens,
    positions: Tensor,
    interventions: Sequence[Intervention],
    phase: Phase,
) -> None:
    """Add the edits of one step: all positions of the prompts, or the one generated position per row."""
    for intervention in interventions:
        if intervention.phase not in ("all", phase):
            continue
        chosen = []
        for row in ed.prompts_of(intervention, len(tokens)):
            length = tokens.lengths[row]
            here: Sequence[int] = range(length) if phase == "prompt" else [int(positions[row, 0])]
            if intervention.positions is not None:
                wanted = {p + length if p < 0 else p for p in intervention.positions}
                here = [p for p in here if p in wanted]
            chosen.append((row, row, here))
        edits.add(intervention, chosen, info.heads(intervention.site.kind))


def _check_intervention(
    model: InstrumentedModel, tokens: Tokens, max_new_tokens: int, intervention: Intervention
) -> None:
    """Refuse an intervention that could never fire, or that needs what generation has not."""
    site, phase = intervention.site, intervention.phase
    ed.check_intervention(model.info, intervention)
    if intervention.operation.sources() or intervention.operation.means():
        raise InputError(
            f"The intervention at {site} reads another run, but generation has none.",
            "Capture the value first and give it as a tensor.",
        )
    for prompt in ed.prompts_of(intervention, len(tokens)):
        length = tokens.lengths[prompt]
        # The last token made is never read, so it has no activations.
        begin = length if phase == "generated" else 0
        end = length if phase == "prompt" else length + max_new_tokens - 1
        if begin == end:
            raise InputError(
                f"The intervention at {site} would never fire: no generated token is read.",
                "Use max_new_tokens of at least 2, or phase all.",
            )
        for position in intervention.positions or ():
            column = position + length if position < 0 else position
            if not begin <= column < end:
                raise InputError(
                    f"Position {position} of the intervention at {site} would never fire: with phase "
                    f"{phase}, prompt {prompt} of {length} tokens has positions {begin} to {end - 1}.",
                    "Change the position, the phase or max_new_tokens.",
                )


def _choose(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator
) -> int:
    if temperature == 0:
        return int(logits.argmax())
    scores = logits.double().cpu() / temperature
    if top_k is not None:
        scores = scores.masked_fill(scores < scores.topk(min(top_k, len(scores))).values[-1], -torch.inf)
    if top_p is not None:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        scores[order[before >= top_p]] = -torch.inf  # the smallest set whose mass reaches top_p
    return int(torch.multinomial(scores.softmax(-1), 1, generator=generator))


def default_stops(module: Any) -> list[int]:
    """The end-of-text ids of a library model."""
    config: Any = getattr(module, "generation_config", None) or module.config
    stops = getattr(config, "eos_token_id", None)
    if stops is None:
        return []
    return list(stops) if isinstance(stops, list | tuple) else [int(stops)]


def _check_continues(model: InstrumentedModel) -> None:
    info = model.info
    if not info.causal:
        raise CapabilityError(
            f"{info.name} cannot continue a text: each of its positions sees the whole prompt.",
            "Read its logits with forward instead.",
        )
    if info.n_outputs != info.vocabulary:
        raise CapabilityError(
            f"{info.name} cannot continue a text: its {info.n_outputs} logits are not over its "
            f"{info.vocabulary} tokens.",
            "Read its logits with forward instead.",
        )


def _check_options(
    model: InstrumentedModel,
    tokens: Tokens,
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
) -> None:
    _check_continues(model)
    room = model.info.context - max(tokens.lengths)
    if not 1 <= max_new_tokens <= room:
        raise InputError(
            f"max_new_tokens={max_new_tokens} does not fit: the longest prompt has {max(tokens.lengths)} "
            f"tokens and {model.info.name} reads at most {model.info.context}.",
            f"Use 1 to {room}." if room > 0 else "Shorten the prompt.",
        )
    if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
        raise InputError(
            "temperature must be at least 0, top_k at least 1 and top_p in (0, 1].", "Change the option."
        )
