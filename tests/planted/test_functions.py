"""What planted models compute, against each task written out anew here, by the library's own forward."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from fractions import Fraction

import pytest
import torch

from mech_interp import planted
from mech_interp.planted import Planted

Words = list[str]
Cases = Iterator[tuple[Words, dict[int, str]]]
LETTERS = list("abcdefghijklmnopqrst")


def copying() -> Cases:
    generator = random.Random(0)
    for _ in range(150):
        words = ["<bos>", *generator.choices(LETTERS, k=generator.randint(1, 9))]
        yield words, {i: words[i - 1] for i in range(1, len(words))}


def inducing() -> Cases:
    generator = random.Random(1)
    for _ in range(150):
        letters = generator.sample(LETTERS, generator.randint(3, 8))
        at = generator.randrange(len(letters) - 1)
        yield ["<bos>", *letters, letters[at]], {len(letters) + 1: letters[at + 1]}


def duplicates() -> Cases:
    generator = random.Random(2)
    for _ in range(150):
        words = ["<bos>", *generator.choices(LETTERS[:12], k=9)]
        yield words, {i: "seen" if words[i] in words[:i] else "new" for i in range(len(words))}


def reversing() -> Cases:
    """Every word of up to three letters over three, and some longer ones, each with its own continuation."""
    generator = random.Random(3)
    texts = [list(t) for n in (1, 2, 3) for t in itertools.product("abc", repeat=n)]
    texts += [generator.choices(LETTERS[:12], k=n) for n in (4, 5) for _ in range(60)]
    for text in texts:
        back = list(reversed(text))
        yield ["<bos>", *text, "<sep>", *back], {len(text) + 1 + i: word for i, word in enumerate(back)}


def proportions() -> Cases:
    """Every pattern of six tokens."""
    for pattern in itertools.product("xa", repeat=6):
        others = itertools.cycle("abcd")
        text = [one if one == "x" else next(others) for one in pattern]
        yield ["<bos>", *text], {n: str(Fraction(pattern[:n].count("x"), n)) for n in range(1, 7)}


def givers() -> Cases:
    """Every pair of names, either of them giving."""
    names = ("Ann", "Bob", "Cy", "Dee", "Eve", "Flo", "Gus", "Hal")
    rest = itertools.cycle(
        itertools.product(("then", "so", "later"), ("home", "out", "away"), ("it", "milk"))
    )
    for (first, second), giver in itertools.product(itertools.permutations(names, 2), (0, 1)):
        opening, place, thing = next(rest)
        words = f"<bos> {opening} {first} and {second} went {place} {(first, second)[giver]} gave {thing} to"
        yield words.split(), {10: (second, first)[giver]}


def gates(joined: Callable[[list[bool]], bool]) -> Callable[[], Cases]:
    def cases() -> Cases:
        generator = random.Random(4)
        for bits in itertools.product((False, True), repeat=2):
            for _ in range(20):
                words = ["<bos>", *generator.choices(("um", "er", "hm", "well"), k=7)]
                for at, bit in zip((2, 4), bits, strict=True):
                    words[at] = generator.choice(("yes", "true", "on") if bit else ("no", "false", "off"))
                yield words, dict.fromkeys((4, 5, 6, 7), "yes" if joined(list(bits)) else "no")

    return cases


TASKS: dict[str, Callable[[], Cases]] = {
    "previous-token-copy": copying,
    "induction": inducing,
    "duplicate-token": duplicates,
    "reverse": reversing,
    "proportion": proportions,
    "ioi": givers,
    "or-gate": gates(any),
    "and-gate": gates(all),
}


def names_of(made: Planted) -> tuple[str, ...]:
    return made.outputs or made.words


def test_every_model_has_a_task_here() -> None:
    assert set(TASKS) == set(planted.models()) - set(planted.models("null"))


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize("name", TASKS)
def test_the_function_is_computed(name: str, gap: float) -> None:
    made = planted.build(name, gap, seed=5)
    cases = list(TASKS[name]())
    assert len(cases) >= 60
    checked = 0
    for words, right in cases:
        ids = [made.words.index(word) for word in words]
        with torch.no_grad():
            found = made.module(torch.tensor([ids])).logits[0].argmax(-1).tolist()
        assert {i: names_of(made)[found[i]] for i in right} == right
        checked += len(right)
    assert checked >= len(cases)


@pytest.mark.parametrize("name", TASKS)
def test_the_stated_function_is_the_task(name: str) -> None:
    made = planted.build(name)
    assert made.function is not None
    for words, right in TASKS[name]():
        stated = made.function([made.words.index(word) for word in words])
        assert len(stated) == len(words)
        assert {i: names_of(made)[stated[i]] for i in right} == right  # type: ignore[index]


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize("name", TASKS)
def test_pairs_have_the_right_answers(name: str, gap: float) -> None:
    made = planted.build(name, gap)
    assert made.function is not None
    pairs = made.pairs(60, seed=3)
    assert pairs.clean.lengths == pairs.corrupt.lengths
    for i in range(len(pairs)):
        clean, corrupt = pairs.clean.row(i), pairs.corrupt.row(i)
        assert made.function(clean)[-1] == pairs.answer[i] != pairs.wrong[i]
        if name != "ioi":  # whose corrupt prompts have no answer
            assert made.function(corrupt)[-1] == pairs.wrong[i]
        with torch.no_grad():
            logits = made.module(torch.tensor([clean])).logits[0, -1]
        assert int(logits.argmax()) == pairs.answer[i]


@pytest.mark.parametrize("gap", planted.GAPS)
@pytest.mark.parametrize("name", [name for name in TASKS if name != "proportion"])
def test_attention_prefers_by_the_gap(name: str, gap: float) -> None:
    """Best score less second best at the last position; heads that read what soft heads wrote lose some."""
    made = planted.build(name, gap, dtype=torch.float64)
    pairs, model = made.pairs(20), made.open()
    sites = [f"blocks.{layer}.attn.hook_attn_scores" for layer in range(made.graph.n_layers)]
    seen = model.forward(pairs.clean, capture=sites).activations
    for head in (head for heads in made.groups.values() for head in heads):
        layer, number = (int(part[1:]) for part in head.split("."))
        (scores,) = (value for site, value in seen.items() if site.layer == layer)
        for pair, length in enumerate(pairs.clean.lengths):
            best, second = scores[pair, number, length - 1, :length].topk(2).values.tolist()
            lost = 1e-9 if layer == 0 or gap > 10 else 0.3
            assert gap - lost <= best - second <= gap + 1e-9


@pytest.mark.parametrize("gap", planted.GAPS)
def test_proportion_attends_alike_to_all_but_the_start(gap: float) -> None:
    made = planted.build("proportion", gap, dtype=torch.float64)
    pairs, number = made.pairs(10), int(made.groups["mean"][0].partition("h")[2])
    seen = made.open().forward(pairs.clean, capture=["blocks.1.attn.hook_attn_scores"]).activations
    (scores,) = seen.values()
    for pair, length in enumerate(pairs.clean.lengths):
        row = scores[pair, number, length - 1, :length]
        assert torch.allclose(
            row[1:] - row[0], torch.full((length - 1,), gap, dtype=torch.float64), atol=1e-9
        )
