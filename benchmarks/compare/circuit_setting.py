"""What the circuit benchmarks run on: one model, pairs of prompts, a metric, and times of ours."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from compare.setting import SHAPES, Shape, Workload, dummy_tokenizer, random_module, workload
from compare.sides import TransformerLens
from compare.timing import in_turn

NO_PEER = "transformer_lens is not installed; install the extra: mech-interpretability[bench]"
CIRCUIT_SHAPES = SHAPES | {"gpt2-small, 3 layers": replace(SHAPES["gpt2-small"], n_layer=3)}


@dataclass
class Setting:
    """A model of ours on a workload, with as many of its prompts as asked for."""

    shape: Shape
    work: Workload
    n_prompts: int = 8

    @cached_property
    def model(self) -> Any:
        """The default engine on random weights."""
        from mech_interp.backends.huggingface.opening import open_module

        return open_module(random_module(self.shape), dummy_tokenizer(self.shape))

    def on(self, work: Workload, n_prompts: int) -> Setting:
        """The same model on other prompts."""
        other = Setting(self.shape, work, n_prompts)
        other.model = self.model
        return other

    @property
    def clean(self) -> Any:
        """The clean prompts."""
        return self.model.tokens(self.work.clean[: self.n_prompts].tolist())

    @property
    def corrupt(self) -> Any:
        """The corrupt prompts."""
        return self.model.tokens(self.work.corrupt[: self.n_prompts].tolist())

    @property
    def metric(self) -> Any:
        """Logit difference at the last position."""
        from mech_interp.backends.metrics import LogitDifference

        answers = self.work.answers.T.tolist()
        return LogitDifference(tuple(answers[0]), tuple(answers[1]))

    def task(self) -> Any:
        """The same as a task of circuit methods."""
        from mech_interp.methods.circuits.common import CircuitTask

        groups = tuple(str(i) for i in range(self.n_prompts))
        return CircuitTask(self.model, self.clean, self.corrupt, self.metric, groups)

    def engine(self, *, exchanged: bool = False) -> Any:
        """A fresh edge engine, which knows neither run yet; `exchanged` swaps clean and corrupt."""
        from mech_interp.backends.huggingface.edges import EdgeEngine

        ends = (self.corrupt, self.clean) if exchanged else (self.clean, self.corrupt)
        return EdgeEngine(self.model, *ends)

    def forward(self) -> Tensor:
        """F: one forward without gradients, logits at the last position."""
        logits: Tensor = self.model.forward(self.clean, logits="last").logits
        return logits

    def scores(self, *, exchanged: bool = False) -> Tensor:
        """EAP scores of all edges of all prompts, both runs included, [prompt, writer, reader]."""
        from mech_interp.backends.huggingface.edge_gradients import edge_scores

        return edge_scores(self.engine(exchanged=exchanged), self.metric)

    def forward_backward(self) -> Tensor:
        """A plain forward and backward to the embedding with frozen weights."""
        first = "blocks.0.hook_resid_pre"
        result = self.model.forward(self.clean, capture=[first], logits="last", grad=True)
        answers = self.work.answers[: self.n_prompts]
        value = (result.logits.gather(1, answers) * torch.tensor([1.0, -1.0])).sum()
        (found,) = torch.autograd.grad(value, [result.activations[first]])
        return found


def open_peer(shape: Shape) -> TransformerLens | None:
    """The peer with the same weights, if it is installed."""
    return None if importlib.util.find_spec("transformer_lens") is None else TransformerLens(shape)


def opened(shape: Shape, work: str, n_prompts: int = 8) -> Setting:
    """A setting with its model opened and its weights frozen."""
    setting = Setting(shape, workload(work, shape), n_prompts)
    setting.model.module.requires_grad_(False)
    return setting


@dataclass(frozen=True)
class Best:
    """Least seconds over repeats, of wall and processor time, and the largest of each."""

    wall: float
    cpu: float
    wall_worst: float
    cpu_worst: float

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {"wall": self.wall, "cpu": self.cpu, "wall_max": self.wall_worst, "cpu_max": self.cpu_worst}


def best_of(
    functions: dict[str, Callable[[], Tensor]], repeats: int
) -> tuple[dict[str, Best], dict[str, Tensor]]:
    """Times and results of functions run in turn, after one unmeasured run each."""
    in_turn(functions, 1)
    samples = in_turn(functions, repeats)
    times = {
        name: Best(
            min(s.wall for s in taken),
            min(s.cpu for s in taken),
            max(s.wall for s in taken),
            max(s.cpu for s in taken),
        )
        for name, taken in samples.items()
    }
    return times, {name: taken[0].value for name, taken in samples.items()}


def timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Seconds of wall and processor time of one run, and what it returned."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = function()
    return time.perf_counter() - wall, time.process_time() - cpu, value


def judged(ratio: float | None, bar: float, *, at_most: bool) -> bool | None:
    """Whether a bar is met; None where there is no ratio."""
    if ratio is None:
        return None
    return ratio <= bar if at_most else ratio >= bar
