"""Task generators for any Hugging Face tokenizer.

Each keeps the items that the tokenizer can represent (answers of one token in context, clean and corrupt
prompts of equal token length) and reports what was dropped and why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from mech_interp.datasets.lexicon import Split
from mech_interp.datasets.pairs import TaskSet
from mech_interp.datasets.tasks.agreement import agreement
from mech_interp.datasets.tasks.facts import facts
from mech_interp.datasets.tasks.greater_than import greater_than
from mech_interp.datasets.tasks.induction import induction
from mech_interp.datasets.tasks.ioi import ioi
from mech_interp.datasets.tasks.sentiment import sentiment
from mech_interp.datasets.tokens import Tokenizer
from mech_interp.errors import InputError, nearest

TASKS: Mapping[str, Callable[..., TaskSet]] = MappingProxyType(
    {
        "ioi": ioi,
        "facts": facts,
        "greater_than": greater_than,
        "induction": induction,
        "sentiment": sentiment,
        "agreement": agreement,
    }
)


def task(
    name: str, tokenizer: Tokenizer, n: int = 64, seed: int = 0, split: Split = "test", **options: Any
) -> TaskSet:
    """At most `n` prompt pairs of a task by name; `options` are those of its generator.

    The same name, tokenizer, n, seed, split and options give the same pairs. `len` of the result may be
    below n where the task is finite; `summary()` says what was dropped.
    """
    if name not in TASKS:
        known = ", ".join(TASKS)
        raise InputError(f"Unknown task {name!r}.", nearest(name, TASKS) or f"Known: {known}.")
    try:
        return TASKS[name](tokenizer, n, seed, split, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        wrong = str(error).rsplit("'", 2)[-2]
        allowed = list((TASKS[name].__kwdefaults__ or {}).keys())
        raise InputError(
            f"The task {name!r} has no option {wrong!r}.", f"Its options are: {', '.join(allowed)}."
        ) from error
