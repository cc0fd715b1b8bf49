"""`python -m mech_interp.bundled.train NAME`: make a bundled checkpoint from its recipe."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.bundled import chat, tokenizer
from mech_interp.bundled.batches import Batches
from mech_interp.bundled.recipe import RECIPES, Recipe, new_model, recipe
from mech_interp.bundled.training import CHECKPOINT, Trained, train
from mech_interp.errors import InputError, MechError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

CHECKPOINTS = Path(__file__).parent / "checkpoints"
_CORPUS_HASH_STEPS = 24


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, train, write the folder; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mech_interp.bundled.train", description=__doc__)
    parser.add_argument("name", help=f"the checkpoint: {', '.join(RECIPES)}")
    parser.add_argument("--out", type=Path, help="folder to write (default: inside the package)")
    parser.add_argument("--tokens", type=int, help="train on this many tokens instead of the recipe's")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    options = parser.parse_args(arguments)
    try:
        chosen = recipe(options.name)
        if options.tokens is not None:
            if options.tokens < 1:
                raise InputError("--tokens must be positive.", "Leave it out to use the recipe's number.")
            chosen = dataclasses.replace(chosen, tokens=options.tokens)
        make(chosen, options.out or CHECKPOINTS / chosen.name, device=options.device, resume=options.resume)
    except MechError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


def make(chosen: Recipe, out: Path, *, device: str = "auto", resume: bool = False) -> Path:
    """Train a recipe and write its folder: weights, tokenizer, receipt. Returns `out`."""
    device = _device(device)
    built = tokenizer.build()
    batches = Batches(chosen, built)
    model = _start(chosen, built)
    state = out.parent / f".{out.name}.progress"
    done = train(model, chosen, batches, state, device=device, resume=resume, report=_say)
    if done is None:  # only with stop_after, which this command never sets
        raise InputError("The training stopped early.", "Start it again with --resume.")
    model.to("cpu")
    write(chosen, model, built, batches, done, out, device)
    (state / CHECKPOINT).unlink(missing_ok=True)
    if state.exists():
        state.rmdir()
    _say(f"{chosen.name}: written to {out}")
    return out


def write(
    chosen: Recipe,
    model: PreTrainedModel,
    built: Tokenizer,
    batches: Batches,
    done: Trained,
    out: Path,
    device: str,
) -> None:
    """Write config, weights, tokenizer and `training.json`."""
    template = chat.CHAT_TEMPLATE if chosen.chat_share else None
    tokenizer.save(built, out, chat_template=template)
    if template is not None:
        end = built.token_to_id(chat.END)
        model.config.eos_token_id = end
        if model.generation_config is not None:
            model.generation_config.eos_token_id = end
    model.save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)  # written for its owner alone, but everybody may read it
    receipt = _receipt(chosen, model, batches, done, out, device)
    (out / "training.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
    counts = {"counts": done.token_counts}
    (out / "token_counts.json").write_text(json.dumps(counts) + "\n", encoding="utf-8")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def corpus_hash(batches: Batches, steps: int = _CORPUS_HASH_STEPS) -> str:
    """SHA-256 of the ids and labels of the first and last `steps` steps: enough to show that they agree."""
    total = batches.recipe.steps
    digest = hashlib.sha256()
    for step in [*range(min(steps, total)), *range(max(0, total - steps), total)]:
        for part in batches(step):
            digest.update(part.astype("<i8").tobytes())
    return digest.hexdigest()


def _receipt(
    chosen: Recipe, model: PreTrainedModel, batches: Batches, done: Trained, out: Path, device: str
) -> dict[str, Any]:
    import numpy
    import tokenizers
    import torch
    import transformers

    weights = out / "model.safetensors"
    return {
        "name": chosen.name,
        "recipe": chosen.as_dict(),
        "recipe_sha256": chosen.digest(),
        "corpus_sha256": corpus_hash(batches),
        "corpus_sha256_of": f"ids and labels of the first and last {_CORPUS_HASH_STEPS} steps",
        "tokens": chosen.steps * chosen.batch_tokens,
        "steps": chosen.steps,
        "seed": chosen.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": device,
        "threads": torch.get_num_threads(),
        "seconds": round(done.seconds, 1),
        "losses": done.losses[:: max(1, len(done.losses) // 20)] + done.losses[-1:],
        "final_loss": done.losses[-1][1],
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "numpy": numpy.__version__,
        },
        "sha256": {
            path.name: file_hash(path)
            for path in (weights, out / "config.json", out / "tokenizer.json", out / "tokenizer_config.json")
        },
        "start_sha256": None if chosen.start is None else file_hash(_folder(chosen.start) / weights.name),
    }


def _folder(name: str) -> Path:
    folder = CHECKPOINTS / name
    if not (folder / "model.safetensors").exists():
        raise InputError(
            f"Fine-tuning starts from {name!r}, which has not been made yet.",
            f"Run: python -m mech_interp.bundled.train {name}",
        )
    return folder


def _start(chosen: Recipe, built: Tokenizer) -> PreTrainedModel:
    """A fresh model, or the checkpoint that the recipe fine-tunes."""
    import torch
    from transformers import AutoModelForCausalLM

    if chosen.start is None:
        end = built.token_to_id(tokenizer.END_OF_TEXT)
        return new_model(chosen, built.get_vocab_size(), end_id=end)
    torch.manual_seed(chosen.seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        _folder(chosen.start), local_files_only=True
    )
    return model


def _device(name: str) -> str:
    import torch

    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
