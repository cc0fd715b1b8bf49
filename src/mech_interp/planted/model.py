"""A planted model with its prompts and the truth about it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mech_interp.backends.metrics import LogitDifference
from mech_interp.backends.tokens import Tokens
from mech_interp.errors import InputError
from mech_interp.graph import Circuit, CircuitGraph

if TYPE_CHECKING:
    from mech_interp.backends.huggingface.model import HuggingFaceModel
    from mech_interp.planted.registry import Kind

Ablation = Literal["corrupt", "zero"]


class Pair(NamedTuple):
    """A clean and a corrupt prompt of equal length, and the logits that tell them apart."""

    clean: list[int]
    corrupt: list[int]
    answer: int
    wrong: int


@dataclass(frozen=True)
class Pairs:
    """Prompt pairs as token ids.

    Attributes:
        clean, corrupt: pair by pair equally long.
        answer: the right output at the last position of each clean prompt.
        wrong: the output it is compared with: for circuits, the right one of the corrupt prompt.
    """

    clean: Tokens
    corrupt: Tokens
    answer: tuple[int, ...]
    wrong: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.answer)

    @property
    def metric(self) -> LogitDifference:
        """Logit of the answer less that of the wrong one, at the last position, in nats."""
        return LogitDifference(self.answer, self.wrong)


@dataclass(frozen=True)
class Planted:
    """A transformer set by hand.

    Attributes:
        name, gap, seed: as in `planted.build`.
        kind: ``circuit``, ``gate`` or ``null``.
        module: `PlantedForCausalLM`, which saves and loads like any checkpoint.
        mechanism: how it does it, in a sentence.
        words: what each token id stands for.
        outputs: what each logit stands for.
        ablation: what the truth is first of all defined under.
        truths: by ablation, the edges (``a0.h0->a1.h0<k>``) that the answer needs. Under ``zero`` an
            edge that carries the same on clean and corrupt prompts, such as a position, counts; under
            ``corrupt`` it does not. Empty for nulls.
        groups: heads by function.
        draw: one pair from a generator of random numbers.
        function: the right output at every position of a prompt, None where there is none; None for
            nulls, which compute nothing.
    """

    name: str
    gap: float
    seed: int
    kind: Kind
    module: Any
    mechanism: str
    words: tuple[str, ...]
    draw: Callable[[random.Random], Pair]
    outputs: tuple[str, ...] = ()
    ablation: Ablation = "corrupt"
    truths: Mapping[Ablation, tuple[str, ...]] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    function: Callable[[Sequence[int]], list[int | None]] | None = None

    @cached_property
    def graph(self) -> CircuitGraph:
        """Its circuit graph."""
        config = self.module.config
        heads = config.num_attention_heads
        return CircuitGraph(config.num_hidden_layers, heads, heads, mlps=bool(config.intermediate_size))

    @property
    def edges(self) -> tuple[str, ...]:
        """The true edges under `ablation`."""
        return self.truths.get(self.ablation, ())

    @property
    def nodes(self) -> tuple[str, ...]:
        """The true writers under `ablation`: the embedding, heads and MLPs with a true edge leaving them."""
        return tuple(str(writer) for writer in self.truth().nodes())

    def truth(self, ablation: Ablation | None = None) -> Circuit:
        """The true circuit under an ablation, `self.ablation` by default; empty for nulls.

        Raises:
            InputError: for an ablation without a stated truth.
        """
        wanted = ablation or self.ablation
        if self.truths and wanted not in self.truths:
            raise InputError(
                f"{self.name} has no stated truth under {wanted} ablation.",
                f"It is stated for: {', '.join(self.truths)}.",
            )
        return Circuit.named(self.graph, self.truths.get(wanted, ()))

    def pairs(self, n: int, seed: int = 0) -> Pairs:
        """`n` random pairs; the same seed gives the same ones.

        Raises:
            InputError: for fewer than one.
        """
        if n < 1:
            raise InputError(f"{n} pairs were asked for.", "Ask for one or more.")
        generator = random.Random(f"{self.name} {seed}")
        found = [self.draw(generator) for _ in range(n)]
        return Pairs(
            Tokens.from_lists([pair.clean for pair in found]),
            Tokens.from_lists([pair.corrupt for pair in found]),
            tuple(pair.answer for pair in found),
            tuple(pair.wrong for pair in found),
        )

    def open(self, *, check: bool = True) -> HuggingFaceModel:
        """The model behind the protocol, in the default engine, identities checked."""
        from mech_interp.backends.huggingface.opening import open_engine

        return open_engine(self.module, self.tokenizer(), name=f"{self.name}-{self.gap:g}", check=check)

    def tokenizer(self) -> Any:
        """A tokenizer that reads words parted by spaces; it adds nothing of its own."""
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from tokenizers.pre_tokenizers import WhitespaceSplit
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(
            WordLevel({word: i for i, word in enumerate(self.words)}, unk_token=self.words[0])
        )
        backend.pre_tokenizer = WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder that `load_model` opens, with the truth beside it in planted.json."""
        target = Path(folder)
        self.module.save_pretrained(target)
        self.tokenizer().save_pretrained(target)
        facts = {
            "name": self.name,
            "gap": self.gap,
            "seed": self.seed,
            "kind": self.kind,
            "mechanism": self.mechanism,
            "ablation": self.ablation,
            "truths": {key: list(edges) for key, edges in self.truths.items()},
            "groups": {key: list(heads) for key, heads in self.groups.items()},
            "words": list(self.words),
            "outputs": list(self.outputs or self.words),
        }
        text = json.dumps(facts, indent=2, ensure_ascii=False) + "\n"
        (target / "planted.json").write_text(text, encoding="utf-8")
