"""Circuit specs of models that only the hub has: run on their architectures, of their depth and heads, with
narrow random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mech_interp.backends.huggingface.opening import open_module
from mech_interp.config import Spec, read_specs, spec_files
from mech_interp.datasets.tasks import task
from mech_interp.experiments import Context, ModelFacts, get

ROOT = Path(__file__).resolve().parents[3]
CIRCUITS = (
    "acdc_edge",
    "acdc_lite",
    "attribution_patching",
    "causal_scrubbing",
    "circuit_evaluation",
    "path_patching",
)
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2", "n_layer": 12, "n_head": 12, "n_embd": 48, "n_positions": 64},
    "EleutherAI/pythia-160m": {
        "model_type": "gpt_neox",
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "hidden_size": 48,
        "intermediate_size": 96,
        "max_position_embeddings": 64,
        "rotary_pct": 0.5,
    },
    "Qwen/Qwen2.5-0.5B": {
        "model_type": "qwen2",
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "hidden_size": 56,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    },
}
"""Layers and heads as published; widths are a fraction of theirs."""
FEW: dict[str, dict[str, Any]] = {
    "acdc_edge": {
        "tau": 0.5,
        "loss": "metric",
        "random_circuits": 2,
        "curve_random": 1,
        "fractions": [0.05],
    },
    "acdc_lite": {"tau": 2.0, "loss": "metric", "random_circuits": 2, "curve_random": 1, "fractions": [0.05]},
    "attribution_patching": {
        "check": 8,
        "claims": 4,
        "random_circuits": 2,
        "curve_random": 1,
        "fractions": [0.05],
        "resamples": 2,
    },
    "causal_scrubbing": {"samples": 1},
    "circuit_evaluation": {
        "completeness": 0,
        "random_circuits": 2,
        "curve_random": 1,
        "fractions": [0.05],
        "resamples": 2,
    },
    "path_patching": {"senders": ["a0.h0", "a1.h1"]},
}
SPECS = [
    spec
    for file in spec_files(ROOT / "experiments")
    for spec in read_specs(file)
    if spec.family in CIRCUITS and spec.model in CONFIGS
]


def _marks(spec: Spec) -> list[pytest.MarkDecorator]:
    """360 decisions over whole circuits of 24 layers take more than a minute."""
    return [pytest.mark.full] if spec.name == "acdc-lite-ioi-qwen2.5-0.5b" else []


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ROOT / "src/mech_interp/bundled/checkpoints/tinyworld")


@pytest.fixture(scope="module")
def narrow(tokenizer: Any) -> dict[str, Any]:
    """A model of every architecture, opened once."""
    from transformers import AutoConfig, AutoModelForCausalLM

    found = {}
    for name, given in CONFIGS.items():
        options = {key: value for key, value in given.items() if key != "model_type"}
        config = AutoConfig.for_model(
            given["model_type"], vocab_size=len(tokenizer), bos_token_id=None, eos_token_id=None, **options
        )
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for weight in module.parameters():
                if weight.dim() > 1:
                    weight.mul_(6)  # as drawn, random weights hardly tell one prompt from another
        found[name] = open_module(module, tokenizer, name=name)
    return found


def oriented(model: Any, name: str, tokenizer: Any) -> list[dict[str, Any]]:
    """Pairs of a task, each turned so that the random model gives the clean prompt's answer the lead."""
    records = []
    for pair in task(name, tokenizer, 10).pairs:
        record = pair.to_dict()
        ids = [model.tokens(pair.clean + text).ids[0, -1] for text in (pair.answer, pair.wrong)]
        clean, corrupt = model.forward([pair.clean, pair.corrupt], logits="last").logits
        if float((clean - corrupt)[ids[0]] - (clean - corrupt)[ids[1]]) < 0:
            for one, other in (("answer", "wrong"), ("answers", "wrongs")):
                record[one], record[other] = record[other], record[one]
        records.append(record)
    return records


def test_every_task_and_model_has_all_families() -> None:
    """Three tasks on GPT-2, indirect objects on the two others."""
    for model, tasks in (
        ("gpt2", {"ioi", "greater_than", "facts"}),
        ("EleutherAI/pythia-160m", {"ioi"}),
        ("Qwen/Qwen2.5-0.5B", {"ioi"}),
    ):
        for family in CIRCUITS:
            found = {s.parameters["task"] for s in SPECS if s.model == model and s.family == family}
            assert found == tasks, (model, family)


@pytest.mark.parametrize("spec", [pytest.param(s, marks=_marks(s), id=s.name) for s in SPECS])
def test_specs_run_at_random_weights(spec: Spec, narrow: dict[str, Any], tokenizer: Any) -> None:
    model, family = narrow[spec.model], get(spec.family)
    given = {key: value for key, value in spec.parameters.items() if key not in ("task", "n")}
    records = oriented(model, spec.parameters["task"], tokenizer)
    few = {"metric": "logit_difference", **FEW[spec.family]}
    params = family.Params.model_validate({**given, **few, "prompt_pairs": records})
    family.check(params, ModelFacts.from_config(spec.model, model.module.config.to_dict()), tokenizer)
    context: Any = Context(params, seed=0, load_model=lambda: model)
    result = family.run(context)
    assert result.findings
    assert result.status == "complete", [(one.name, one.value) for one in result.failed]
