"""The main job: how a model recalls capitals, by three methods, each with its interval and control."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.errors import InputError, MechError, nearest
from mech_interp.reports.demo_findings import (
    Finding,
    attribution_finding,
    lens_finding,
    patching_finding,
)

if TYPE_CHECKING:
    from rich.console import Console

    from mech_interp.backends.protocol import InstrumentedModel
    from mech_interp.config.settings import Settings
    from mech_interp.datasets.pairs import PromptPair, TaskSet
    from mech_interp.methods.dla_result import DLAResult
    from mech_interp.methods.lens_result import LensResult
    from mech_interp.methods.patching_result import PatchingResult

TEMPLATE = "The capital of {COUNTRY} is"
LEAST_COUNTRIES = 8
"""Fewer countries than this give no interval, so the demo says that the model does not fit it."""
SMALL = 5_000_000
"""Parameters below which a second thread costs more in waiting than it saves."""


@dataclass(frozen=True)
class Demo:
    """Everything one demo measured."""

    model: InstrumentedModel
    task: TaskSet
    lens: LensResult
    dla: DLAResult
    residual: PatchingResult
    heads: PatchingResult
    shown: int
    findings: tuple[Finding, ...]

    @property
    def pair(self) -> PromptPair:
        """The country shown in detail."""
        return self.task[self.shown]

    @property
    def known(self) -> int:
        """Countries whose capital is the model's first choice."""
        return int((self.lens.target.rank[:, -1] == 1).sum())


def run_demo(
    model: str,
    output: Path,
    device: str,
    dtype: str,
    country: str | None,
    console: Console,
    settings: Settings,
    backend: str = "huggingface",
) -> dict[str, Any]:
    """Load a model, run the three methods, print the panel, write `summary.{md,json,png}`.

    Beside the summary it leaves three complete runs in the store of `settings`, which `mech verify` and
    `mech replay` check.

    Returns:
        What `summary.json` holds: `findings` (each with value, interval, n, control), `run_ids`, `seconds`,
        the model, and the files written.

    Raises:
        MechError: for a model that cannot be opened, or whose tokenizer splits too many capitals.
    """
    from mech_interp.orchestration.demo_runs import open_for_demo, store_demo_runs
    from mech_interp.reports import demo_pages

    began = time.perf_counter()
    files = _files(output)
    with console.status(f"Opening {model} …") if console.is_terminal else nullcontext():
        opened = open_for_demo(model, settings, backend=backend, device=device, dtype=dtype)
    status = console.status("Running the model in pieces …") if console.is_terminal else nullcontext()
    try:
        with status, few_threads(opened):
            demo = measure(opened, country)
            run_ids = store_demo_runs(
                model, settings, device=device, dtype=dtype, backend=backend, model=opened
            )
    finally:
        close = getattr(opened, "close", None)
        if callable(close):
            close()
    summary = summarise(demo, files, run_ids, time.perf_counter() - began)
    demo_pages.write(demo, summary, files)
    demo_pages.show(demo, summary, console)
    return summary


@contextmanager
def few_threads(model: InstrumentedModel) -> Iterator[None]:
    """One thread for a model whose matrix products are too small to share out; as before afterwards."""
    import torch

    before = torch.get_num_threads()
    small = model.info.device == "cpu" and model.info.n_parameters < SMALL
    torch.set_num_threads(1 if small else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure(model: InstrumentedModel, country: str | None = None) -> Demo:
    """Run logit lens, direct logit attribution and patching on one model."""
    from mech_interp.methods.dla import direct_logit_attribution
    from mech_interp.methods.lens import logit_lens

    task = capitals(model)
    shown = _chosen(task, country)
    prompts, groups = task.clean, [pair.group for pair in task]
    answers, wrongs = [pair.answer for pair in task], [pair.wrong for pair in task]
    lens = logit_lens(model, prompts, answers, groups=groups)
    dla = direct_logit_attribution(model, prompts, answers, wrongs, groups=groups)
    residual, heads = patch(model, task)
    findings = (attribution_finding(dla), lens_finding(lens), patching_finding(residual, heads))
    return Demo(model, task, lens, dla, residual, heads, shown, findings)


def patch(model: InstrumentedModel, task: TaskSet) -> tuple[PatchingResult, PatchingResult]:
    """Residual stream by layer and token, and heads at the last token.

    In shares of the clean-corrupt difference; in logits where the model does not tell the countries
    apart, so that there is no difference to take a share of.
    """
    from mech_interp.methods.patching import activation_patching
    from mech_interp.statistics import UnstableRatioError

    def both(normalise: bool) -> tuple[PatchingResult, PatchingResult]:
        return (
            activation_patching(
                model, task, kind="resid_pre", positions=named_tokens, control_cells=0, normalise=normalise
            ),
            activation_patching(
                model, task, kind="z", positions="last", control_cells=None, normalise=normalise
            ),
        )

    try:
        return both(normalise=True)
    except UnstableRatioError:
        return both(normalise=False)


def capitals(model: InstrumentedModel) -> TaskSet:
    """Prompt pairs "The capital of X is", X against another country, for all countries that fit.

    Raises:
        InputError: when the tokenizer leaves too few.
    """
    from mech_interp.datasets.tasks.facts import facts

    if model.tokenizer is None:
        raise InputError(f"{model.info.name} came without a tokenizer.", "Choose a model that reads text.")
    found = facts(model.tokenizer, templates=[TEMPLATE])
    if len(found) < LEAST_COUNTRIES:
        raise InputError(
            f"Only {len(found)} of {len(found) + len(found.dropped)} capitals are single tokens for the "
            f"tokenizer of {model.info.name}, too few for this demo.",
            "Choose a model with a word-piece vocabulary, such as tinyworld or gpt2.",
        )
    return found


def named_tokens(pair: PromptPair, texts: Sequence[str]) -> Mapping[str, Sequence[int]]:
    """Columns of a prompt by what stands there, so that countries of one and of two tokens align."""
    low, high = pair.spans["subject"]
    named: dict[str, list[int]] = {}
    begin = 0
    for column, text in enumerate(texts):
        end = begin + len(text)
        inside = begin < high and end > low
        named.setdefault("country" if inside else text, []).append(column)
        begin = end
    return named


def summarise(
    demo: Demo, files: Mapping[str, Path], run_ids: Sequence[str], seconds: float
) -> dict[str, Any]:
    """The JSON document of one demo."""
    import torch

    info = demo.model.info
    return {
        "model": {
            "name": info.name,
            "backend": info.backend,
            "architecture": info.architecture,
            "parameters": info.n_parameters,
            "layers": info.n_layers,
            "heads": info.n_heads,
            "dtype": info.dtype,
            "device": info.device,
            "weights_sha256": info.weights_hash,
            "source": "bundled" if info.source == "bundled" else "given",
        },
        "task": {
            "name": demo.task.name,
            "countries": len(demo.task),
            "dropped": len(demo.task.dropped),
            "known": demo.known,
            "content_hash": demo.task.content_hash(),
        },
        "findings": [finding.to_dict() for finding in demo.findings],
        "checks": {
            "attribution terms sum to the logit difference (relative gap)": demo.dla.gap,
            "lens of the last layer equals the model's logits (relative gap)": demo.lens.final_gap,
            "patching a run with itself changes nothing (relative)": demo.heads.sanity["self_patch"],
            "patching the whole input gives the other run (relative)": demo.heads.sanity["restore_all"],
        },
        "shown": {
            "prompt": demo.pair.clean,
            "answer": demo.pair.answer,
            "counterfactual": demo.pair.corrupt,
            "layers": [
                {
                    "after": label,
                    "first_choice": demo.lens.top_texts[demo.shown][stream][0],
                    "probability_of_answer": float(demo.lens.target.probability[demo.shown, stream]),
                }
                for stream, label in enumerate(demo.lens.labels)
            ],
        },
        "run_ids": list(run_ids),
        "seconds": round(seconds, 2),
        "files": {name: str(path) for name, path in files.items()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def _chosen(task: TaskSet, country: str | None) -> int:
    names = [pair.span_text("subject").strip() for pair in task]
    if country is None:
        return names.index("France") if "France" in names else 0
    if country not in names:
        raise InputError(
            f"There is no country {country!r} among the {len(names)} of this demo.",
            nearest(country, names) or f"For example {', '.join(names[:5])}.",
        )
    return names.index(country)


def _files(output: Path) -> dict[str, Path]:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise MechError(
            f"The folder {output} cannot be written ({error.strerror}).", "Choose another with --output."
        ) from None
    return {suffix: output / f"summary.{suffix}" for suffix in ("md", "json", "png")}


def document(summary: Mapping[str, Any]) -> str:
    """The text of `summary.json`."""
    return json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
