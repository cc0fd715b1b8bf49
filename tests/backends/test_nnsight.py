"""The nnsight backend against the default engine: sites, edits, rows, gradients, tokens, refusals."""

from __future__ import annotations

import copy
import dataclasses
import socket
from typing import Any

import pytest
import tiny_architectures as arch
import torch
from cases import combinations, one_of_each
from site_values import close, real
from tiny_models import hf_model, random_ids, three_runs
from torch import Tensor

from mech_interp.backends.huggingface import layouts
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.layouts.base import Port
from mech_interp.backends.huggingface.layouts.gpt2 import GPT2Block
from mech_interp.backends.huggingface.opening import open_module
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, IdentityError, InputError, NotFiredError
from mech_interp.interventions import Add, Custom, FromRun, Intervention, Mean, Replace, Scale, Zero
from mech_interp.sites import KINDS, Site

pytest.importorskip("nnsight")
from mech_interp.backends import nnsight as backend

SOME = ("gpt2", "llama", "gemma2", "qwen3_moe", "gpt_neox", "bloom")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def wrapped(module: Any, tokenizer: Any = None) -> Any:
    return backend.open_loaded(Loaded(module, tokenizer, "tiny", "memory", "", ""))


@dataclasses.dataclass
class Pair:
    """One model in both, each around weights of its own."""

    mine: Any
    theirs: Any
    runs: dict[str, Tokens]


_pairs: dict[tuple[str, str], Pair] = {}


def pair_of(name: str, attention: str = "") -> Pair:
    if (name, attention) not in _pairs:
        module = arch.library_model(name, attention)
        theirs = open_module(copy.deepcopy(module), name="tiny")
        _pairs[name, attention] = Pair(wrapped(module), theirs, arch.three_runs(name))
    return _pairs[name, attention]


@pytest.fixture(params=arch.NAMES)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Every architecture and variant."""
    return pair_of(request.param)


@pytest.fixture(params=[name for name in SOME if name in arch.NAMES])
def some(request: pytest.FixtureRequest) -> Pair:
    """A few architectures that differ much."""
    return pair_of(request.param)


def test_every_offered_site_is_the_default_engines(pair: Pair) -> None:
    sites = arch.every_site(pair.mine)
    tokens = pair.runs["base"]
    mine, theirs = (one.forward(tokens, capture=sites) for one in (pair.mine, pair.theirs))
    for site in sites:
        one, other = (real(x.activations[site], site, tokens, pair.mine.info.causal) for x in (mine, theirs))
        assert close(one, other), site
    assert mine.logits is not None
    assert close(mine.logits[tokens.mask], theirs.logits[tokens.mask])


def test_what_is_not_offered_is_refused_with_the_reason(pair: Pair) -> None:
    info, base = pair.mine.info, pair.theirs.info
    assert info.backend == "nnsight"
    assert info.site_kinds <= base.site_kinds
    assert base.missing_kinds.items() <= info.missing_kinds.items()
    assert base.missing_sites.items() <= info.missing_sites.items()
    # Sublayers, streams, patterns and logits are there for every architecture that has them.
    always = {"resid_pre", "resid_post", "z", "result", "attn_out", "mlp_out", "ln_final", "logits", "embed"}
    assert (always & base.site_kinds) <= info.site_kinds
    for kind in base.site_kinds - info.site_kinds:
        with pytest.raises(InputError, match="huggingface"):
            pair.mine.forward([[1, 2]], capture=[Site(kind, 0 if KINDS[kind].in_block else None)])


def test_only_known_sites_are_left_out() -> None:
    left_out = {
        (name, kind)
        for name in (
            "gpt2",
            "llama",
            "gemma2",
            "qwen3",
            "gpt_neox",
            "gptj",
            "gpt_neo",
            "bloom",
            "falcon",
            "mpt",
        )
        if name in arch.NAMES
        for kind in pair_of(name).theirs.info.site_kinds - pair_of(name).mine.info.site_kinds
    }
    assert left_out == {("mpt", "attn_scores")}


def rows_agree(pair: Pair, rows: list[Row], runs: dict[str, Tokens]) -> None:
    metric = Logits()
    expected = torch.stack([one.value for one in naive_rows(pair.theirs, runs, rows, metric)])
    found = {one.index: one.value for one in pair.mine.rows(runs, rows, metric)}
    assert sorted(found) == list(range(len(rows)))
    for index, row in enumerate(rows):
        assert close(found[index], expected[index], 2e-4), row
    base = torch.stack(
        [one.value for one in naive_rows(pair.theirs, runs, [Row(i) for i in range(3)], metric)]
    )
    moved = sum(
        not close(expected[i], base[row.prompt], 1e-3) for i, row in enumerate(rows) if row.run == "base"
    )
    assert moved > len(rows) // 4  # the edits did something


def test_an_edit_at_every_site_moves_the_logits_as_in_the_default_engine(pair: Pair) -> None:
    rows_agree(pair, arch.rows_everywhere(pair.mine), pair.runs)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_operation_at_every_site_and_combinations(name: str) -> None:
    pair = pair_of(name)
    rows_agree(pair, [*one_of_each(pair.mine, 1), *combinations(pair.mine, 40, 2)], three_runs())


def test_edits_in_a_plain_forward_with_runs_means_and_prompt_numbers(some: Pair) -> None:
    edits = [
        Intervention(
            "resid_mid.1" if "resid_mid" in some.mine.info.site_kinds else "resid_pre.1", Scale(0.5)
        ),
        Intervention("z.1", Replace(FromRun("far")), positions=[1, -1], heads=2),
        Intervention("mlp_out.0", Mean("other", positional=False), prompts=[1]),
        Intervention("pattern.2", Zero(), positions=-1, heads=[0, 3]),
        Intervention("attn_out.2", Add(torch.ones(some.mine.info.d_model)), prompts=0),
    ]
    sites = arch.every_site(some.mine)
    tokens = some.runs["base"].select([2, 0])
    mine, theirs = (
        one.forward(tokens, capture=sites, interventions=edits, runs=some.runs, prompt_ids=[2, 0])
        for one in (some.mine, some.theirs)
    )
    for site in sites:
        assert close(*(real(x.activations[site], site, tokens, True) for x in (mine, theirs))), site
    plain = some.theirs.forward(tokens).logits
    assert not close(theirs.logits[tokens.mask], plain[tokens.mask], 1e-2)
    assert close(mine.logits[tokens.mask], theirs.logits[tokens.mask])


def test_a_model_that_looks_both_ways_and_one_without_an_mlp() -> None:
    if "mech-planted" not in arch.NAMES:
        pytest.skip("no layout for mech-planted")
    for changes in ({"causal": False}, {"intermediate_size": 0, "norm": "none"}):
        module = arch.randomise(layouts.tiny_module("mech-planted", **changes), 3)
        theirs = open_module(copy.deepcopy(module))
        pair = Pair(wrapped(module), theirs, arch.three_runs("mech-planted"))
        assert pair.mine.info.causal is changes.get("causal", True)
        assert pair.mine.info.site_kinds == theirs.info.site_kinds
        rows_agree(pair, arch.rows_everywhere(pair.mine), pair.runs)
        sites, tokens = arch.every_site(theirs), pair.runs["base"]
        mine, other = (one.forward(tokens, capture=sites) for one in (pair.mine, theirs))
        for site in sites:
            seen = (real(x.activations[site], site, tokens, theirs.info.causal) for x in (mine, other))
            assert close(*seen), site


def test_padding_changes_nothing(some: Pair) -> None:
    tokens = some.runs["base"]
    together = some.mine.forward(tokens, capture=["resid_post.2"])
    for i in range(len(tokens)):
        alone = some.mine.forward([tokens.row(i)], capture=["resid_post.2"])
        n = tokens.lengths[i]
        assert close(together.logits[i, :n], alone.logits[0], 1e-5)
        assert close(together.activations["resid_post.2"][i, :n], alone.activations["resid_post.2"][0], 1e-5)


def test_gradients_at_every_site_are_the_default_engines(pair: Pair) -> None:
    assert "gradients" in pair.mine.info.capabilities
    tokens = pair.runs["base"]
    # Gradients by integers do not exist; in a mixture, those by later parts pass through its weights.
    sites = [site for site in arch.every_site(pair.mine) if site.kind not in ("expert_indices", "logits")]
    edit = [Intervention("resid_post.0", Scale(1.5), positions=1)]
    every = []
    for one in (pair.mine, pair.theirs):
        out = one.forward(tokens, capture=sites, interventions=edit, grad=True)
        loss = (out.logits[tokens.mask][:, :7].double() * torch.linspace(-1, 1, 7)).tanh().sum()
        every.append(torch.autograd.grad(loss, [out.activations[site] for site in sites], allow_unused=True))
        assert all(not p.requires_grad for p in one.module.parameters())
    for site, mine, theirs in zip(sites, *every, strict=True):
        assert (mine is None) == (theirs is None), site
        if mine is not None and theirs is not None:
            one, other = (real(x, site, tokens, pair.mine.info.causal) for x in (mine, theirs))
            assert close(one, other, 2e-4), site
            assert float(other.abs().max()) > 0, site


def test_generation_token_for_token(some: Pair) -> None:
    prompts = random_ids((6, 1, 9), seed=12)
    draw = torch.randn(2, some.mine.info.d_model, generator=torch.Generator().manual_seed(5))
    steer = Intervention("resid_post.1", Add(20 * draw[0]), phase="generated")
    flip = Intervention("resid_post.2", Replace(draw[1]), positions=[0, 5])
    seen = []
    for edits in ((), (steer,), (flip, steer), (flip,)):
        options: dict[str, Any] = {"max_new_tokens": 6, "stop_ids": (), "interventions": edits}
        mine, theirs = (one.generate(prompts, **options) for one in (some.mine, some.theirs))
        assert mine.ids == theirs.ids
        seen.append(mine.ids)
    assert len(set(seen)) >= 3
    hot: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.2, "top_k": 20, "seed": 4, "stop_ids": ()}
    assert some.mine.generate(prompts, **hot).ids == some.theirs.generate(prompts, **hot).ids


def test_unembedding_weights_and_norm_direction(some: Pair) -> None:
    info = some.mine.info
    resid, direction = torch.randn(2, 3, info.d_model), torch.randn(info.d_model)
    assert torch.equal(some.mine.unembed(resid), some.theirs.unembed(resid))
    ids = torch.tensor([3, 9])
    assert torch.equal(some.mine.unembed(resid, ids), some.theirs.unembed(resid, ids))
    assert torch.equal(
        some.mine.final_norm_direction(resid, direction), some.theirs.final_norm_direction(resid, direction)
    )
    assert torch.equal(some.mine.weights("W_U"), some.theirs.weights("W_U"))
    for kind in ("W_Q", "W_K", "W_V", "W_O"):
        assert torch.equal(some.mine.weights(kind, 1), some.theirs.weights(kind, 1))
        assert torch.equal(some.mine.weights(kind, 1, 0), some.theirs.weights(kind, 1)[0])
    last = some.mine.forward([[5, 6, 7]], capture=["resid_post.2"], logits="last")
    assert close(some.mine.unembed(last.activations["resid_post.2"][:, -1]), last.logits, 1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_models_attention_setting_is_kept(name: str, attention: str) -> None:
    mine = pair_of(name, attention).mine
    assert mine.info.attention == attention
    mine.forward([[1, 2, 3]], capture=["pattern.1"], interventions=[Intervention("pattern.0", Zero())])
    with pytest.raises(ZeroDivisionError):
        mine.forward([[1, 2, 3]], interventions=[Intervention("pattern.0", Custom(lambda x, _: 1 / 0))])
    assert mine.module.config._attn_implementation == attention


def test_errors_inside_a_trace_are_themselves_and_leave_the_model_usable(some: Pair) -> None:
    def fail(live: Tensor, context: Any) -> Tensor:
        raise CapabilityError("Not today.", "Come back tomorrow.")

    before = some.mine.forward([[4, 5, 6]]).logits
    with pytest.raises(CapabilityError, match="Not today") as caught:
        some.mine.forward([[4, 5, 6]], interventions=[Intervention("z.1", Custom(fail))])
    assert caught.value.hint == "Come back tomorrow."
    with pytest.raises(InputError, match="shape"):
        some.mine.forward([[4, 5, 6]], interventions=[Intervention("z.1", Custom(lambda x, _: x[:, :1]))])
    assert torch.equal(some.mine.forward([[4, 5, 6]]).logits, before)


def test_an_operation_may_use_the_models_modules_but_not_run_it(some: Pair) -> None:
    def reads_out(live: Tensor, context: Any) -> Tensor:
        return live * (1 + 0 * some.mine.unembed(live).sum()) + 1

    def runs(live: Tensor, context: Any) -> Tensor:
        some.mine.forward([[1]])
        return live

    edit = [Intervention("resid_post.0", Custom(reads_out))]
    found = some.mine.forward([[4, 5, 6]], interventions=edit, capture=["ln_final", "resid_post.2"])
    edit = [Intervention("resid_post.0", Custom(lambda live, _: live + 1))]
    expected = some.theirs.forward([[4, 5, 6]], interventions=edit, capture=["ln_final", "resid_post.2"])
    for site in ("ln_final", "resid_post.2"):
        assert close(found.activations[site], expected.activations[site])
    with pytest.raises(InputError, match="inside a forward"):
        some.mine.forward([[4, 5, 6]], interventions=[Intervention("z.0", Custom(runs))])
    assert close(some.mine.forward([[4, 5]]).logits, some.theirs.forward([[4, 5]]).logits)


def test_refusals() -> None:
    mine = pair_of("llama").mine
    with pytest.raises(InputError, match="no learned position"):
        mine.forward([[1, 2]], capture=["pos_embed"])
    with pytest.raises(InputError, match="key/value heads"):
        mine.forward([[1, 2]], interventions=[Intervention("k.0[2]", Zero())])
    with pytest.raises(NotFiredError, match="stop_after"):
        mine.forward([[1, 2]], capture=["z.2"], stop_after=1)
    with pytest.raises(InputError, match="layer 3"):
        mine.forward([[1, 2]], capture=["z.3"])


# A site, and a port of a block that is not where it is.
WRONG: dict[str, tuple[str, Any]] = {
    "mlp input for its output": ("mlp_pre", lambda block, ports: ports["mlp_post"]),
    "keys for queries": ("q", lambda block, ports: ports["k"]),
    "one norm for the other": ("ln1", lambda block, ports: ports["ln2"]),
    "a norm's output for the stream": ("resid_mid", lambda block, ports: ports["ln2"]),
    "a module of another model": ("ln2", lambda block, ports: Port(torch.nn.LayerNorm(32))),
    "a module that never runs": ("ln2", lambda block, ports: Port(block.module.attn.attn_dropout)),
}


@pytest.mark.parametrize("case", sorted(WRONG))
def test_a_port_at_the_wrong_module_is_refused_at_load(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, port = WRONG[case]
    plain = GPT2Block.ports
    monkeypatch.setattr(GPT2Block, "ports", lambda self: plain(self) | {kind: port(self, plain(self))})
    module = hf_model("gpt2")
    with pytest.raises(IdentityError, match=r"blocks\.0\.|in layer 0"):
        wrapped(module)
    assert "forward" not in vars(module.transformer.h[0])  # and the model is let go as it came
    monkeypatch.setattr(GPT2Block, "ports", plain)
    wrapped(module)


def test_a_write_that_reaches_nothing_is_refused_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream between the sublayers, written to as the norm's input alone, would be lost."""
    monkeypatch.setattr("mech_interp.backends.moments.IN_PLACE", frozenset())
    with pytest.raises(IdentityError, match="when the sites are edited"):
        wrapped(hf_model("llama"))


def test_close_gives_the_model_back() -> None:
    module = hf_model("llama")
    before = {path: set(vars(part)) for path, part in module.named_modules()}
    config = copy.deepcopy(module.config.to_dict())
    logits = module(torch.tensor([[1, 2, 3]])).logits
    with wrapped(module) as model:
        assert close(model.forward([[1, 2, 3]]).logits, logits, 1e-6)
        assert set(vars(module.model.norm)) != before["model.norm"]
    assert {path: set(vars(part)) for path, part in module.named_modules()} == before
    assert module.config.to_dict() == config
    assert torch.equal(module(torch.tensor([[1, 2, 3]])).logits, logits)
