"""How a small model that others trained sorts six letters: found on half the inputs, confirmed on the rest.

A prompt is six letters and those already written in order; the answer is the next one. Attention was looked
at on all 729 inputs: heads of layer 0 go from the last position to the letters, to A at the first step and to
C at the last, so that what they bring counts letters against the step. On the first 365, with every part a
function of the step and of how many A and B there are, and queries of layer 0 functions of the step alone,
0.99 is recovered; with the number of A alone 0.57; without the heads of layer 1 0.62. The bounds below, for
the other half, were set after that.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pytest

from mech_interp.backends.metrics import LogitDifference
from mech_interp.methods.circuits.scrubbing import causal_scrubbing
from mech_interp.methods.circuits.scrubbing_hypothesis import Hypothesis, Node
from mech_interp.methods.circuits.scrubbing_result import ScrubbingResult
from mech_interp.statistics import Estimate

LETTERS = "ABC"
LOOKED_AT = 365
COUNTS = ("a", "b")


@pytest.fixture(scope="module")
def sorter(real_checkpoints: Path) -> Any:
    from mech_interp.backends.loading import load_model

    folder = real_checkpoints / "llmviz-nano-sort"
    if not folder.is_dir():
        pytest.skip("llmviz-nano-sort is not on this machine")
    return load_model(str(folder), device="cpu", dtype="float32")


def prompts() -> tuple[list[str], list[tuple[int, int]], dict[str, list[Hashable]]]:
    """Prompts of the second half, their answers and foils, their features. A foil is what one other letter
    in the input would have made the answer, the letters already written staying the same."""
    draw, texts, ends = random.Random(0), [], []
    features: dict[str, list[Hashable]] = {"step": [], "word": [], "a": [], "b": []}
    words = ["".join(letters) for letters in itertools.product(LETTERS, repeat=6)]
    draw.shuffle(words)
    for word, step in itertools.product(words[LOOKED_AT:], range(6)):
        right = sorted(word)
        flipped = [sorted(word[:i] + letter + word[i + 1 :]) for i in range(6) for letter in LETTERS]
        foils = [
            other[step] for other in flipped if other[:step] == right[:step] and other[step] != right[step]
        ]
        if foils:
            texts.append(word + "".join(right[:step]))
            ends.append((LETTERS.index(right[step]), LETTERS.index(draw.choice(foils))))
            facts = {"step": step, "word": word, "a": word.count("A"), "b": word.count("B")}
            for name, value in facts.items():
                features[name].append(value)
    return texts, ends, features


def hypothesis(features: tuple[str, ...], *, without: str = "", tuned: bool = False) -> Hypothesis:
    """Every part a function of `features`; with `tuned`, queries of layer 0 of nothing but the step."""
    nodes = {name: Node((f"a{name[-1]}.h*",), features) for name in ("seen0", "seen1", "seen2")}
    nodes["first"] = Node(("m0",), features)
    nodes.pop(without, None)
    early = tuple(name for name in ("seen0", "first", "seen1") if name in nodes)
    late = tuple(name for name in ("seen2",) if name in nodes)
    nodes["compare"] = Node(("m1",), features, early)
    nodes["decide"] = Node(("m2",), features, ("compare", *early, *late))
    if tuned:
        readers = {f"{kind}{head}": f"a0.h{head}<{kind}>" for head in range(3) for kind in "qkv"}
        for name, reader in readers.items():
            nodes[name] = Node((reader,), () if name[0] == "q" else ("word",))
        nodes["seen0"] = Node(("a0.h*",), features, tuple(readers))
    return Hypothesis(("decide", "compare", *late), nodes)


@pytest.fixture(scope="module")
def scrub(sorter: Any) -> Any:
    texts, ends, features = prompts()
    metric = LogitDifference(tuple(right for right, _ in ends), tuple(wrong for _, wrong in ends))
    words = [str(word) for word in features["word"]]

    def run(stated: Hypothesis, *, control: bool = False) -> ScrubbingResult:
        tokens = sorter.tokens(texts)
        return causal_scrubbing(
            sorter,
            tokens,
            metric,
            stated,
            features,
            groups=words,
            samples=2,
            within=["step"],
            control=control,
        )

    return run


def bounds(found: Estimate | None) -> tuple[float, float]:
    assert found is not None
    assert found.interval is not None
    return found.interval


def test_it_counts_with_queries_tuned_by_the_step(scrub: Any) -> None:
    found = scrub(hypothesis(COUNTS, tuned=True), control=True)
    assert bounds(found.recovered)[0] > 0.9
    assert bounds(found.control)[1] < 0.3


@pytest.mark.parametrize(
    ("stated", "most"),
    [(hypothesis(("a",)), 0.7), (hypothesis(COUNTS, without="seen1"), 0.8)],
    ids=["only the number of A", "without the heads of layer 1"],
)
def test_less_explains_less(scrub: Any, stated: Hypothesis, most: float) -> None:
    assert bounds(scrub(stated).recovered)[1] < most


def test_attention_moves_from_a_to_c_as_letters_are_written(sorter: Any) -> None:
    """What the hypothesis calls tuning, seen in the patterns: head 2 of layer 0, from the last position."""
    words = [[*letters, *sorted(letters)][:11] for letters in itertools.product(range(3), repeat=6)]
    rows = [row for row in words if {0, 1, 2} <= set(row[:6])]
    pattern = sorter.forward(rows, capture=["pattern.0"], logits="none").activations["pattern.0"][:, 2]
    share = {}
    for step in (0, 5):
        for letter in range(3):
            each = [
                float(p[5 + step, :6][[x == letter for x in row[:6]]].mean())
                for p, row in zip(pattern, rows, strict=True)
            ]
            share[step, letter] = sum(each) / len(each)
    assert share[0, 0] > share[0, 1] > share[0, 2]
    assert share[5, 2] > share[5, 1] > share[5, 0]
