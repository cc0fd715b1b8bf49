"""What a model's config says of its architecture: sizes, sites, the reasons of what is missing.

A layout is put over a library model without memory (torch's meta device), so that the code that runs
models speaks, and no weight is read.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from mech_interp.errors import CapabilityError, MechError, ModelError
from mech_interp.sites import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mech_interp.backends.huggingface.layouts.base import Block, Layout, Sizes
    from mech_interp.backends.protocol import ModelInfo

BLOCK_LEVEL = ("huggingface", "hooks")
"""Backends that run an architecture without a layout by plain hooks, at block level."""


@dataclass(frozen=True)
class Architecture:
    """An architecture, or one model's use of it.

    Attributes:
        model_type, title: as its layout says.
        sizes: counts, from the config.
        norm: the kind of its final norm.
        missing_kinds: site kinds that no layer has, with the reason.
        missing_sites: (kind, layer) that single layers lack, with the reason.
        capture_only: site kinds that can be read but not changed, with the reason.
        notes: facts that tell it from plain GPT-2 or Llama, as phrases.
    """

    model_type: str
    title: str
    sizes: Sizes
    norm: str
    missing_kinds: Mapping[str, str]
    missing_sites: Mapping[tuple[str, int], str] = field(default_factory=dict)
    capture_only: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def site_kinds(self) -> tuple[str, ...]:
        """Site kinds that some layer has, in order of computation."""
        return tuple(kind for kind in KINDS if kind not in self.missing_kinds)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        some = sorted({kind for kind, _ in self.missing_sites})
        return {
            "model_type": self.model_type,
            "title": self.title,
            "norm": self.norm,
            "sites": list(self.site_kinds),
            "missing": dict(self.missing_kinds),
            "only_in_some_layers": some,
            "notes": list(self.notes),
        }


def has_layout(model_type: str) -> bool:
    """Whether the architecture opens with all its sites."""
    from mech_interp.backends.huggingface.layouts import supported

    return model_type in supported()


def of_config(name: str, config: Mapping[str, Any]) -> Architecture | None:
    """The architecture of a model with this ``config.json``; None where it has no layout.

    Raises:
        ModelError: the config describes no model that the library can build.
        CapabilityError: the model uses an option that its layout does not cover.
    """
    model_type = str(config.get("model_type", ""))
    if not has_layout(model_type):
        return None
    try:
        with _without_memory():
            return _describe(_layout(model_type, config))
    except MechError:
        raise
    except Exception as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"The config.json of {name} describes no {model_type} model: {line}",
            "Fetch the checkpoint again.",
        ) from error


def every() -> list[Architecture]:
    """Every architecture with a layout, as its tiny model shows it, by name."""
    from mech_interp.backends.huggingface.layouts import layout_for, supported, tiny_module

    found = []
    with _without_memory():
        for model_type in supported():
            found.append(_describe(layout_for(tiny_module(model_type))))
    return found


def _layout(model_type: str, config: Mapping[str, Any]) -> Layout:
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from mech_interp.backends.huggingface.layouts import layout_for, layouts

    layouts()[model_type].register()
    built = CONFIG_MAPPING[model_type].from_dict(dict(config))
    return layout_for(AutoModelForCausalLM.from_config(built))


@contextmanager
def _without_memory() -> Iterator[None]:
    """Modules made inside hold no numbers; the library says nothing meanwhile."""
    import torch

    with _quiet(), torch.device("meta"):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _describe(layout: Layout) -> Architecture:
    missing = {kind: layout.missing[kind] for kind in KINDS if kind in layout.missing}
    return Architecture(
        model_type=layout.model_type,
        title=layout.title,
        sizes=layout.sizes,
        norm=layout.norm,
        missing_kinds=missing,
        missing_sites={
            (kind, layer): why
            for layer in range(layout.sizes.n_layers)
            for kind, why in sorted(layout.missing_in(layer).items())
            if kind not in missing
        },
        notes=tuple(_notes(layout)),
    )


def _notes(layout: Layout) -> Iterator[str]:
    blocks = list(layout.blocks)
    sizes = layout.sizes
    yield {"layer": "LayerNorm", "rms": "RMSNorm", "none": "no norms"}[layout.norm]
    if not layout.causal:
        yield "bidirectional attention"
    if layout.learned_positions:
        yield "learned positions"
    yield from _rotary_notes(layout)
    if sizes.n_kv_heads < sizes.n_heads:
        yield "multi-query attention" if sizes.n_kv_heads == 1 else "grouped-query attention"
    if all(block.shared_norm for block in blocks):
        yield "parallel blocks with one norm"
    elif any(block.parallel for block in blocks):
        yield "parallel blocks"
    if any(block.post_attention is not None or block.post_mlp is not None for block in blocks):
        yield "post-norms"
    if any(_changes_qk(layout, block) for block in blocks):
        yield "norms on queries and keys"
    windowed = [block.window is not None for block in blocks]
    if any(windowed):
        yield "sliding window" if all(windowed) else "local and global layers"
    if any(_biases(layout, block) for block in blocks):
        yield "score bias by distance (ALiBi)"
    if all(float(block.scale) == 1.0 for block in blocks) and sizes.d_head > 1:
        yield "scores not scaled"
    if any(block.score_cap is not None for block in blocks):
        yield "score softcap"
    if _caps_logits(layout):
        yield "logit softcap"
    yield from _mlp_notes(layout, blocks)


def _rotary_notes(layout: Layout) -> Iterator[str]:
    """Rotary positions, of which features and in which layers."""
    import torch

    if not layout.rotary_positions:
        return
    like = torch.zeros(1, 2, layout.sizes.d_model)
    tables = layout.rotary(like, torch.arange(2)[None]) or {}
    turned = {cos.shape[-1] for cos, _ in tables.values()}
    partly = f" of {min(turned)} of {layout.sizes.d_head} features" if turned else ""
    yield "rotary positions" + (partly if turned and max(turned) < layout.sizes.d_head else "")
    if any(block.rotary_kind is None for block in layout.blocks):
        yield "some layers without positions"
    if len({block.rotary_kind for block in layout.blocks} - {None}) > 1:
        yield "two rotary bases"


def _mlp_notes(layout: Layout, blocks: list[Block]) -> Iterator[str]:
    mixed = [block.mixture for block in blocks if block.mixture is not None]
    if mixed:
        where = "" if len(mixed) == len(blocks) else " in some layers"
        yield f"mixture of experts{where}"
    if layout.gated:
        yield "gated MLP"


def _changes_qk(layout: Layout, block: Block) -> bool:
    import torch

    sizes = layout.sizes
    q = torch.zeros(1, 1, sizes.n_heads, sizes.d_head)
    k = torch.zeros(1, 1, sizes.n_kv_heads, sizes.d_head)
    return block.norm_qk(q, k)[0] is not q


def _biases(layout: Layout, block: Block) -> bool:
    import torch

    return block.score_bias(torch.arange(2)[None], 2) is not None


def _caps_logits(layout: Layout) -> bool:
    import torch

    logits = torch.zeros(1, 1, layout.sizes.vocabulary)
    return layout.softcap(logits) is not logits


def check_runs(backend: str, name: str, config: Mapping[str, Any]) -> None:
    """Refuse, before anything is loaded, a model that a built-in backend cannot open.

    Raises:
        CapabilityError: naming the installed backends that can.
    """
    from mech_interp.backends.huggingface.layouts import supported
    from mech_interp.backends.registry import BACKENDS

    why = refusal(backend, config)
    if why is None:
        return
    others = [one for one in BACKENDS.values() if one.name != backend and one.installed]
    able = [other.name for other in others if refusal(other.name, config) is None]
    hint = f"Use backend: {' or '.join(able)}." if able else f"Architectures: {', '.join(supported())}."
    raise CapabilityError(f"{name} cannot be opened by the backend {backend}: {why}", hint)


def refusal(backend: str, config: Mapping[str, Any]) -> str | None:
    """Why an installed built-in backend cannot open a model with this config; None where it can.

    Backends that wrap a library model are asked with the architecture's tiny one.
    """
    model_type = str(config.get("model_type", ""))
    if has_layout(model_type):
        return shown_by(backend, model_type)[1]
    if backend not in BLOCK_LEVEL:
        return f"the architecture {model_type!r} has no layout in this version."
    if "auto_map" in config:
        return (
            f"the architecture {model_type!r} has no layout in this version, and code that comes with a "
            "checkpoint is never run."
        )
    if model_type not in _library_types():
        return f"the architecture {model_type!r} has no layout in this version, and the library lacks it too."
    return None


def on_backend(backend: str, name: str, config: Mapping[str, Any]) -> Architecture | None:
    """A model's architecture with what one installed built-in backend shows of it; None without a layout.

    Raises:
        ModelError, CapabilityError: see `of_config`.
    """
    found = of_config(name, config)
    info = None if found is None else shown_by(backend, found.model_type)[0]
    if found is None or info is None:
        return found
    return replace(
        found,
        missing_kinds={**info.missing_kinds, **found.missing_kinds},
        capture_only=info.capture_only,
    )


@cache
def shown_by(backend: str, model_type: str) -> tuple[ModelInfo | None, str | None]:
    """(facts of the architecture's tiny model on an installed backend, the sentence by which it was refused).

    Facts are None where they are those of the default backend.
    """
    from mech_interp.backends.huggingface.checkpoint import Loaded
    from mech_interp.backends.huggingface.layouts import tiny_module
    from mech_interp.backends.registry import BACKENDS, DEFAULT

    if backend == DEFAULT:
        return None, None
    readable = BACKENDS[backend].models
    if readable:  # it has all sites of what it reads itself
        return None, None if model_type in readable else f"it reads {', '.join(readable)}, not {model_type}."
    module = importlib.import_module(BACKENDS[backend].module)
    name = f"a {model_type} model"
    with _quiet():
        loaded = Loaded(tiny_module(model_type), None, name, "memory", "", "")
        try:
            opened = module.open_loaded(loaded)
        except MechError as error:
            return None, error.message
    info: ModelInfo = opened.info
    opened.close()
    return info, None


@cache
def _library_types() -> frozenset[str]:
    """The `model_type`s of which the library has a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
