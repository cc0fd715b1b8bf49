"""Edge attribution: in units of a forward, beside the peer, and how its cost grows."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from compare.circuit_setting import NO_PEER, Setting, best_of, judged, opened, timed
from compare.sides import TransformerLens

FORWARDS, TIMES = 3.6, 3.0
CLOSE = 1e-4


def in_forwards(setting: Setting, repeats: int) -> dict[str, Any]:
    """EAP per batch in units of one forward; equal to the exact engine's derivative on one prompt."""
    sides = {"forward": setting.forward, "eap": setting.scores, "forward_backward": setting.forward_backward}
    times, values = best_of(sides, repeats)
    difference = _against_masks(setting, values["eap"])
    unit = times["forward"]
    found: dict[str, Any] = {
        "workload": setting.work.name,
        "seconds": {name: time.record() for name, time in times.items()},
        "difference": difference,
        "tolerance": CLOSE,
        "bar": FORWARDS,
    }
    equal = difference <= CLOSE
    found["forwards"] = times["eap"].wall / unit.wall if equal else None
    found["forwards_cpu"] = times["eap"].cpu / unit.cpu if equal else None
    found["forward_backward_cpu"] = times["forward_backward"].cpu / unit.cpu
    found["met"] = judged(found["forwards_cpu"], FORWARDS, at_most=True)
    return found


def _against_masks(setting: Setting, scores: Tensor) -> float:
    """Largest difference on one prompt, as a share of its largest score, from the gradient of the edge
    engine's masks: every reader's input is built edge by edge there."""
    engine = setting.engine()
    everything = torch.tensor(engine.graph.possible, dtype=scores.dtype)
    masks = everything[None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(engine.evaluate(masks, setting.metric, prompts=[0]).sum(), masks)
    expected = -slope[0] * everything
    return float((scores[0] - expected).abs().max() / expected.abs().max())


def against_peer(
    setting: Setting, peer: TransformerLens | None, repeats: int, prompts: int
) -> dict[str, Any]:
    """Per prompt, in the peer's convention (gradient at the corrupt run); the peer runs some prompts."""
    if peer is None:
        return {"reason": NO_PEER}
    ours, values = best_of({"ours": lambda: setting.scores(exchanged=True)}, repeats)
    seconds, processor, theirs = [], [], []
    for prompt in range(prompts):
        wall, cpu, scores = timed(partial(_peer_scores, peer, setting, prompt))
        seconds.append(wall)
        processor.append(cpu)
        theirs.append(_as_matrix(scores, setting))
    mine, other = values["ours"][:prompts].double(), torch.stack(theirs)
    size = float(other.abs().max())
    inner = float((mine - other)[:, 1:].abs().max()) / size
    embedding = float((mine - other)[:, 0].abs().max()) / size
    equal = inner <= CLOSE
    found: dict[str, Any] = {
        "edges": int(setting.engine().graph.n_edges),
        "peer_prompts": prompts,
        "seconds_per_prompt": {"ours": ours["ours"].wall / setting.n_prompts, "peer": min(seconds)},
        "cpu_per_prompt": {"ours": ours["ours"].cpu / setting.n_prompts, "peer": min(processor)},
        "difference": inner,
        "difference_embedding": embedding,
        "tolerance": CLOSE,
        "bar": TIMES,
    }
    for key in ("seconds", "cpu"):
        per = found[f"{key}_per_prompt"]
        found["ratio" if key == "seconds" else "ratio_cpu"] = per["peer"] / per["ours"] if equal else None
    found["met"] = judged(found["ratio_cpu"], TIMES, at_most=False)
    return found


def _peer_scores(peer: TransformerLens, setting: Setting, prompt: int) -> dict[Any, float]:
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    right, wrong = setting.work.answers[prompt].tolist()

    def metric(logits: Tensor) -> Tensor:
        return logits[0, -1, right] - logits[0, -1, wrong]

    one = slice(prompt, prompt + 1)
    found: dict[Any, float] = attribution_patch(
        peer.model,
        setting.work.clean[one],
        setting.work.corrupt[one],
        metric,
        EdgeAttributionConfig(granularity="edge"),
    ).edge_scores
    return found


def _as_matrix(scores: dict[Any, float], setting: Setting) -> Tensor:
    """The peer's scores summed over positions, [writer, reader]."""
    graph = setting.engine().graph
    out = torch.zeros(len(graph.writers), len(graph.readers), dtype=torch.float64)
    for (writer, reader), score in scores.items():
        out[_writer(graph, writer), _reader(graph, reader)] += score
    return out


def _writer(graph: Any, node: Any) -> int:
    names = {"embed": "input", "attn_head_out": f"a{node.layer}.h{node.head}", "mlp_out": f"m{node.layer}"}
    number: int = graph.writer(names[node.kind])
    return number


def _reader(graph: Any, node: Any) -> int:
    kind = node.kind.removesuffix("_input")
    names = {"mlp_in": f"m{node.layer}", "logits": "logits"}
    number: int = graph.reader(names.get(node.kind, f"a{node.layer}.h{node.head}<{kind}>"))
    return number


def growth(whole: Setting, repeats: int) -> list[dict[str, Any]]:
    """Seconds of EAP and of a forward by layers and by prompts."""
    shape, work, most = whole.shape, whole.work, whole.n_prompts
    settings = [opened(replace(shape, n_layer=n), work.name, most) for n in (3, 6) if n < shape.n_layer]
    settings += [whole, *(whole.on(work, n) for n in (1, 2, 4))]
    rows = []
    for setting in settings:
        times, _ = best_of({"forward": setting.forward, "eap": setting.scores}, repeats)
        rows.append(
            {
                "layers": setting.shape.n_layer,
                "prompts": setting.n_prompts,
                "edges": int(setting.engine().graph.n_edges),
                "eap_cpu": times["eap"].cpu,
                "forward_cpu": times["forward"].cpu,
                "forwards_cpu": times["eap"].cpu / times["forward"].cpu,
            }
        )
    return rows
