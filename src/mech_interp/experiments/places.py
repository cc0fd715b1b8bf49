"""Sites as specs name them: a hook name, a short form, or a kind that stands for every layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mech_interp.sites import KINDS, Site


def kind_of(name: str) -> str | None:
    """The kind that a bare name means (`z`, `hook_z`, `mlp_post`), or None where it names one site."""
    short = name.strip().removeprefix("hook_")
    return short if short in KINDS and KINDS[short].in_block else None


def named_sites(names: Iterable[str], layers: Sequence[int] | None, n_layers: int) -> list[Site]:
    """The sites that names mean, in order and each once; a bare kind means it in all (or these) layers.

    Raises:
        InputError: for a name that is neither a site nor a kind.
    """
    found: list[Site] = []
    for name in names:
        kind = kind_of(name)
        everywhere = range(n_layers) if layers is None else layers
        found += [Site.parse(name)] if kind is None else [Site(kind, layer) for layer in everywhere]
    return list(dict.fromkeys(found))


def short(site: Site) -> str:
    """A site as part of a metric's name: `resid_post_3`, `z_2_7`."""
    return "_".join(str(part) for part in (site.kind, site.layer, site.head) if part is not None)
