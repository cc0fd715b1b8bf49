"""Site names: every spelling, its canonical text, and what is said about those that name nothing."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mech_interp.errors import InputError
from mech_interp.sites import KINDS, Site, sites

in_block = st.sampled_from([kind for kind, spec in KINDS.items() if spec.in_block])


@st.composite
def any_site(draw: st.DrawFn) -> Site:
    kind = draw(st.sampled_from(list(KINDS)))
    layer = draw(st.integers(0, 999_999_999)) if KINDS[kind].in_block else None
    head = draw(st.none() | st.integers(0, 999_999_999)) if KINDS[kind].heads else None
    return Site(kind, layer, head)


@settings(deadline=None)
@given(any_site())
def test_text_round_trips(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert str(Site.parse(str(site))) == str(site)
    assert Site.parse(f"  {site}\n") == site
    assert Site.parse(site) is site


@settings(deadline=None)
@given(any_site(), any_site())
def test_different_sites_have_different_texts(one: Site, two: Site) -> None:
    assert (str(one) == str(two)) == (one == two)


@settings(deadline=None)
@given(any_site())
def test_plain_forms(site: Site) -> None:
    layer = "" if site.layer is None else f".{site.layer}"
    plain = f"{site.kind}{layer}"
    if site.head is not None:
        assert Site.parse(f"{plain}.{site.head}") == site
        assert Site.parse(f"{plain}[{site.head}]") == site
    else:
        assert Site.parse(plain) == site
        assert Site.parse(f"hook_{plain}") == site
        if site.layer is not None:
            assert Site.parse(f"{site.layer}.{site.kind}") == site


@pytest.mark.parametrize(
    ("text", "site"),
    [
        ("blocks.8.hook_resid_pre", Site("resid_pre", 8)),
        ("blocks.9.attn.hook_z[7]", Site("z", 9, 7)),
        ("blocks.0.hook_in", Site("resid_pre", 0)),
        ("blocks.0.hook_out", Site("resid_post", 0)),
        ("blocks.3.attn.hook_out", Site("attn_out_own", 3)),
        ("blocks.3.hook_attn_out", Site("attn_out", 3)),
        ("blocks.3.mlp.hook_out", Site("mlp_out_own", 3)),
        ("blocks.3.hook_mlp_out", Site("mlp_out", 3)),
        ("blocks.3.attn.hook_rot_k[1]", Site("rot_k", 3, 1)),
        ("blocks.2.ln1.hook_normalized", Site("ln1", 2)),
        ("blocks.2.attn.hook_pattern", Site("pattern", 2)),
        ("embed.hook_out", Site("embed")),
        ("hook_embed", Site("embed")),
        ("hook_pos_embed", Site("pos_embed")),
        ("ln_final.hook_normalized", Site("ln_final")),
        ("unembed.hook_out", Site("logits")),
        ("resid_post.8", Site("resid_post", 8)),
        ("8.resid_pre", Site("resid_pre", 8)),
        ("z.9.7", Site("z", 9, 7)),
        ("resid_pre.007", Site("resid_pre", 7)),
    ],
)
def test_spellings(text: str, site: Site) -> None:
    assert Site.parse(text) == site


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("blocks.0.hook_resid_pree", "names no site. Did you mean resid_pre"),
        ("reisd_post.3", "Did you mean resid_post"),
        ("patern.1", "Did you mean pattern"),
        ("resid_pre", "should name one layer"),
        ("resid_pre.1.2", "should name one layer"),
        ("resid_pre.-1", "names no site"),
        ("z.1.2[3]", "should name one layer"),
        ("embed.3", "takes no layer"),
        ("blocks.1.hook_embed", "takes no layer"),
        ("resid_pre.1[0]", "has no head 0"),
        ("z.1[-1]", "names no site"),
        ("", "names no site"),
        ("...", "names no site"),
        ("z." + "9" * 5000, "names no site"),
        ("blocks.٣.hook_resid_pre", "names no site"),
        ("z.²", "names no site"),
    ],
)
def test_errors_say_what_is_near(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("[", r"\[")) as caught:
        Site.parse(text)
    assert caught.value.hint


words = st.sampled_from(
    [
        "blocks",
        "attn",
        "hook_z",
        "z",
        "resid_pre",
        "hook_",
        ".",
        "[",
        "]",
        "0",
        "12",
        "-1",
        "mlp",
        "hook_out",
        " ",
    ]
)


@settings(max_examples=400, deadline=None)
@example("[0]")
@example("z.[0]")
@given(st.text() | st.lists(words, max_size=8).map("".join) | st.lists(words, max_size=6).map(".".join))
def test_any_text_is_a_site_or_an_input_error(text: str) -> None:
    try:
        site = Site.parse(text)
    except InputError:
        return
    assert Site.parse(str(site)) == site


@pytest.mark.parametrize("thing", [None, 3, 1.5, ["z.0"], b"z.0"])
def test_what_is_no_text_is_an_input_error(thing: object) -> None:
    with pytest.raises(InputError, match="names no site"):
        Site.parse(thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("residpre", 0), "no site kind 'residpre'. Did you mean resid_pre"),
        (("!!", 0), "no site kind '!!'. Kinds: embed"),
        (("resid_pre",), "needs a layer"),
        (("resid_pre", -1), "needs a layer"),
        (("logits", 0), "takes no layer"),
        (("mlp_out", 0, 1), "has no head 1"),
        (("z", 0, -1), "has no head -1"),
    ],
)
def test_impossible_sites(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Site(*arguments)  # type: ignore[arg-type]


def test_parts() -> None:
    site = Site("z", 9, 7)
    assert (site.name, site.whole, str(site)) == (
        "blocks.9.attn.hook_z",
        Site("z", 9),
        "blocks.9.attn.hook_z[7]",
    )
    assert Site("z", 9).whole == Site("z", 9)
    assert sites("z", range(2), [0, 3]) == [
        Site("z", 0, 0),
        Site("z", 0, 3),
        Site("z", 1, 0),
        Site("z", 1, 3),
    ]
    assert sites("resid_pre", [2, 0]) == [Site("resid_pre", 2), Site("resid_pre", 0)]
    assert [k for k, s in KINDS.items() if s.over_keys] == ["attn_scores", "pattern"]


def test_order_is_that_of_computation() -> None:
    wanted = ["embed", "resid_pre.0", "q.0", "z.0", "attn_out.0", "mlp_out.0", "resid_post.0", "resid_pre.1"]
    wanted += ["z.1", "resid_post.1", "ln_final", "logits"]
    parsed = [Site.parse(text) for text in wanted]
    assert sorted(set(parsed), key=lambda site: site.order) == parsed
