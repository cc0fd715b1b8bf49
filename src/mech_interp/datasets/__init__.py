"""Data: the small world's words and templates, prompt pairs, task generators, corpora."""

from __future__ import annotations

from mech_interp.datasets.load import load_pairs
from mech_interp.datasets.pairs import Drop, PromptPair, TaskSet
from mech_interp.datasets.tasks import TASKS, task
from mech_interp.datasets.tokens import answer_id, token_span

__all__ = ["TASKS", "Drop", "PromptPair", "TaskSet", "answer_id", "load_pairs", "task", "token_span"]
