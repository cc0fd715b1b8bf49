"""Architectures without a layout: found by behaviour, run by plain hooks, checked, and open about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import hf_gpt2, hf_llama, largest_gap
from torch import Tensor, nn

from mech_interp.backends.block_level import CAPABILITIES, BlockLevelModel, open_block_level
from mech_interp.backends.block_structure import find_structure
from mech_interp.backends.hooks import open_folder, open_loaded
from mech_interp.backends.huggingface import layouts
from mech_interp.backends.huggingface.checkpoint import Loaded
from mech_interp.backends.huggingface.opening import open_engine, open_module
from mech_interp.backends.loading import load_model
from mech_interp.backends.metrics import Logits
from mech_interp.backends.protocol import Row
from mech_interp.backends.rows.naive import naive_rows
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import CapabilityError, IdentityError, InputError
from mech_interp.interventions import Add, FromRun, Intervention, Replace, Scale
from mech_interp.sites import KINDS, Site

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "max_position_embeddings": 24,
}
GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 24}
MAMBA = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 4}
OPTIONS: dict[str, dict[str, Any]] = {
    "xglm": {
        "vocab_size": 97,
        "d_model": 32,
        "num_layers": 3,
        "attention_heads": 4,
        "ffn_dim": 40,
        "max_position_embeddings": 24,
    },
    "codegen": {**GPT, "rotary_dim": 4, "n_ctx": 24},
    "gpt_bigcode": GPT,
    "openai-gpt": GPT,
    "cohere": SMALL,
    "granite": {**SMALL, "residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "nemotron": SMALL,
    "persimmon": SMALL,
    "starcoder2": SMALL,
    "glm": {**SMALL, "head_dim": 8},
    "glm4": {**SMALL, "head_dim": 8},
    "mamba": MAMBA,
}
STREAMS = {"resid_pre", "resid_post", "logits"}
SUBLAYERS = {"attn_out", "attn_out_own", "mlp_out", "mlp_out_own"}
# What is offered besides the streams, and the kind of the final norm.
EXPECTED: dict[str, tuple[set[str], str]] = {
    "xglm": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    "codegen": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    "gpt_bigcode": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    # Each sublayer is normalised together with the stream, so what it adds is not in the stream.
    "openai-gpt": ({"embed"}, "none"),
    "cohere": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    # Embedding, sublayers and logits are all scaled on their way.
    "granite": ({"ln_final"}, "rms"),
    "nemotron": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    "persimmon": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    "starcoder2": (SUBLAYERS | {"embed", "ln_final"}, "layer"),
    "glm": (SUBLAYERS | {"embed", "ln_final"}, "rms"),
    # Norms on the sublayers' outputs.
    "glm4": ({"embed", "ln_final"}, "rms"),
    "mamba": ({"embed", "ln_final"}, "rms"),
}
# Their logits are scaled after the unembedding.
SCALED = {"cohere", "granite"}
WITHOUT = tuple(name for name in OPTIONS if name not in layouts.supported())


def library_model(model_type: str, **changes: Any) -> Any:
    """A tiny library model with generic weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(model_type, **{**ends, **OPTIONS[model_type], **changes})
    module = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture(scope="module", params=WITHOUT)
def model(request: pytest.FixtureRequest) -> Any:
    """A block-level model of each architecture."""
    return open_module(library_model(request.param), name=request.param)


def outputs_of(module: Any, part: nn.Module, ids: list[int], *, replace: Tensor | None = None) -> Any:
    """What a submodule gives in the library's forward, and the logits; with another output, if given."""
    seen = []

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        several = isinstance(output, tuple | list)
        seen.append((output[0] if several else output).clone())
        if replace is None:
            return None
        return type(output)((replace, *output[1:])) if several else replace

    handle = part.register_forward_hook(hook)
    try:
        with torch.no_grad():
            logits = module(torch.tensor([ids]), use_cache=False).logits
    finally:
        handle.remove()
    return seen[0], logits


def blocks_by_hand(module: Any) -> list[nn.Module]:
    """The decoder blocks by the names that the library gives them."""
    stack = getattr(module, "transformer", None) or getattr(module, "model", None) or module.backbone
    return list(stack.h if hasattr(stack, "h") else stack.layers)


def test_what_is_found(model: Any) -> None:
    name = model.info.name
    assert isinstance(model, BlockLevelModel)
    besides, norm = EXPECTED[name]
    assert model.info.site_kinds == STREAMS | besides
    assert set(model.info.missing_kinds) == set(KINDS) - STREAMS - besides
    assert (model.info.norm, model.info.n_layers, model.info.d_model) == (norm, 3, 32)
    assert (model.info.vocabulary, model.info.backend) == (97, "huggingface")
    assert model.info.context == (24 if name != "mamba" else 1 << 20)
    assert list(model.structure.blocks) == blocks_by_hand(model.module)
    assert model.info.capabilities == CAPABILITIES
    assert not {"heads", "weights"} & {str(one) for one in model.info.capabilities}
    assert "no layout" in model.info.notice
    assert "block level" in model.info.notice


def test_logits_and_streams_are_the_library_s(model: Any) -> None:
    ids, module = [5, 3, 8, 1, 9, 2], model.module
    sites = [Site(kind, layer) for kind in ("resid_pre", "resid_post") for layer in range(3)]
    result = model.forward([ids], capture=sites)
    blocks = blocks_by_hand(module)
    for layer in range(3):
        given, logits = outputs_of(module, blocks[layer], ids)
        assert torch.equal(result.activations[Site("resid_post", layer)], given)
        assert largest_gap(result.logits, logits) < 1e-5
        if layer:
            before = result.activations[Site("resid_post", layer - 1)]
            assert torch.equal(result.activations[Site("resid_pre", layer)], before)


def test_sublayers_add_up(model: Any) -> None:
    if "attn_out" not in model.info.site_kinds:
        with pytest.raises(InputError, match="no layout"):
            model.forward([[1, 2]], capture=["attn_out.0"])
        return
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    seen = model.forward([[5, 3, 8]], capture=[Site(k, n) for k in kinds for n in range(3)]).activations
    for layer in range(3):
        pre, attention, mlp, post = (seen[Site(kind, layer)] for kind in kinds)
        assert largest_gap(pre + attention + mlp, post) < 1e-5
        # Attention is the one that moves information between positions.
        assert float(attention.abs().max()) > 0
    changed = model.forward([[6, 3, 8]], capture=["attn_out.0", "mlp_out.0"]).activations
    assert float((changed["attn_out.0"] - seen["attn_out.0"])[:, 1:].abs().max()) > 1e-4


def test_edits_reach_the_logits_as_a_hook_s_would(model: Any) -> None:
    """Replacing a block's output by hand gives the same logits as the intervention."""
    ids, module = [5, 3, 8, 1, 9], model.module
    shift = torch.linspace(-1, 1, 32)
    for layer, block in enumerate(blocks_by_hand(module)):
        given, _ = outputs_of(module, block, ids)
        wanted = given.clone()
        wanted[:, 2] += shift
        _, expected = outputs_of(module, block, ids, replace=wanted)
        edit = Intervention(Site("resid_post", layer), Add(shift), positions=2)
        found = model.forward([ids], interventions=[edit]).logits
        assert largest_gap(found, expected) < 1e-5
        plain = model.forward([ids]).logits
        assert float((found - plain).abs().max()) > 1e-3


def test_embedding_edits(model: Any) -> None:
    """Writing another token's embedding is giving the other token; where it is refused, it says why."""
    if "embed" not in model.info.site_kinds:
        with pytest.raises(InputError, match="changed on its way"):
            model.forward([[1, 2]], capture=["embed"])
        return
    runs = {"other": Tokens.from_lists([[5, 9, 8]])}
    edit = Intervention("embed", Replace(FromRun("other")), positions=1)
    found = model.forward([[5, 3, 8]], interventions=[edit], runs=runs).logits
    assert largest_gap(found, model.forward([[5, 9, 8]]).logits) < 1e-5


def test_padding_and_rows(model: Any) -> None:
    ids = [[5, 3, 8, 1, 9, 2], [7, 2, 4]]
    together = model.forward(ids, capture=["resid_post.2"])
    for prompt, row in enumerate(ids):
        alone = model.forward([row], capture=["resid_post.2"])
        assert largest_gap(together.logits[prompt, : len(row)], alone.logits[0]) < 1e-5
    runs = {"base": Tokens.from_lists(ids), "other": Tokens.from_lists([[5, 3, 9, 1, 9, 2], [8, 2, 4]])}
    rows = [
        Row(prompt, (Intervention(Site(kind, layer), Replace(FromRun("other")), positions=position),))
        for prompt in range(2)
        for kind in ("resid_pre", "resid_post")
        for layer in range(3)
        for position in (0, -1)
    ]
    slow = list(naive_rows(model, runs, rows, Logits((-1,))))
    for fast in model.rows(runs, rows, Logits((-1,))):
        assert largest_gap(fast.value, slow[fast.index].value) < 1e-5


def test_generation_equals_the_library(model: Any) -> None:
    ids = [5, 3, 8]
    made = model.generate([ids], max_new_tokens=5, stop_ids=[]).ids[0]
    expected = list(ids)
    with torch.no_grad():
        for _ in range(5):
            expected.append(
                int(model.module(torch.tensor([expected]), use_cache=False).logits[0, -1].argmax())
            )
    assert list(made) == expected[3:]


def test_gradients_are_slopes(model: Any) -> None:
    """Along a random direction at one position, against a central difference."""
    # The library's XGLM cannot run in float64: it writes that type's lowest number into float32 scores.
    dtype = torch.float32 if model.info.name == "xglm" else torch.float64
    exact = open_module(library_model(model.info.name).to(dtype), check=False)
    ids, site = [[5, 3, 8, 1]], Site("resid_post", 0)
    result = exact.forward(ids, capture=[site], grad=True)
    (slope,) = torch.autograd.grad(result.logits[0, -1, 7], [result.activations[site]])
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1)).to(dtype)

    def moved(amount: float) -> float:
        edit = Intervention(site, Add(direction, amount), positions=1)
        return float(exact.forward(ids, interventions=[edit]).logits[0, -1, 7])

    step = 1e-2 if dtype is torch.float32 else 1e-3
    # Some norms and scans compute in float32 whatever they are given.
    difference = (moved(step) - moved(-step)) / (2 * step)
    assert float(slope[0, 1] @ direction) == pytest.approx(difference, rel=2e-2, abs=2e-3)


def test_unembedding(model: Any) -> None:
    seen = model.forward([[5, 3, 8, 1]], capture=["resid_post.2"])
    last = seen.activations["resid_post.2"]
    if model.info.name in SCALED:
        with pytest.raises(CapabilityError, match="cannot be unembedded"):
            model.unembed(last)
        with pytest.raises(CapabilityError, match="block level"):
            model.final_norm_direction(last, last)
        with pytest.raises(InputError, match="not known"):
            model.weights("W_U")
        return
    assert largest_gap(model.unembed(last), seen.logits) < 1e-5
    ids = torch.tensor([3, 50])
    assert largest_gap(model.unembed(last, ids), seen.logits[..., ids]) < 1e-5
    assert torch.equal(model.weights("W_U"), model.module.get_output_embeddings().weight.T)
    for kind, layer in (("W_Q", 0), ("W_O", None), ("W_E", 0)):
        with pytest.raises(InputError, match="block level"):
            model.weights(kind, layer)


def test_the_final_norm_s_direction(model: Any) -> None:
    """Along it the stream's contribution is the normalised stream's, up to the norm's shift."""
    if model.info.name in SCALED:
        pytest.skip("the norm alone does not lead to the logits")
    result = model.forward([[5, 3, 8, 1]], capture=["resid_post.2"])
    last = result.activations["resid_post.2"]
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    norm = model.structure.norm
    pulled = model.final_norm_direction(last, direction.expand_as(last))
    if norm is None:
        assert torch.equal(pulled, direction.expand_as(last))
        return
    shift = getattr(norm, "bias", None)
    along = ((norm(last) - (0 if shift is None else shift)) * direction).sum(-1)
    assert largest_gap((last * pulled).sum(-1), along) < 1e-4


def test_the_hooks_backend_runs_them_too() -> None:
    module = library_model("nemotron")
    model = open_loaded(Loaded(module, None, "mine", "memory", "", ""))
    assert isinstance(model, BlockLevelModel)
    assert (model.info.backend, model.info.name) == ("hooks", "mine")
    assert torch.equal(model.forward([[1, 2]]).logits, open_module(module).forward([[1, 2]]).logits)
    with pytest.raises(CapabilityError, match="no layout"):
        open_engine(module)


def test_a_folder_opens_and_says_so(tmp_path: Path) -> None:
    module = library_model("starcoder2")
    module.save_pretrained(tmp_path)
    for model in (load_model(str(tmp_path)), open_folder(tmp_path, name="mine", source="folder")):
        assert isinstance(model, BlockLevelModel)
        assert "block level" in model.info.notice
        with torch.no_grad():
            expected = module(torch.tensor([[1, 2, 3]])).logits
        assert largest_gap(model.forward([[1, 2, 3]]).logits, expected) < 1e-5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "never run"),
        ({"model_type": "nothing-known"}, "'nothing-known'"),
        ({"model_type": "t5"}, "'t5'"),
    ],
)
def test_code_and_unknown_architectures_stay_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    library_model("starcoder2").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(CapabilityError, match=said):
        load_model(str(tmp_path))


def test_a_model_whose_blocks_pass_no_stream_on_is_refused() -> None:
    """RWKV halves its stream between blocks."""
    from transformers import RwkvConfig, RwkvForCausalLM

    config = RwkvConfig(vocab_size=97, hidden_size=32, num_hidden_layers=8, context_length=24)
    with pytest.raises(CapabilityError, match="no list of blocks was found"):
        open_module(RwkvForCausalLM(config))


def test_a_model_that_looks_ahead_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding would change what a prompt gives, which the probe's two lengths show."""
    module = library_model("starcoder2")
    block = module.model.layers[1]
    real = block.forward

    def leaky(x: Tensor, *args: Any, **options: Any) -> Tensor:
        out: Tensor = real(x, *args, **options)
        return out + 0.1 * x.flip(1)

    monkeypatch.setattr(block, "forward", leaky)
    with pytest.raises(IdentityError, match="the library's own forward"):
        open_module(module)


def test_a_stack_that_does_not_reach_the_logits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks beside the way to the logits could pass for a stream; turning it shows that they do not."""
    module = library_model("starcoder2")
    head = module.lm_head.forward
    embed = module.model.embed_tokens
    kept: list[Tensor] = []
    embed.register_forward_hook(lambda _, __, out: kept.append(out))
    monkeypatch.setattr(module.lm_head, "forward", lambda x: head(kept[-1]))
    with pytest.raises(IdentityError, match="turning resid_post changes the logits"):
        open_module(module)


@pytest.mark.parametrize("make", [hf_gpt2, hf_llama])
def test_what_is_found_is_what_the_layouts_say(make: Any) -> None:
    """On architectures with a layout: the same streams, sublayers and final norm."""
    module = make()
    engine = open_module(module)
    structure = find_structure(module, [[1, 2, 3, 4], [9, 8, 7, 6]])
    assert structure.norm is engine.layout.final_norm
    assert structure.head is engine.layout.unembedding
    assert (structure.norm_kind, structure.d_model) == (engine.info.norm, 32)
    assert [a for a, _ in structure.sublayers] == [b.attention for b in engine.layout.blocks]
    model = open_block_level(
        module, None, name="mine", source="memory", weights_hash="", tokenizer_hash="", check=True
    )
    ids = [[5, 3, 8, 1], [2, 7]]
    sites = [Site(k, n) for k in (*SUBLAYERS, "resid_pre", "resid_post") for n in range(3)]
    sites += [Site("embed"), Site("ln_final")]
    edit = Intervention("mlp_out.1", Scale(-1.0), positions=-1)
    left, right = (one.forward(ids, capture=sites, interventions=[edit]) for one in (model, engine))
    mask = left.tokens.mask
    assert largest_gap(left.logits[mask], right.logits[mask]) < 1e-5
    for site in sites:
        assert largest_gap(left.activations[site][mask], right.activations[site][mask]) < 1e-5, site
