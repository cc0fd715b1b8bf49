"""Facts of a model that its config states, known before any weight is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mech_interp.errors import InputError, ModelError
from mech_interp.sites import Site

if TYPE_CHECKING:
    from mech_interp.backends.architectures import Architecture

# Names of the same fact in the configs of different architectures, the commonest first.
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_MLP = ("intermediate_size", "n_inner", "ffn_dim")
_CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx")
_OTHERS = "List what each architecture has with: mech list-hf-architectures"


@dataclass(frozen=True)
class ModelFacts:
    """Sizes (counts) and architecture of a model; layers and heads count from 0.

    `missing_kinds` and `missing_sites` (kind and layer) say why the model, on the backend that is to run
    it, lacks a site, `capture_only` why it can be read but not changed; all are empty where that is known
    only once it is loaded.
    """

    name: str
    architecture: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    d_mlp: int
    vocabulary: int
    context: int | None
    missing_kinds: Mapping[str, str] = field(default_factory=dict)
    missing_sites: Mapping[tuple[str, int], str] = field(default_factory=dict)
    capture_only: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, config: Mapping[str, Any], architecture: Architecture | None) -> ModelFacts:
        """What the architecture says, where it is known; otherwise what the ``config.json`` does.

        Raises:
            ModelError: see `from_config`.
        """
        if architecture is None:
            return cls.from_config(name, config)
        sizes = architecture.sizes
        return cls(
            name=name,
            architecture=architecture.model_type,
            n_layers=sizes.n_layers,
            n_heads=sizes.n_heads,
            n_kv_heads=sizes.n_kv_heads,
            d_model=sizes.d_model,
            d_head=sizes.d_head,
            d_mlp=sizes.d_mlp,
            vocabulary=sizes.vocabulary,
            context=sizes.context,
            missing_kinds=architecture.missing_kinds,
            missing_sites=architecture.missing_sites,
            capture_only=architecture.capture_only,
        )

    @classmethod
    def from_config(cls, name: str, config: Mapping[str, Any]) -> ModelFacts:
        """Read a ``config.json``; a model inside a larger one (``text_config``) counts.

        Raises:
            ModelError: when it states no layers, heads, width or vocabulary.
        """
        text = config.get("text_config")
        config = {**config, **text} if isinstance(text, Mapping) else config
        layers, heads = _need(name, config, _LAYERS), _need(name, config, _HEADS)
        width = _need(name, config, _WIDTH)
        return cls(
            name=name,
            architecture=str(config.get("model_type", "unknown")),
            n_layers=layers,
            n_heads=heads,
            n_kv_heads=_first(config, ("num_key_value_heads",)) or heads,
            d_model=width,
            d_head=_first(config, ("head_dim",)) or width // heads,
            d_mlp=_first(config, _MLP) or 4 * width,
            vocabulary=_need(name, config, ("vocab_size",)),
            context=_first(config, _CONTEXT),
        )

    def heads_of(self, kind: str) -> int:
        """How many heads sites of this kind index."""
        return self.n_kv_heads if kind in ("k", "v", "rot_k") else self.n_heads

    def check_layer(self, layer: int, what: str = "layer") -> int:
        """The layer counted from 0; negative ones count from the last.

        Raises:
            InputError: when the model has no such layer.
        """
        if not -self.n_layers <= layer < self.n_layers:
            raise InputError(
                f"{what} is {layer}, but {self.name} has {self.n_layers} layers.",
                f"Use 0 to {self.n_layers - 1}.",
            )
        return layer % self.n_layers

    def why_missing(self, kind: str, layer: int | None = None) -> str | None:
        """Why the model has no such site; None where it has, as far as is known."""
        if kind in self.missing_kinds:
            return self.missing_kinds[kind]
        return None if layer is None else self.missing_sites.get((kind, layer))

    def check_kinds(self, kinds: Iterable[str], family: str, layers: Iterable[int] | None = None) -> None:
        """Refuse what a family cannot do without.

        Raises:
            InputError: with the reason why the model lacks it.
        """
        chosen = range(self.n_layers) if layers is None else list(layers)
        for kind in kinds:
            reasons = [self.why_missing(kind), *(self.why_missing(kind, layer) for layer in chosen)]
            why = next((reason for reason in reasons if reason is not None), None)
            if why is not None:
                raise InputError(f"{family} needs {kind}, which {self.name} does not have: {why}.", _OTHERS)

    def check_site(self, site: Site | str, what: str = "site", *, changed: bool = False) -> Site:
        """The site, parsed, with layer and head that the model has; `changed` if it is to be changed.

        Raises:
            InputError: naming what the model has instead.
        """
        parsed = Site.parse(site)
        why = self.why_missing(parsed.kind, parsed.layer)
        if why is not None:
            raise InputError(f"{what} is {parsed}, which {self.name} does not have: {why}.", _OTHERS)
        if changed and parsed.kind in self.capture_only:
            why = self.capture_only[parsed.kind]
            raise InputError(f"{what} is {parsed}, which can be read but not changed: {why}.", _OTHERS)
        if parsed.layer is not None and parsed.layer >= self.n_layers:
            last = str(Site(parsed.kind, self.n_layers - 1))
            raise InputError(
                f"{what} is {parsed}, but {self.name} has {self.n_layers} layers.", f"The last is {last}."
            )
        heads = self.heads_of(parsed.kind)
        if parsed.head is not None and parsed.head >= heads:
            raise InputError(
                f"{what} is {parsed}, but {self.name} has {heads} heads there.", f"Use 0 to {heads - 1}."
            )
        return parsed


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    """The first of the keys that holds a positive count."""
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _need(name: str, config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    value = _first(config, keys)
    if value is None:
        raise ModelError(
            f"The config of {name} does not state {keys[0]}.", "Is it a decoder-only language model?"
        )
    return value
