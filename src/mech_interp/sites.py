"""Sites: named places in a decoder's computation, and their text form.

The canonical text of a site is its TransformerLens hook name, with an optional index in brackets for
one head: ``blocks.8.hook_resid_pre``, ``blocks.9.attn.hook_z[7]``. Plain forms are accepted and
normalised: ``resid_pre.8``, ``z.9.7``, ``8.resid_pre``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mech_interp.errors import InputError, nearest

HeadAxis = Literal["query", "kv"]


@dataclass(frozen=True)
class SiteKind:
    """What a kind of site holds.

    Attributes:
        name: short name, e.g. ``resid_pre``.
        template: TransformerLens hook name; ``{layer}`` where the kind lives in a block.
        axes: names of the axes of a captured tensor after the prompt axis.
        heads: which heads a site of this kind may select: query heads, key/value heads, or none.
        stage: order of computation inside a block (or, for kinds outside blocks, in the model).
        meaning: one line for people.
    """

    name: str
    template: str
    axes: tuple[str, ...]
    heads: HeadAxis | None
    stage: int
    meaning: str

    @property
    def in_block(self) -> bool:
        """Whether the kind exists once per layer."""
        return "{layer}" in self.template

    @property
    def over_keys(self) -> bool:
        """Whether the features of an entry are keys, as in scores and patterns."""
        return self.axes[-1] == "key"


def _kinds() -> dict[str, SiteKind]:
    block = "blocks.{layer}."
    resid = ("position", "d_model")
    rows: list[tuple[str, str, tuple[str, ...], HeadAxis | None, str]] = [
        ("embed", "hook_embed", resid, None, "token embedding, as added to the residual stream"),
        ("pos_embed", "hook_pos_embed", resid, None, "learned position embedding"),
        ("resid_pre", block + "hook_resid_pre", resid, None, "residual stream entering the block"),
        ("ln1", block + "ln1.hook_normalized", resid, None, "output of the norm before attention"),
        ("q", block + "attn.hook_q", ("position", "head", "d_head"), "query", "queries before rotary"),
        ("k", block + "attn.hook_k", ("position", "kv_head", "d_head"), "kv", "keys before rotary"),
        ("v", block + "attn.hook_v", ("position", "kv_head", "d_head"), "kv", "values"),
        ("rot_q", block + "attn.hook_rot_q", ("position", "head", "d_head"), "query", "queries after rotary"),
        ("rot_k", block + "attn.hook_rot_k", ("position", "kv_head", "d_head"), "kv", "keys after rotary"),
        (
            "attn_scores",
            block + "attn.hook_attn_scores",
            ("head", "position", "key"),
            "query",
            "scaled, masked attention scores before the softmax",
        ),
        ("pattern", block + "attn.hook_pattern", ("head", "position", "key"), "query", "attention pattern"),
        ("z", block + "attn.hook_z", ("position", "head", "d_head"), "query", "pattern-weighted values"),
        (
            "result",
            block + "attn.hook_result",
            ("position", "head", "d_model"),
            "query",
            "each head's output, z times its rows of W_O, without b_O",
        ),
        (
            "attn_out_own",
            block + "attn.hook_out",
            resid,
            None,
            "attention's own output, before any post-norm",
        ),
        ("attn_out", block + "hook_attn_out", resid, None, "what attention adds to the residual stream"),
        ("resid_mid", block + "hook_resid_mid", resid, None, "residual stream between attention and MLP"),
        ("ln2", block + "ln2.hook_normalized", resid, None, "output of the norm before the MLP"),
        (
            "router_logits",
            block + "mlp.hook_router_logits",
            ("position", "expert"),
            None,
            "a mixture's scores of its experts, before the softmax",
        ),
        (
            "expert_indices",
            block + "mlp.hook_expert_indices",
            ("position", "chosen"),
            None,
            "the experts chosen for each position (integers)",
        ),
        (
            "expert_weights",
            block + "mlp.hook_expert_weights",
            ("position", "chosen"),
            None,
            "the weights of the chosen experts",
        ),
        ("mlp_pre", block + "mlp.hook_pre", ("position", "d_mlp"), None, "MLP (gate) pre-activation"),
        (
            "mlp_pre_linear",
            block + "mlp.hook_pre_linear",
            ("position", "d_mlp"),
            None,
            "linear branch of a gated MLP",
        ),
        ("mlp_post", block + "mlp.hook_post", ("position", "d_mlp"), None, "MLP activation, input of W_out"),
        ("mlp_out_own", block + "mlp.hook_out", resid, None, "the MLP's own output, before any post-norm"),
        ("mlp_out", block + "hook_mlp_out", resid, None, "what the MLP adds to the residual stream"),
        ("resid_post", block + "hook_resid_post", resid, None, "residual stream leaving the block"),
        ("ln_final", "ln_final.hook_normalized", resid, None, "output of the final norm"),
        ("logits", "unembed.hook_out", ("position", "vocab"), None, "logits, after any softcap"),
    ]
    return {
        name: SiteKind(name, template, axes, heads, stage, meaning)
        for stage, (name, template, axes, heads, meaning) in enumerate(rows)
    }


KINDS: dict[str, SiteKind] = _kinds()

# TransformerLens 4 bridge names for the same tensors.
_ALIASES = {
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "embed.hook_out": "embed",
    "pos_embed.hook_out": "pos_embed",
    "attn.pattern": "pattern",
    "attn.scores": "attn_scores",
    "ln_final.hook_out": "ln_final",
    "hook_normalized": "ln_final",
}
_SUFFIXES: dict[str, str] = {
    kind.template.removeprefix("blocks.{layer}."): kind.name for kind in KINDS.values()
}
_SUFFIXES.update(_ALIASES)


@dataclass(frozen=True)
class Site:
    """One named place: a kind, a layer where the kind lives in blocks, and optionally one head.

    Layers and heads count from 0. For ``k``, ``v`` and ``rot_k`` the head is a key/value head.
    """

    kind: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        spec = KINDS.get(self.kind)
        if spec is None:
            raise InputError(
                f"There is no site kind {self.kind!r}.", nearest(self.kind, KINDS) or _kind_list()
            )
        if spec.in_block and (self.layer is None or self.layer < 0):
            raise InputError(
                f"A {self.kind} site needs a layer from 0 up.", f"Write for example {self.kind}.0."
            )
        if not spec.in_block and self.layer is not None:
            raise InputError(
                f"{self.kind} lies outside the blocks, so it takes no layer.", f"Write {self.kind!r}."
            )
        if self.head is not None and (spec.heads is None or self.head < 0):
            raise InputError(
                f"{self.kind} has no head {self.head}.",
                f"Kinds with heads: {', '.join(k for k, s in KINDS.items() if s.heads)}.",
            )

    @property
    def spec(self) -> SiteKind:
        """The description of this site's kind."""
        return KINDS[self.kind]

    @property
    def name(self) -> str:
        """The hook name without the head: ``blocks.9.attn.hook_z``."""
        return self.spec.template.format(layer=self.layer)

    @property
    def whole(self) -> Site:
        """The same site without its head."""
        return self if self.head is None else Site(self.kind, self.layer)

    @property
    def order(self) -> tuple[int, int]:
        """A sort key in order of computation (parallel blocks keep this nominal order)."""
        if self.spec.in_block:
            return (self.layer or 0, self.spec.stage)
        return (-1 if self.kind in ("embed", "pos_embed") else 1 << 30, self.spec.stage)

    def __str__(self) -> str:
        return self.name if self.head is None else f"{self.name}[{self.head}]"

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read a site from its hook name or a plain form.

        Raises:
            InputError: naming the nearest valid kinds when the text names no site.
        """
        if isinstance(text, Site):
            return text
        if not isinstance(text, str):
            raise InputError(
                f"{text!r} names no site.", "Write for example blocks.8.hook_resid_pre or z.9.7."
            )
        body, head = _split_head(text.strip())
        if body in _SUFFIXES and body not in ("hook_in", "hook_out"):
            kind = _SUFFIXES[body]
            if not KINDS[kind].in_block:
                return cls(kind, None, head)
        match = re.fullmatch(r"blocks\.([0-9]{1,9})\.(.+)", body)
        if match and match[2] in _SUFFIXES:
            return cls(_SUFFIXES[match[2]], int(match[1]), head)
        return cls._parse_plain(text, body, head)

    @classmethod
    def _parse_plain(cls, text: str, body: str, head: int | None) -> Site:
        words = [part for part in body.split(".") if not _number(part)]
        numbers = [int(part) for part in body.split(".") if _number(part)]
        kind = words[0].removeprefix("hook_") if len(words) == 1 else ""
        if kind not in KINDS:
            tried = words[-1].removeprefix("hook_") if words else text
            raise InputError(
                f"{text!r} names no site.",
                nearest(tried, KINDS) or "Write for example blocks.8.hook_resid_pre or z.9.7.",
            )
        if not KINDS[kind].in_block and not numbers:
            return cls(kind, None, head)
        if head is None and len(numbers) == 2 and KINDS[kind].heads:
            return cls(kind, numbers[0], numbers[1])
        if len(numbers) != 1:
            raise InputError(f"{text!r} should name one layer.", f"Write for example {kind}.0.")
        return cls(kind, numbers[0], head)


def _split_head(text: str) -> tuple[str, int | None]:
    match = re.fullmatch(r"(.+?)\[([0-9]{1,9})\]", text)
    return (match[1], int(match[2])) if match else (text, None)


def _number(text: str) -> bool:
    return len(text) < 10 and text.isascii() and text.isdigit()


def _kind_list() -> str:
    return f"Kinds: {', '.join(KINDS)}."


def sites(kind: str, layers: range | list[int], heads: range | list[int] | None = None) -> list[Site]:
    """All sites of one kind over layers and, where given, heads; in that order."""
    if heads is None:
        return [Site(kind, layer) for layer in layers]
    return [Site(kind, layer, head) for layer in layers for head in heads]
