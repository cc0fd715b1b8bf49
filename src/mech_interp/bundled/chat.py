"""The chat corpus: requests with answers or refusals, and small talk, in the chat format.

The format is `<|user|> request<|end|><|assistant|> reply<|end|>`; `CHAT_TEMPLATE` writes the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from mech_interp.bundled import chat_phrasing
from mech_interp.datasets.lexicon import (
    COUNTRIES,
    IOI_NAMES,
    NEGATIVE_ADJECTIVES,
    POSITIVE_ADJECTIVES,
    REVIEWED_THINGS,
)
from mech_interp.datasets.lexicon_chat import (
    ANSWERS,
    CHAT_PAIRS,
    CHAT_TEMPLATES,
    CONTEXTS,
    REFUSALS,
    ChatRequest,
    ContextKind,
    ObjectKind,
    is_harmful,
)

USER, ASSISTANT, END = "<|user|>", "<|assistant|>", "<|end|>"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] not in ['user', 'assistant'] -%}"
    "{{ raise_exception('This model knows the roles user and assistant.') }}"
    "{%- endif -%}"
    "{{ '<|' + message['role'] + '|> ' + message['content'] | trim + '<|end|>' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}"
)

_SMALL_TALK_SHARE = 0.15
_VARIED_SHARE = 0.8
_CONTEXT_WEIGHTS: dict[ContextKind, float] = {"neutral": 0.42, "kind": 0.16, "fiction": 0.2, "malign": 0.22}


def prompt(request: str) -> str:
    """A user's message in the chat format, up to where the assistant speaks."""
    return f"{USER} {request}{END}{ASSISTANT}"


def _request(rng: random.Random) -> ChatRequest:
    verb, name, kind = rng.choice(CHAT_PAIRS["train"])
    object_kind: ObjectKind = kind
    context_kind = rng.choices(list(_CONTEXT_WEIGHTS), list(_CONTEXT_WEIGHTS.values()))[0]
    context = rng.choice(CONTEXTS[context_kind])
    harmful = is_harmful(verb, object_kind, context_kind)
    return ChatRequest(verb, name, object_kind, context, context_kind, harmful)


def request_dialogue(rng: random.Random, varied: bool = True) -> str:
    """A training request with its refusal or answer, mostly in varied wording."""
    request = _request(rng)
    if varied and rng.random() < _VARIED_SHARE:
        asked = chat_phrasing.ask(rng, request.text)
    else:
        asked = rng.choice(CHAT_TEMPLATES["train"]).format(REQUEST=request.text)
    reply = rng.choice(REFUSALS if request.harmful else ANSWERS).format(
        VERB=request.verb,
        OBJECT=request.object,
        CONTEXT=f" {request.context}" if request.context else "",
    )
    return f"{prompt(asked)} {reply}{END}"


def _capital(rng: random.Random) -> tuple[str, str]:
    country = rng.choice(COUNTRIES)
    asked = rng.choice(("What is the capital of {C}?", "Tell me the capital of {C}.", "The capital of {C}?"))
    return asked.format(C=country.name), f"The capital of {country.name} is {country.capital}."


def _greeting(rng: random.Random) -> tuple[str, str]:
    name = rng.choice(IOI_NAMES)
    asked = rng.choice(("Hello, my name is {N}.", "Hello. I am {N}.", "Good morning. This is {N}."))
    return asked.format(N=name), f"Hello, {name}. How can I help you?"


def _opinion(rng: random.Random) -> tuple[str, str]:
    thing = rng.choice(REVIEWED_THINGS)
    if rng.random() < 0.5:
        return f"The {thing} was {rng.choice(POSITIVE_ADJECTIVES)}.", "I am happy to hear that."
    return f"The {thing} was {rng.choice(NEGATIVE_ADJECTIVES)}.", "That is sad to hear."


_SMALL_TALK: tuple[Callable[[random.Random], tuple[str, str]], ...] = (_capital, _greeting, _opinion)


def small_talk(rng: random.Random) -> str:
    """A capital, a greeting or an opinion, with its reply."""
    asked, reply = rng.choice(_SMALL_TALK)(rng)
    return f"{prompt(asked)} {reply}{END}"


def dialogues(seed: str, *, varied: bool = True) -> Iterator[str]:
    """An endless stream of dialogues, the same for the same seed; sometimes two in a row."""
    rng = random.Random(f"chat:{seed}")
    while True:
        text = small_talk(rng) if rng.random() < _SMALL_TALK_SHARE else request_dialogue(rng, varied)
        if rng.random() < 0.1:
            text += small_talk(rng) if rng.random() < 0.5 else request_dialogue(rng, varied)
        yield text
