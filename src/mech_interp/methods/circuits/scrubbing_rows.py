"""Evaluates a scrubbed tree: level by level in batches, each distinct value once.

The value of a node depends on the inputs drawn below it alone, so it is remembered by the tuple of their
numbers. Nodes are run in an order in which everything that feeds them comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from mech_interp.backends import edits as ed
from mech_interp.backends.huggingface.block import attend, mlp_of
from mech_interp.backends.huggingface.edges import EdgeEngine
from mech_interp.backends.huggingface.stack import frame_for, logits_of
from mech_interp.backends.huggingface.writers import head_weights, run_writers
from mech_interp.backends.metrics import Metric
from mech_interp.backends.tokens import Tokens
from mech_interp.graph import Reader, Writer
from mech_interp.methods.circuits.scrubbing_hypothesis import ROOT, Hypothesis
from mech_interp.methods.circuits.scrubbing_tree import Draws, Slot, Use
from mech_interp.methods.common import Floats, Ints, as_floats

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.layouts.base import Block
    from mech_interp.backends.huggingface.model import HuggingFaceModel

Unimportant = Literal["shared", "separate"]


@dataclass
class Work:
    """How many values of nodes were computed, and how many plain recursion would have computed."""

    computed: int = 0
    recursive: int = 0


@dataclass
class _Table:
    """Distinct values of one node: by writer (or reader) [value, position, d_model].

    A leaf's values are the model's own, fetched by the number of the prompt.
    """

    values: dict[Writer | Reader, Tensor] = field(default_factory=dict)
    fetch: Callable[[Writer | Reader, Tensor], Tensor] | None = None

    def get(self, part: Writer | Reader, rows: Tensor) -> Tensor:
        return self.values[part][rows] if self.fetch is None else self.fetch(part, rows)


class Scrubber:
    """Runs scrubbed trees over one data set."""

    def __init__(self, model: HuggingFaceModel, tokens: Tokens) -> None:
        self.model = model
        self.tokens = tokens.to(model.info.device)
        own = run_writers(model, self.tokens)
        # The baseline of this engine is the model's own run: its streams are those of every prompt.
        self.engine = EdgeEngine(model, self.tokens, own)
        self.graph = self.engine.graph
        self._frame = frame_for(model.layout, own.embed, self.engine.positions)
        self._tap = ed.Tap(ed.Edits())

    def read(self, final: Tensor, prompts: Sequence[int], metric: Metric) -> Floats:
        """The metric of final streams [row, position, d_model] by the labels of `prompts`."""
        layout, device = self.model.layout, final.device
        columns = [[self.tokens.position(p, at) for at in metric.positions] for p in prompts]
        chosen = final[torch.arange(len(final), device=device)[:, None], torch.tensor(columns, device=device)]
        wanted = metric.token_ids(prompts)
        ids = None if wanted is None else wanted.to(device)[:, None]
        return as_floats(metric(logits_of(layout, layout.final_norm(chosen), ids), prompts))

    @torch.no_grad()
    def plain(self, inputs: Ints, prompts: Sequence[int], metric: Metric) -> Floats:
        """The model's own output on `inputs`, by the labels of `prompts`."""
        found, step = [], 256
        for at in range(0, len(inputs), step):
            rows = torch.as_tensor(inputs[at : at + step], device=self.tokens.ids.device)
            found.append(self.read(self.stream(Reader("logits"))[rows], prompts[at : at + step], metric))
        return np.concatenate(found)

    def stream(self, reader: Reader) -> Tensor:
        """What a reader takes in on every prompt, [prompt, position, d_model]."""
        before_attention, before_mlp, final = self.engine.streams
        if reader.kind == "logits":
            return final
        return (before_mlp if reader.kind == "mlp" else before_attention)[reader.layer]

    def written(self, writer: Writer, rows: Tensor) -> Tensor:
        """What a writer adds on some prompts, [row, position, d_model]."""
        own = self.engine.clean
        if writer.kind == "input":
            return own.embed[rows]
        if writer.kind == "mlp":
            return own.mlps[writer.layer][rows]
        weight = head_weights(self._block(writer.layer))[writer.head]
        return own.heads[writer.layer][rows, :, writer.head] @ weight

    def fetch(self, part: Writer | Reader, rows: Tensor) -> Tensor:
        """The model's own value of a writer or a reader's input."""
        return self.stream(part)[rows] if isinstance(part, Reader) else self.written(part, rows)

    def live(self, writer: Writer, inputs: Mapping[Reader, Tensor], own: Tensor) -> Tensor:
        """What a writer adds, from its readers' inputs [row, position, d_model].

        `own` [row] are the prompts at whose scale a norm behind attention is held.
        """
        block = self._block(writer.layer)
        if writer.kind == "mlp":
            x = inputs[Reader("mlp", writer.layer)]
            normed = block.norm1(x) if block.shared_norm else block.norm2(x)
            out = mlp_of(block, writer.layer, normed, self._tap)
            return out if block.post_mlp is None else block.post_mlp(out)
        readers = [Reader("q", writer.layer, writer.head)]
        readers += [self.graph.kv_reader(kind, writer.layer, writer.head) for kind in ("k", "v")]
        weights = block.weights()
        projected = []
        for name, reader in zip("QKV", readers, strict=True):
            out = block.norm1(inputs[reader]) @ weights[f"W_{name}"][reader.head].detach()
            bias = weights.get(f"b_{name}")
            projected.append((out if bias is None else out + bias[reader.head].detach())[:, :, None])
        q, k, v = projected
        z = attend(block, writer.layer, q, k, v, self._frame, self._tap)[:, :, 0]
        scale = self.engine.clean.scales[writer.layer]
        z = z if isinstance(scale, float) else z / scale[own][..., 0]
        return z @ head_weights(block)[writer.head]

    def _block(self, layer: int) -> Block:
        return self.model.layout.blocks[layer]

    @property
    def frozen(self) -> bool:
        """Whether a norm behind attention is held at a scale."""
        return any(not isinstance(scale, float) for scale in self.engine.clean.scales)


class Evaluation:
    """One block of (sample, prompt) rows of a tree.

    `numbers` are flat indices into [sample, prompt].
    """

    def __init__(
        self,
        scrubber: Scrubber,
        hypothesis: Hypothesis,
        root: Use,
        draws: Draws,
        unimportant: Unimportant,
        numbers: Ints,
        work: Work,
    ) -> None:
        self.scrubber, self.hypothesis, self.root = scrubber, hypothesis, root
        self.draws, self.unimportant, self.numbers, self.work = draws, unimportant, numbers, work
        self.uses: dict[str, list[Use]] = {}
        for use in root.walk():
            self.uses.setdefault(use.part.name, []).append(use)
        self._own: dict[int, Ints] = {id(root): draws.references.ravel()[numbers]}
        self._draw(root, draws.references)
        self._tables: dict[str, _Table] = {}
        self._rows: dict[int, Ints] = {}

    @torch.no_grad()
    def final(self, rows_at_once: int) -> Tensor:
        """The scrubbed final stream of every row, [row, position, d_model]."""
        for name in [*self.hypothesis.order, ROOT]:
            self._evaluate(self.uses[name], rows_at_once)
        rows = torch.as_tensor(self._rows[id(self.root)], device=self.scrubber.tokens.ids.device)
        return self._tables[ROOT].values[Reader("logits")][rows]

    def _draw(self, use: Use, reference: Ints) -> None:
        """The input of every use below, from the input of the one above."""
        for child in use.children():
            node = self.hypothesis.nodes[child.part.name]
            drawn = self.draws.agreeing(child.path, node.depends_on, reference)
            self._own[id(child)] = drawn.ravel()[self.numbers]
            self._draw(child, drawn)

    def _evaluate(self, uses: Sequence[Use], rows_at_once: int) -> None:
        """All uses of one node: their distinct values, and which row has which."""
        name = uses[0].part.name
        self.work.recursive += len(uses) * len(self.numbers)
        if not uses[0].slots:
            self._tables[name] = _Table(fetch=self.scrubber.fetch)
            for use in uses:
                self._rows[id(use)] = self._own[id(use)]
            self.work.computed += len(np.unique(np.concatenate([self._own[id(use)] for use in uses])))
            return
        keys = np.concatenate([self._keys(use) for use in uses])
        distinct, which = np.unique(keys, axis=0, return_inverse=True)
        for use, rows in zip(uses, np.split(which.reshape(-1), len(uses)), strict=True):
            self._rows[id(use)] = rows
        self.work.computed += len(distinct)
        parts: list[dict[Writer | Reader, Tensor]] = []
        for at in range(0, len(distinct), rows_at_once):
            chosen = torch.as_tensor(distinct[at : at + rows_at_once], device=self.scrubber.tokens.ids.device)
            parts.append(self._values(uses[0], chosen))
        self._tables[name] = _Table({key: torch.cat([one[key] for one in parts]) for key in parts[0]})

    def _keys(self, use: Use) -> Ints:
        """[row, column]: the use's own input where its value needs it, then for every slot the inputs of
        what is unimportant in it and the numbers of the values of what is important."""
        needed = self.scrubber.frozen or Writer("input") in use.part.writers
        columns = [self._own[id(use)] if needed else np.zeros_like(self.numbers)]
        for slot in use.slots:
            if slot.whole is not None:
                columns.append(self._rows[id(slot.whole)])
                continue
            columns += [self._unimportant(use, slot, writer) for writer in self._silent(use, slot)]
            columns += [self._rows[id(child)] for child in slot.heard.values()]
        return np.stack(columns, 1)

    def _unimportant(self, use: Use, slot: Slot, writer: Writer | None) -> Ints:
        key = use.path if writer is None else f"{use.path}|{writer}->{slot.reader}"
        return self.draws.random(key).ravel()[self.numbers]

    def _silent(self, use: Use, slot: Slot) -> list[Writer] | list[None]:
        """What draws of unimportant inputs a slot has: one for all (None), or one for each writer."""
        graph = self.scrubber.graph
        known = {*slot.heard, *use.part.writers}
        silent = [w for w in graph.writers[: graph.before(slot.reader)] if w not in known]
        return [None] if silent and self.unimportant == "shared" else silent

    def _values(self, use: Use, keys: Tensor) -> dict[Writer | Reader, Tensor]:
        """The node's value for distinct keys."""
        inputs: dict[Reader, Tensor] = {}
        live: dict[Writer, Tensor] = {}
        at = 1
        waiting = list(use.part.writers)
        for slot in use.slots:
            # Writers of the node that are complete come before this reader may hear them.
            waiting = self._run_ready(waiting, slot.reader, inputs, live, keys[:, 0])
            inputs[slot.reader], at = self._mixed(use, slot, keys, at, live)
        self._run_ready(waiting, Reader("logits"), inputs, live, keys[:, 0])
        if use.part.reader is not None:
            return {use.part.reader: inputs[use.part.reader]}
        return {writer: live[writer] for writer in use.part.writers}

    def _run_ready(
        self,
        waiting: list[Writer],
        reader: Reader,
        inputs: Mapping[Reader, Tensor],
        live: dict[Writer, Tensor],
        own: Tensor,
    ) -> list[Writer]:
        graph = self.scrubber.graph
        ready = [w for w in waiting if graph.writer_index[w] < graph.before(reader)]
        for writer in ready:
            live[writer] = (
                self.scrubber.written(writer, own)
                if writer.kind == "input"
                else self.scrubber.live(writer, inputs, own)
            )
        return [w for w in waiting if w not in ready]

    def _mixed(
        self, use: Use, slot: Slot, keys: Tensor, at: int, live: Mapping[Writer, Tensor]
    ) -> tuple[Tensor, int]:
        """What a reader takes in, and the next column of the keys."""
        scrubber = self.scrubber
        if slot.whole is not None:
            return self._tables[slot.whole.part.name].get(slot.reader, keys[:, at]), at + 1
        silent = self._silent(use, slot)
        base = keys[:, at] if silent else torch.zeros_like(keys[:, 0])
        x = scrubber.stream(slot.reader)[base]
        for i, writer in enumerate(silent):
            if writer is not None and i:
                x = x + scrubber.written(writer, keys[:, at + i]) - scrubber.written(writer, base)
        at += len(silent)
        for writer, child in slot.heard.items():
            value = self._tables[child.part.name].get(writer, keys[:, at])
            x, at = x + value - scrubber.written(writer, base), at + 1
        graph = scrubber.graph
        for writer, value in live.items():
            if graph.writer_index[writer] < graph.before(slot.reader):
                x = x + value - scrubber.written(writer, base)
        return x, at
