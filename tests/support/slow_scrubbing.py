"""Causal scrubbing written out: models by hand, and the published recursion, one input at a time."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mech_interp.backends.metrics import LogitDifference
from mech_interp.graph import CircuitGraph, Reader, Writer
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis, Node
from mech_interp.methods.circuits.scrubbing_tree import Draws, Inputs

N, SAMPLES, SEED = 9, 2, 3
LENGTHS = (5, 5, 5, 4, 5, 5, 4, 5, 4)
LABELS: dict[str, Sequence[Hashable]] = {
    "first": ["a", "b", "a", "a", "b", "a", "b", "b", "a"],
    "last": [0, 1, 1, 0, 0, 0, 0, 1, 0],
    "both": [("a", 0), ("b", 1), ("a", 1), ("a", 0), ("b", 0), ("a", 0), ("b", 0), ("b", 1), ("a", 0)],
}
METRIC = LogitDifference(tuple(range(11, 11 + N)), tuple(range(40, 40 + N)))
# Every form a node can take: one path shared by two readers, groups with an edge inside, edges, a
# reader, MLPs, the embedding; some leaves and some not.
HYPOTHESES = {
    "deep": Hypothesis(
        ("mover", "late"),
        {
            "mover": Node(("a2.h1",), ("both",), ("source", "mlp")),
            "late": Node(("m2",), ("last",), ("source",)),
            "source": Node(("a0.h0", "a0.h2"), ("first",), ("embedding",)),
            "mlp": Node(("m0",), ("last",)),
            "embedding": Node(("input",), ("prompt",)),
        },
    ),
    "edges and readers": Hypothesis(
        ("pair",),
        {
            "pair": Node(("a1.h0", "m1", "a2.h3"), ("first",), ("keys", "tokens", "query")),
            "keys": Node(("a0.h1->a1.h0<k>", "a0.h3->m1"), ("last",), ()),
            "tokens": Node(("input->a1.h0<q>",), (), ()),
            "query": Node(("a2.h3<q>",), ("both",), ("deep",)),
            "deep": Node(("m1",), ("first",), ("below",)),
            "below": Node(("a1.h2", "m0"), ("last",), ()),
        },
    ),
    "a leaf reader": Hypothesis(
        ("head", "rest"),
        {
            "head": Node(("a1.h0",), ("last",), ("value",)),
            "value": Node(("a1.h0<v>",), ("first",)),
            "rest": Node(("a0.h*", "m0", "input"), ("both",)),
        },
    ),
}


def prompts(lengths: Sequence[int] = LENGTHS, seed: int = 1) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 97, (n,), generator=generator).tolist() for n in lengths]


def graph_of(model: Any) -> CircuitGraph:
    info = model.info
    return CircuitGraph(info.n_layers, info.n_heads, info.n_kv_heads, "resid_mid" in info.missing_kinds)


class Written:
    """A model written out: what each writer adds on each prompt, and each writer from its inputs."""

    def __init__(self, model: Any, ids: list[list[int]]) -> None:
        self.model, self.ids, self.graph = model, ids, graph_of(model)
        layers = range(model.info.n_layers)
        self.seen = [
            model.forward(
                [row],
                capture=[
                    "resid_pre.0",
                    *(f"{k}.{i}" for i in layers for k in ("z", "mlp_out", "attn_out_own")),
                ],
                logits="none",
            ).activations
            for row in ids
        ]

    def scale(self, layer: int, prompt: int) -> Tensor:
        block = self.model.layout.blocks[layer]
        if block.post_attention is None:
            return torch.ones(len(self.ids[prompt]), 1, dtype=torch.float64)
        own = self.seen[prompt][f"attn_out_own.{layer}"][0]
        return (own.pow(2).mean(-1, keepdim=True) + self.model.info.norm_eps).sqrt()

    def out(self, layer: int, head: int, z: Tensor, prompt: int) -> Tensor:
        weights = self.model.layout.blocks[layer].weights()
        gain = weights.get("ln1_post.w", torch.ones(self.model.info.d_model, dtype=torch.float64))
        return (z / self.scale(layer, prompt)) @ weights["W_O"][head] * gain

    def value_on(self, writer: Writer, prompt: int) -> Tensor:
        seen = self.seen[prompt]
        if writer.kind == "input":
            return seen["resid_pre.0"][0]
        if writer.kind == "mlp":
            return seen[f"mlp_out.{writer.layer}"][0]
        return self.out(writer.layer, writer.head, seen[f"z.{writer.layer}"][0, :, writer.head], prompt)

    def sum(self, reader: Reader, parts: Mapping[Writer, Tensor]) -> Tensor:
        """A reader's input: what it hears, and the output biases of attention so far."""
        total = torch.stack(list(parts.values())).sum(0)
        last = self.model.info.n_layers if reader.kind == "logits" else reader.layer
        if reader.kind == "mlp" and not self.graph.parallel:
            last += 1
        for layer in range(last):
            bias = self.model.layout.blocks[layer].weights().get("b_O")
            total = total if bias is None else total + bias
        return total

    def live(self, writer: Writer, inputs: Mapping[Reader, Tensor], own: int) -> Tensor:
        block = self.model.layout.blocks[writer.layer]
        if writer.kind == "mlp":
            pre, linear = block.mlp_in(block.norm2(inputs[Reader("mlp", writer.layer)])[None])
            out = block.mlp_out(block.mlp_activation(pre, linear))[0]
            return out if block.post_mlp is None else block.post_mlp(out)
        weights, made = block.weights(), {}
        kv = writer.head * self.graph.n_kv_heads // self.graph.n_heads
        for kind, head in (("q", writer.head), ("k", kv), ("v", kv)):
            x = block.norm1(inputs[Reader(kind, writer.layer, head)]) @ weights[f"W_{kind.upper()}"][head]
            bias = weights.get(f"b_{kind.upper()}")
            made[kind] = x if bias is None else x + bias[head]
        q, k = block.norm_qk(made["q"][None, :, None], made["k"][None, :, None])
        n = q.shape[1]
        if block.rotary_kind is not None:
            q, k = block.rotate(q, k, self.model.layout.rotary(q[:, :, 0], torch.arange(n)[None]))
        scores = q[0, :, 0] @ k[0, :, 0].T * block.scale
        if block.score_cap is not None:
            scores = block.score_cap * torch.tanh(scores / block.score_cap)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        seen = (distance >= 0) & (distance < (block.window or n + 1))
        pattern = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return self.out(writer.layer, writer.head, pattern @ made["v"], own)

    def logits(self, stream: Tensor) -> Tensor:
        layout = self.model.layout
        return layout.softcap(layout.unembedding(layout.final_norm(stream)))


class Recursion:
    """run_scrub of Chan et al. 2022, literally: one reference, one place at a time."""

    def __init__(
        self,
        written: Written,
        hypothesis: Hypothesis,
        labels: Mapping[str, Sequence[Hashable]],
        seed: int,
        separate: bool = False,
        samples: int = SAMPLES,
    ) -> None:
        self.written, self.hypothesis, self.separate = written, hypothesis, separate
        n = len(written.ids)
        self.labels: dict[str, Sequence[Hashable]] = {"prompt": list(range(n)), **labels}
        lengths = [len(row) for row in written.ids]
        self.draws = Draws(Inputs.of(lengths, labels), samples, seed)
        self.graph, self.evaluated = written.graph, 0

    def run(self, sample: int, prompt: int) -> float:
        self.at = (sample, prompt)
        stream = self.scrub("logits", "logits", prompt)[Reader("logits")]
        logits = self.written.logits(stream)[-1]
        return float(logits[METRIC.correct[prompt]] - logits[METRIC.wrong[prompt]])

    def draw(self, key: str, features: Sequence[str], reference: int) -> int:
        ids = self.written.ids
        agreeing = [
            x
            for x in range(len(ids))
            if len(ids[x]) == len(ids[reference])
            and all(self.labels[f][x] == self.labels[f][reference] for f in features)
        ]
        return agreeing[int(self.draws.uniform(key)[self.at] * len(agreeing))]

    def parts(self, name: str) -> tuple[dict[Writer, set[Reader]], Reader | None]:
        """Writers with the readers that hear them, or the one reader."""
        if name == "logits":
            return {}, Reader("logits")
        found: dict[Writer, set[Reader]] = {}
        writers = {str(w): w for w in self.graph.writers}
        readers = {str(r): r for r in self.graph.readers}
        for site in self.hypothesis.nodes[name].sites:
            left, _, right = site.partition("->")
            if left.endswith(".h*"):
                found |= {
                    w: set(self.graph.readers) for text, w in writers.items() if text.startswith(left[:-1])
                }
            elif left not in writers:
                return {}, readers[left]
            else:
                found.setdefault(writers[left], set()).update(
                    [readers[right]] if right else self.graph.readers
                )
        return found, None

    def scrub(self, name: str, path: str, reference: int) -> dict[Writer | Reader, Tensor]:
        self.evaluated += 1
        own, whole = self.parts(name)
        inputs = self.hypothesis.inputs if name == "logits" else self.hypothesis.nodes[name].inputs
        if name != "logits" and not inputs:
            if whole is not None:
                return {whole: self.heard_on(whole, reference)}
            return {w: self.written.value_on(w, reference) for w in own}
        random = self.draw(f"{path}|random", (), self.at[1])
        done: dict[Writer | Reader, Tensor] = {}
        streams: dict[Reader, Tensor] = {}
        for reader in [whole] if whole is not None else self.graph.readers:
            for w in own:
                if w not in done and w.kind != "input" and self.complete(w, streams):
                    done[w] = self.written.live(w, streams, reference)
            if reader != whole and not any(reader in self.readers_of(w) for w in own):
                continue
            streams[reader] = self.input(reader, path, inputs, own, done, random, reference)
        if whole is not None:
            return {whole: streams[whole]}
        return done

    def input(
        self,
        reader: Reader,
        path: str,
        inputs: Sequence[str],
        own: Mapping[Writer, Any],
        done: Mapping[Any, Tensor],
        random: int,
        reference: int,
    ) -> Tensor:
        parts: dict[Writer, Tensor] = {}
        for w in self.graph.writers[: self.graph.before(reader)]:
            x = self.draw(f"{path}|{w}->{reader}|random", (), self.at[1]) if self.separate else random
            parts[w] = self.written.value_on(w, x)
        for name in inputs:
            theirs, whole = self.parts(name)
            if whole is not None and whole != reader:
                continue
            heard = [w for w in theirs if reader in theirs[w] and w in parts]
            if not heard and whole is None:
                continue
            key = f"{path}/{name}@{reader}"
            x = self.draw(key, self.hypothesis.nodes[name].depends_on, reference)
            values = self.scrub(name, key, x)
            if whole is not None:
                return values[whole]
            parts |= {w: values[w] for w in heard}
        parts |= {w: done[w] for w in own if w in done and w in parts}
        return self.written.sum(reader, parts)

    def heard_on(self, reader: Reader, prompt: int) -> Tensor:
        before = self.graph.writers[: self.graph.before(reader)]
        return self.written.sum(reader, {w: self.written.value_on(w, prompt) for w in before})

    def readers_of(self, w: Writer) -> list[Reader]:
        if w.kind == "mlp":
            return [Reader("mlp", w.layer)]
        if w.kind == "input":
            return []
        kv = w.head * self.graph.n_kv_heads // self.graph.n_heads
        return [Reader("q", w.layer, w.head), Reader("k", w.layer, kv), Reader("v", w.layer, kv)]

    def complete(self, w: Writer, streams: Mapping[Reader, Tensor]) -> bool:
        return all(r in streams for r in self.readers_of(w))
