"""The sides of the comparison. Each runs one sweep and returns the mean metric of every cell.

A sweep is denoising: run the corrupt prompts, insert one clean activation. Cells are (layer, position)
of the residual stream entering a block, or (layer, head) of the heads' outputs at all positions. Every
side's time includes its own clean run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from compare.setting import LENGTH, Shape, Workload, dummy_tokenizer, random_module, word

Sweep = Literal["resid", "heads"]
Cell = tuple[int, int]


def cells_of(sweep: Sweep, shape: Shape, stride: int = 1) -> list[Cell]:
    """All cells of a sweep in order, or every `stride`-th."""
    width = LENGTH if sweep == "resid" else shape.n_head
    return [(layer, i) for layer in range(shape.n_layer) for i in range(width)][::stride]


class Side(Protocol):
    """One way to run a sweep."""

    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        """The metric's mean over prompts per cell, [cells]."""
        ...


class Ours:
    """`InstrumentedModel.rows` of the default engine."""

    def __init__(self, shape: Shape) -> None:
        from mech_interp.backends.huggingface.opening import open_module

        self.model = open_module(random_module(shape), dummy_tokenizer(shape))

    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        from mech_interp.backends.metrics import LogitDifference
        from mech_interp.backends.protocol import Row
        from mech_interp.interventions import FromRun, Intervention, Replace
        from mech_interp.sites import Site

        def patch(layer: int, i: int) -> Intervention:
            if sweep == "resid":
                return Intervention(Site("resid_pre", layer), Replace(FromRun("clean")), positions=i)
            return Intervention(Site("z", layer), Replace(FromRun("clean")), heads=i)

        prompts = range(len(workload.clean))
        rows = [Row(prompt, (patch(*cell),)) for cell in cells for prompt in prompts]
        runs = {
            "base": self.model.tokens(workload.corrupt.tolist()),
            "clean": self.model.tokens(workload.clean.tolist()),
        }
        metric = LogitDifference(
            tuple(workload.answers[:, 0].tolist()), tuple(workload.answers[:, 1].tolist())
        )
        found = torch.full((len(rows),), torch.nan)
        for result in self.model.rows(runs, rows, metric):
            found[result.index] = result.value
        return found.view(len(cells), len(prompts)).mean(1)


class OursPublic(Ours):
    """The public method, with its sanity checks, controls and intervals. Always visits the whole grid."""

    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        from mech_interp.datasets.pairs import PromptPair
        from mech_interp.methods.patching import activation_patching

        def text(ids: Tensor) -> str:
            return " ".join(word(i) for i in ids.tolist())

        pairs = [
            PromptPair(
                clean=text(workload.clean[i]),
                corrupt=text(workload.corrupt[i]),
                answer=" " + word(int(workload.answers[i, 0])),
                wrong=" " + word(int(workload.answers[i, 1])),
            )
            for i in range(len(workload.clean))
        ]
        kind = "resid_pre" if sweep == "resid" else "z"
        # Random weights need not separate clean from corrupt, so effects stay in logits.
        result = activation_patching(self.model, pairs, kind=kind, metric="logit_difference", normalise=False)
        grid = torch.from_numpy(result.differences.mean(0) + result.base.mean())
        return torch.stack([grid[cell] for cell in cells]).float()


class TransformerLens:
    """The peer's own sweeps on its bridge; the bridge switches its copy to eager attention."""

    def __init__(self, shape: Shape) -> None:
        import os

        os.environ["TQDM_DISABLE"] = "1"
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.model_bridge.sources import transformers as _  # noqa: F401 (adds boot_transformers)

        self.model = TransformerBridge.boot_transformers(
            "gpt2", hf_model=random_module(shape), tokenizer=dummy_tokenizer(shape), device="cpu"
        )
        self.shape = shape

    @torch.no_grad()
    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        import pandas  # type: ignore[import-untyped,unused-ignore]
        from transformer_lens import patching

        suffix, function, second = (
            ("hook_resid_pre", patching.get_act_patch_resid_pre, "pos")
            if sweep == "resid"
            else ("attn.hook_z", patching.get_act_patch_attn_head_out_all_pos, "head_index")
        )
        names = [f"blocks.{layer}.{suffix}" for layer in range(self.shape.n_layer)]
        _, cache = self.model.run_with_cache(workload.clean, names_filter=lambda name: name in names)
        if len(cells) == len(cells_of(sweep, self.shape)):
            found: Tensor = function(self.model, workload.corrupt, cache, workload.metric)
            return found.flatten()
        frame = pandas.DataFrame(list(cells), columns=["layer", second])
        some: Tensor = function(
            self.model, workload.corrupt, cache, workload.metric, index_axis_names=None, index_df=frame
        )
        return some


class NNsight:
    """The usual loop of the peer's users: one trace per cell on the whole batch."""

    def __init__(self, shape: Shape) -> None:
        from nnsight import NNsight as Wrapped

        self.model: Any = Wrapped(random_module(shape))
        self.shape = shape

    @torch.no_grad()
    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        return self._resid(workload, cells) if sweep == "resid" else self._heads(workload, cells)

    def _resid(self, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        import nnsight

        model, blocks, found = self.model, self.model.transformer.h, []
        with model.trace(workload.clean):
            clean = nnsight.save([block.input.clone() for block in blocks])
        for layer, position in cells:
            with model.trace(workload.corrupt):
                blocks[layer].input[:, position] = clean[layer][:, position]
                value = nnsight.save(workload.metric(model.output.logits))
            found.append(value)
        return torch.stack(found)

    def _heads(self, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        import nnsight

        model, blocks, found = self.model, self.model.transformer.h, []
        width = self.shape.n_embd // self.shape.n_head
        with model.trace(workload.clean):
            clean = nnsight.save([block.attn.c_proj.input.clone() for block in blocks])
        for layer, head in cells:
            part = slice(head * width, (head + 1) * width)
            with model.trace(workload.corrupt):
                blocks[layer].attn.c_proj.input[:, :, part] = clean[layer][:, :, part]
                value = nnsight.save(workload.metric(model.output.logits))
            found.append(value)
        return torch.stack(found)


class Hooks:
    """A loop that registers one forward pre-hook per cell on the Hugging Face module."""

    def __init__(self, shape: Shape) -> None:
        self.model = random_module(shape)
        self.shape = shape

    @torch.no_grad()
    def run(self, sweep: Sweep, workload: Workload, cells: Sequence[Cell]) -> Tensor:
        width = self.shape.n_embd // self.shape.n_head
        blocks = self.model.transformer.h
        places = [block if sweep == "resid" else block.attn.c_proj for block in blocks]
        clean: dict[int, Tensor] = {}

        def keep(layer: int, module: Any, given: tuple[Any, ...]) -> None:
            clean[layer] = given[0].clone()

        def insert(
            where: tuple[Any, ...], value: Tensor, module: Any, given: tuple[Any, ...]
        ) -> tuple[Any, ...]:
            changed = given[0].clone()
            changed[where] = value[where]
            return (changed, *given[1:])

        handles = [place.register_forward_pre_hook(partial(keep, i)) for i, place in enumerate(places)]
        self.model(workload.clean)
        for handle in handles:
            handle.remove()
        found = []
        for layer, i in cells:
            columns = i if sweep == "resid" else slice(None)
            features = slice(None) if sweep == "resid" else slice(i * width, (i + 1) * width)
            hook = partial(insert, (slice(None), columns, features), clean[layer])
            handle = places[layer].register_forward_pre_hook(hook)
            found.append(workload.metric(self.model(workload.corrupt).logits))
            handle.remove()
        return torch.stack(found)


SIDES: dict[str, Callable[[Shape], Side]] = {
    "ours": Ours,
    "public": OursPublic,
    "transformerlens": TransformerLens,
    "nnsight": NNsight,
    "hooks": Hooks,
}
PEERS = ("transformerlens", "nnsight", "hooks")
PACKAGES = {"transformerlens": "transformer_lens", "nnsight": "nnsight"}
