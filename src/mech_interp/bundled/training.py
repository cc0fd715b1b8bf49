"""The training loop of the bundled checkpoints: deterministic on CPU, resumable, with progress.

Everything that a step needs is (weights, optimiser state, step number): batches are a function of the
step, the schedule too, and there is no dropout. A run that was killed therefore ends in the same weights
as one that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mech_interp.bundled.batches import IGNORED, Batches
from mech_interp.bundled.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

CHECKPOINT = "checkpoint.pt"
_FUSED_GELU = "gelu_pytorch_tanh"  # the same function as gelu_new, in one kernel


class Trained(NamedTuple):
    """What a finished training leaves: the losses (step, mean since the last), token counts, seconds."""

    losses: list[tuple[int, float]]
    token_counts: list[int]
    seconds: float


def schedule(recipe: Recipe, step: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to `final_lr_fraction`."""
    warmup = min(recipe.warmup_steps, max(1, recipe.steps // 10))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, recipe.steps - warmup)
    low = recipe.final_lr_fraction
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))


def optimisers(model: PreTrainedModel, recipe: Recipe) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for the matrices inside the blocks, AdamW for embeddings, biases and norms.

    Muon reaches the same loss in about two thirds of the steps here, which on two CPU cores decides.
    """
    import torch

    inside = {
        id(p) for name, p in model.named_parameters() if p.ndim == 2 and (".h." in name or ".layers." in name)
    }
    matrices = [p for p in model.parameters() if id(p) in inside]
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=recipe.matrix_lr, weight_decay=recipe.weight_decay, momentum=0.95),
        torch.optim.AdamW(others, lr=recipe.peak_lr, betas=recipe.betas, weight_decay=0.0),
    ]


def train(
    model: PreTrainedModel,
    recipe: Recipe,
    batches: Batches,
    state: Path,
    *,
    device: str = "cpu",
    resume: bool = False,
    save_every: int = 250,
    report: Callable[[str], None] = lambda line: None,
    stop_after: int | None = None,
) -> Trained | None:
    """Train `model` in place for `recipe.steps` steps.

    `state` is a folder for the checkpoint, written every `save_every` steps and read with `resume`.
    `report` gets a line of progress every 100 steps. With `stop_after` the loop leaves after that many
    steps in all, as if killed, and None is returned.
    """
    with _arithmetic(recipe, device):
        return _train(model, recipe, batches, state, device, resume, save_every, report, stop_after)


@contextmanager
def _arithmetic(recipe: Recipe, device: str) -> Iterator[None]:
    """The recipe's threads, and tiny numbers flushed to zero, on a CPU; as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(recipe.threads)
        torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def _train(
    model: PreTrainedModel,
    recipe: Recipe,
    batches: Batches,
    state: Path,
    device: str,
    resume: bool,
    save_every: int,
    report: Callable[[str], None],
    stop_after: int | None,
) -> Trained | None:
    _use_fused_gelu(model)
    model.to(device)
    model.train()
    tools = optimisers(model, recipe)
    run = _Progress(recipe, len(batches.tokenizer.get_vocab()))
    if resume and (state / CHECKPOINT).exists():
        run.load(state / CHECKPOINT, model, tools, device)
    started = time.monotonic() - run.seconds
    first = run.step
    began = time.monotonic()
    while run.step < recipe.steps:
        if run.step == stop_after:
            return None
        ids, labels = batches(run.step)
        run.add(_step(model, tools, recipe, run.step, ids, labels, device), ids)
        run.seconds = time.monotonic() - started
        if run.step % 100 == 0 or run.step == recipe.steps:
            pace = (time.monotonic() - began) / (run.step - first)
            report(run.line(pace))
        if run.step % save_every == 0:
            run.save(state / CHECKPOINT, model, tools)
    model.eval()
    return Trained(run.losses, run.counts.tolist(), run.seconds)


def _use_fused_gelu(model: PreTrainedModel) -> None:
    """Swap GPT-2's composed gelu for the fused kernel while training (the saved config keeps gelu_new)."""
    from transformers.activations import ACT2FN

    if model.config.model_type == "gpt2":
        for block in model.transformer.h:
            block.mlp.act = ACT2FN[_FUSED_GELU]


def _step(
    model: PreTrainedModel,
    tools: list[Optimizer],
    recipe: Recipe,
    step: int,
    ids: np.ndarray[Any, Any],
    labels: np.ndarray[Any, Any],
    device: str,
) -> float:
    import torch

    share = schedule(recipe, step)
    for tool, peak in zip(tools, (recipe.matrix_lr, recipe.peak_lr), strict=True):
        for group in tool.param_groups:
            group["lr"] = peak * share
    tokens = torch.from_numpy(ids).to(device)
    targets = torch.from_numpy(labels[:, 1:].copy()).to(device)
    logits: torch.Tensor = model(input_ids=tokens, use_cache=False).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED
    )
    model.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    for tool in tools:
        tool.step()
    return float(loss.detach())


class _Progress:
    """The cursor of a run and what it has gathered."""

    def __init__(self, recipe: Recipe, vocabulary: int) -> None:
        self.recipe = recipe
        self.step = 0
        self.seconds = 0.0
        self.losses: list[tuple[int, float]] = []
        self.counts = np.zeros(vocabulary, dtype=np.int64)
        self._recent: list[float] = []

    def add(self, loss: float, ids: np.ndarray[Any, Any]) -> None:
        self.step += 1
        self.counts += np.bincount(ids.reshape(-1), minlength=len(self.counts))
        self._recent.append(loss)
        if self.step % 100 == 0 or self.step == self.recipe.steps:
            self.losses.append((self.step, round(sum(self._recent) / len(self._recent), 5)))
            self._recent = []

    def line(self, pace: float) -> str:
        left = pace * (self.recipe.steps - self.step)
        speed = self.recipe.batch_tokens / pace
        return (
            f"{self.recipe.name}: step {self.step}/{self.recipe.steps}, loss {self.losses[-1][1]:.3f}, "
            f"{speed:,.0f} tokens/s, {left / 60:.1f} min left"
        )

    def save(self, path: Path, model: PreTrainedModel, tools: list[Optimizer]) -> None:
        import torch

        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        torch.save(
            {
                "recipe": self.recipe.digest(),
                "step": self.step,
                "seconds": self.seconds,
                "losses": self.losses,
                "recent": self._recent,
                "counts": self.counts.tolist(),
                "model": model.state_dict(),
                "optimisers": [tool.state_dict() for tool in tools],
                "rng": torch.get_rng_state(),
            },
            partial,
        )
        os.replace(partial, path)

    def load(self, path: Path, model: PreTrainedModel, tools: list[Optimizer], device: str) -> None:
        import torch

        from mech_interp.errors import InputError

        saved = torch.load(path, map_location=device, weights_only=True)
        if saved["recipe"] != self.recipe.digest():
            raise InputError(
                f"The checkpoint {path} belongs to another recipe.",
                "Use another --out folder, or leave out --resume to start again.",
            )
        model.load_state_dict(saved["model"])
        for tool, saved_tool in zip(tools, saved["optimisers"], strict=True):
            tool.load_state_dict(saved_tool)
        torch.set_rng_state(saved["rng"].cpu())
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.losses = [(step, loss) for step, loss in saved["losses"]]
        self.counts = np.asarray(saved["counts"], dtype=np.int64)
        self._recent = list(saved["recent"])
