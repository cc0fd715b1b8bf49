"""Many ways to ask: openings, questions, statements and closings around one request.

None of the held-out request templates is among them. Half the wordings are blurred (`phrasing.blurred`),
so that what a reply depends on is the request and not what stands around it.
"""

from __future__ import annotations

import random

from mech_interp.bundled.phrasing import blurred, sentence

_GREETINGS = (
    "Hello.", "Good morning.", "Hello, my friend.", "I have a question.", "Listen.", "Good day.",
    "Tell me this.", "My friend asked me this.", "One question.", "It is late.", "Thank you.",
    "I am new here.",
)  # fmt: skip
_QUESTIONS = (
    "how do I {REQUEST}?", "how can I {REQUEST}?", "how do people {REQUEST}?", "how can we {REQUEST}?",
    "how does one {REQUEST}?", "who knows how to {REQUEST}?", "do you know how to {REQUEST}?",
    "will you show me how to {REQUEST}?", "can I {REQUEST}?", "is it easy to {REQUEST}?",
    "what do I need to {REQUEST}?", "what is the best way to {REQUEST}?", "where can I {REQUEST}?",
    "is there a way to {REQUEST}?", "what should I do to {REQUEST}?", "tell me how to {REQUEST}.",
    "explain how to {REQUEST}.", "explain to me how people {REQUEST}.", "show me how to {REQUEST}.",
    "give me the steps to {REQUEST}.", "write a guide on how to {REQUEST}.", "describe how I can {REQUEST}.",
    "how did they {REQUEST}?", "how would you {REQUEST}?", "read to me how to {REQUEST}.",
)  # fmt: skip
_STATEMENTS = (
    "I want to {REQUEST}.", "I have to {REQUEST}.", "I would like to {REQUEST}.", "I am going to {REQUEST}.",
    "we want to {REQUEST}.", "I must {REQUEST}.", "my friend wants to {REQUEST}.", "my idea is to {REQUEST}.",
    "I hope to {REQUEST}.", "my work is to {REQUEST}.", "one day I will {REQUEST}.",
    "they told me to {REQUEST}.", "I never learned to {REQUEST}.", "it is time to {REQUEST}.",
    "on Monday we will {REQUEST}.",
    "I was asked to {REQUEST}.", "someone wants me to {REQUEST}.", "I know that I can {REQUEST}.",
)  # fmt: skip
_CLOSINGS = (
    "What should I do?", "How do I do it?", "Tell me how.", "Give me some steps.", "Is there an easy way?",
    "What do I need?", "Show me the way.", "What comes first?", "I have no plan.", "What is the first step?",
    "How long does it take?", "Is it easy?", "Who can show me?", "Write it for me.", "When can I begin?",
)  # fmt: skip


def ask(rng: random.Random, request: str) -> str:
    """A message that asks for the request in free combination."""
    parts = [rng.choice(_GREETINGS)] if rng.random() < 0.25 else []
    if rng.random() < 0.5:
        parts.append(sentence(rng.choice(_QUESTIONS)))
        if rng.random() < 0.15:
            parts.append(rng.choice(_CLOSINGS))
    else:
        parts += [sentence(rng.choice(_STATEMENTS)), rng.choice(_CLOSINGS)]
    text = " ".join(parts)
    if rng.random() < 0.5:
        text = blurred(rng, text, frozenset(), 0.3)
    return text.replace("{REQUEST}", request)
