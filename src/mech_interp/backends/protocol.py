"""The protocol every backend implements, and the types that cross it. Tensors are torch tensors."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from mech_interp.backends.metrics import Metric
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError, NotFiredError, nearest
from mech_interp.interventions import Intervention
from mech_interp.sites import Site

if TYPE_CHECKING:
    from torch import Tensor


class Capability(enum.StrEnum):
    """What a backend can do; a family asks for what it needs before anything is loaded."""

    CAPTURE = "capture"
    INTERVENE = "intervene"
    GRADIENTS = "gradients"
    ROWS = "rows"
    HEADS = "heads"
    WEIGHTS = "weights"
    GENERATE = "generate"
    EDGES = "edges"


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a loaded model.

    Sizes are counts; `context` is the largest number of tokens, `weights_hash` and `tokenizer_hash`
    are SHA-256 of the files (or of the tensors of an in-memory model). `missing_kinds` and
    `missing_sites` (kind and layer) say why the model lacks a site. `norm` is the kind of its norms
    (``layer``, ``rms`` or ``none``), `norm_eps` what they add to the variance; `notice` is what a user
    should know about how the model was opened. In a model that is not `causal` every position sees the
    whole prompt. `n_outputs` counts logits (by default as many as tokens); `windows` gives the sliding
    window of each layer in tokens (None: it sees everything), where the backend knows them. Kinds in
    `capture_only` can be captured but not changed, for the reason given.
    """

    name: str
    backend: str
    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    context: int
    dtype: str
    device: str
    attention: str
    n_parameters: int
    weights_hash: str
    tokenizer_hash: str
    capabilities: frozenset[Capability]
    site_kinds: frozenset[str]
    missing_kinds: Mapping[str, str] = field(default_factory=dict)
    missing_sites: Mapping[tuple[str, int], str] = field(default_factory=dict)
    source: str = ""
    norm: str = "layer"
    norm_eps: float = 0.0
    notice: str = ""
    causal: bool = True
    n_outputs: int = 0
    windows: tuple[int | None, ...] = ()
    capture_only: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_outputs", self.n_outputs or self.vocabulary)

    def heads(self, kind: str) -> int:
        """Number of heads that sites of this kind index."""
        return self.n_kv_heads if kind in ("k", "v", "rot_k") else self.n_heads

    def keys_seen(self, tokens: Tokens) -> Tensor | None:
        """[prompt]: how many keys every query of a prompt sees; None where it sees those up to itself."""
        if self.causal:
            return None
        import torch

        return torch.tensor(tokens.lengths, device=tokens.ids.device)


class Activations(Mapping[Site, "Tensor"]):
    """Captured tensors by site; keys may be given as text.

    Each tensor is [prompt, *axes of the kind]; a site with a head gives that head's slice. Columns
    past a prompt's length hold no information.
    """

    def __init__(self, values: Mapping[Site, Tensor]) -> None:
        self._values = dict(values)

    def __getitem__(self, site: Site | str) -> Tensor:
        parsed = Site.parse(site)
        if parsed in self._values:
            return self._values[parsed]
        if parsed.head is not None and parsed.whole in self._values:
            axis = 1 + parsed.spec.axes.index("kv_head" if parsed.spec.heads == "kv" else "head")
            return self._values[parsed.whole].select(axis, parsed.head)
        raise NotFiredError(
            f"{parsed} was not captured.",
            nearest(str(parsed), map(str, self._values)) or "Name it in capture=.",
        )

    def __contains__(self, site: object) -> bool:
        try:
            self[site]  # type: ignore[index]  # whatever names no captured site is not in it
        except (NotFiredError, InputError):
            return False
        return True

    def __iter__(self) -> Iterator[Site]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


@dataclass(frozen=True)
class ForwardResult:
    """What one forward pass returns.

    Attributes:
        logits: [prompt, position, vocabulary] for ``"all"``; [prompt, n, vocabulary] for n chosen
            positions; [prompt, vocabulary] for ``"last"`` (each prompt's own last token); None for
            ``"none"``.
        activations: the captured sites.
        tokens: the batch that was run.
    """

    logits: Tensor | None
    activations: Activations
    tokens: Tokens


@dataclass(frozen=True)
class Row:
    """One prompt of a base run with the interventions made on it; what the executor batches."""

    prompt: int
    interventions: tuple[Intervention, ...] = ()
    run: str = "base"


@dataclass(frozen=True)
class RowResult:
    """The metric of row `index`; `computed` is false where the plan proved it equal to the base run's."""

    index: int
    value: Tensor
    computed: bool


@dataclass(frozen=True)
class Generation:
    """Generated continuations: token ids per prompt (without the prompt), texts, and why each ended."""

    ids: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    finished: tuple[Literal["stop", "length"], ...]


Progress = Callable[[int, int], None]
LogitsChoice = Literal["all", "last", "none"] | Sequence[int]


@runtime_checkable
class InstrumentedModel(Protocol):
    """A language model opened into named sites."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model."""
        ...

    @property
    def tokenizer(self) -> Any:
        """The Hugging Face tokenizer, or None for a model without one."""
        ...

    def tokens(self, prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens) -> Tokens:
        """Tokenise; special tokens exactly as the tokenizer's own default, stated in `convention`."""
        ...

    def forward(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens,
        *,
        capture: Sequence[Site | str] = (),
        interventions: Sequence[Intervention] = (),
        runs: Mapping[str, Tokens] | None = None,
        logits: LogitsChoice = "all",
        stop_after: int | None = None,
        grad: bool = False,
        prompt_ids: Sequence[int] | None = None,
    ) -> ForwardResult:
        """Run the model; capture sites (as they are after interventions), apply interventions.

        `runs` are the other runs (same prompt numbering) that interventions read values from.
        `stop_after` stops after that layer, without logits. With `grad`, activations and logits
        carry gradients. `prompt_ids` numbers the prompts as `runs` do (by default 0, 1, …).
        """
        ...

    def rows(
        self,
        runs: Tokens | Mapping[str, Tokens],
        rows: Sequence[Row],
        metric: Metric,
        *,
        memory_budget: int | None = None,
        progress: Progress | None = None,
    ) -> Iterator[RowResult]:
        """Evaluate a metric on many rows; results stream in the order they are computed."""
        ...

    def unembed(self, resid: Tensor, token_ids: Tensor | None = None) -> Tensor:
        """Final norm, unembedding and softcap of a residual stream [..., d_model]; all or chosen logits."""
        ...

    def final_norm_direction(self, resid: Tensor, direction: Tensor) -> Tensor:
        """Pull a direction in normalised space back through the final norm frozen at `resid`.

        For LayerNorm: ((g*u) - mean(g*u)) / sigma(resid); for RMSNorm g*u / rms(resid), so that
        <x, result> is x's contribution along `direction`. Both [..., d_model].
        """
        ...

    def weights(self, kind: str, layer: int | None = None, head: int | None = None) -> Tensor:
        """One weight tensor, in one convention for all architectures.

        In a layer: W_Q, W_K, W_V [heads, d_model, d_head], W_O [heads, d_head, d_model],
        W_in, W_gate [d_model, d_mlp], W_out [d_mlp, d_model], b_*, and the norms ln1.*, ln2.*.
        Outside: W_E, W_pos, W_U [d_model, vocabulary], b_U, ln_final.*.
        """
        ...

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]] | Tokens,
        *,
        max_new_tokens: int = 32,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_ids: Sequence[int] | None = None,
        interventions: Sequence[Intervention] = (),
    ) -> Generation:
        """Continue prompts with a key/value cache; greedy at temperature 0."""
        ...
