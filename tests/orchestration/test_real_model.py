"""Runs on checkpoints that are really opened: a tiny random one, and the bundled one of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import toy_family as toy

from mech_interp.config.spec import Spec
from mech_interp.orchestration import Session, preflight, replay, run_spec
from mech_interp.orchestration.checks import passes
from mech_interp.orchestration.demo_runs import store_demo_runs
from mech_interp.storage import RunFolder, Store
from mech_interp.storage.verify import verify

ASKED = ["The", "capital", "of", "is"]
PLACES = ["France", "Italy", "Spain", "Japan", "Peru", "Cuba"]
CITIES = ["Paris", "Rome", "Madrid", "Tokyo", "Lima", "Oslo"]
WORDS = [*ASKED, *PLACES, *CITIES]
PAIRS = [
    ("France", " Paris", "Italy", " Rome"),
    ("Spain", " Madrid", "Japan", " Tokyo"),
    ("Peru", " Lima", "Cuba", " Oslo"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 with a tokenizer of a few words, saved as others save theirs."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokens = ["<unk>", *WORDS, *(f" {word}" for word in WORDS)]
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[^ ]+"), "isolated")
    inner.decoder = decoders.Fuse()
    folder = tmp_path_factory.mktemp("real") / "tiny"
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokens),
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=None,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def lens(model: Path, **changes: Any) -> Spec:
    pairs = [
        {
            "clean": f"The capital of {one} is",
            "answer": right,
            "corrupt": f"The capital of {two} is",
            "wrong": wrong,
        }
        for one, right, two, wrong in PAIRS
    ]
    data = {
        "name": "lens",
        "family": "logit_lens",
        "model": str(model),
        "parameters": {"prompt_pairs": pairs},
    }
    return Spec.from_dict({**data, **changes})


def test_a_real_run_is_checked_stored_reused_and_replayed(tiny: Path, home: Path) -> None:
    settings = toy.settings(home)
    session = Session(settings)
    assert passes(preflight(lens(tiny), settings, session=session))
    outcome = run_spec(lens(tiny), settings, session=session)
    assert outcome.folder is not None
    folder = RunFolder(outcome.folder)
    assert outcome.status == "complete"
    assert verify(folder.path) == []
    receipt = folder.receipt()
    assert len(receipt["datasets"]) == 1
    assert receipt["environment"]["threads"] == 1  # it is too small for more
    model = session._opened
    assert model is not None
    assert model[1].info.weights_hash == receipt["model"]["weights_sha256"]
    assert run_spec(lens(tiny, name="again"), settings, session=session).run_id == outcome.run_id
    found = replay(folder, settings)
    assert (found.agrees, found.grade) == (True, "same")
    session.close()


def test_answers_are_checked_before_weights_load(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "load", lambda self, prepared: pytest.fail("the weights were loaded"))
    spec = lens(tiny, parameters={"prompt_pairs": [{"clean": "The capital of", "answer": " Paris Rome"}]})
    checks = {check.name: check for check in preflight(spec, toy.settings(home))}
    assert checks["sites and answers"].status == "failed"
    assert "is 2 tokens here" in checks["sites and answers"].detail


def test_files_that_change_between_hashing_and_loading_are_noticed(
    tiny: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mech_interp.errors import ModelError
    from mech_interp.orchestration import hashes

    monkeypatch.setattr(hashes.FileHashes, "together", lambda self, files: "0" * 64)
    with pytest.raises(ModelError, match="have changed since they were hashed"):
        run_spec(lens(tiny), toy.settings(home))
    [record] = Store(home).runs()
    assert record.status == "failed"


def test_the_demo_leaves_three_runs_and_finds_them_again(home: Path) -> None:
    from mech_interp.backends.loading import load_model

    opened = load_model("tinyworld", device="cpu")
    settings = toy.settings(home)
    ids = store_demo_runs("tinyworld", settings, device="cpu", model=opened)
    runs = {run.id: run for run in Store(home).runs()}
    assert sorted(runs) == sorted(ids)
    assert [runs[name].family for name in ids] == [
        "direct_logit_attribution",
        "logit_lens",
        "circuit_patching",
    ]
    for run in runs.values():
        assert run.status == "complete"
        assert "demo" in run.tags
        assert verify(run.path, run.result_sha256) == []
        assert run.open().names("figures")
    session = Session(settings)
    assert store_demo_runs("tinyworld", settings, device="cpu", session=session) == ids
    assert session._opened is None  # found without opening the model
    session.close()
