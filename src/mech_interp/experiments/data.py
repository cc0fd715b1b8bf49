"""How a spec names its data: a task, a file of pairs, or prompts written in the spec itself."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from mech_interp.config.problems import problem
from mech_interp.datasets.load import load_pairs
from mech_interp.datasets.pairs import PromptPair, Span, TaskSet, pair_problem
from mech_interp.datasets.tasks import task as make_task
from mech_interp.datasets.tokens import Tokenizer, answer_ids, prompt_problem
from mech_interp.errors import InputError
from mech_interp.experiments.family import FamilyParams

Need = Literal["prompt", "answer", "wrong", "corrupt"]
"""What a family asks of its data, each including the ones before: a prompt, its answer, a foil, a
counterfactual prompt."""
_ORDER: tuple[Need, ...] = ("prompt", "answer", "wrong", "corrupt")
TaskName = Literal["ioi", "facts", "greater_than", "induction", "sentiment", "agreement"]
OTHER_NAMES = {
    "clean_prompt": "clean",
    "prompt": "clean",
    "corrupted_prompt": "corrupt",
    "correct_token": "answer",
    "target": "answer",
    "incorrect_token": "wrong",
}
"""Names that other platforms use for the fields of a pair."""


def _with_other_names(schema: dict[str, Any]) -> None:
    """Let editors that check against the schema accept the other names too."""
    properties = schema["properties"]
    for other, own in OTHER_NAMES.items():
        properties[other] = {**properties[own], "description": f"The same as {own}."}
    schema["required"] = [name for name in schema.get("required", []) if name != "clean"]


class PairRecord(FamilyParams):
    """One prompt, or a pair of prompts, written in a spec or as a line of a file."""

    model_config = ConfigDict(json_schema_extra=_with_other_names)

    clean: str = Field(min_length=1, description="The prompt (also clean_prompt, prompt).")
    corrupt: str | None = Field(
        default=None, description="The same prompt with counterfactual words, equally many tokens."
    )
    answer: str | None = Field(default=None, description="Its one-token continuation, with leading space.")
    wrong: str | None = Field(default=None, description="The foil, one token with leading space.")
    answers: list[str] = Field(default_factory=list, description="Right continuations, as a set.")
    wrongs: list[str] = Field(default_factory=list, description="Wrong continuations, as a set.")
    id: str | None = Field(default=None, description="A name for the pair.")
    group: str | None = Field(default=None, description="What is resampled together; the id by default.")
    target_position: int = Field(default=-1, description="Token position where the answer is read.")
    patch_position: int | None = Field(default=None, description="Token position that is patched.")
    spans: dict[str, str | list[int]] = Field(
        default_factory=dict,
        description="Named words of the prompt: the words, or [start, stop) in characters.",
    )
    corrupt_spans: dict[str, str | list[int]] = Field(
        default_factory=dict, description="The same names in the corrupt prompt."
    )
    metadata: dict[str, Any] = Field(default_factory=dict, description="Plain facts about the pair.")

    @model_validator(mode="before")
    @classmethod
    def _one_name(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"clean": data}
        if not isinstance(data, Mapping):
            return data
        out: dict[str, Any] = {}
        for key, value in data.items():
            own = OTHER_NAMES.get(str(key), str(key))
            if own in out:
                raise ValueError(f"{own} is given twice, once as {key}")
            out[own] = value
        return out

    def pair(self) -> PromptPair:
        """As the methods take it; an absent answer or foil is an empty text."""
        metadata = dict(self.metadata)
        for name in ("id", "patch_position"):
            if getattr(self, name) is not None:
                metadata[name] = getattr(self, name)
        if self.target_position != -1:
            metadata["target_position"] = self.target_position
        return PromptPair(
            clean=self.clean,
            corrupt=self.corrupt,
            answer=self.answer or "",
            wrong=self.wrong or "",
            answers=tuple(self.answers),
            wrongs=tuple(self.wrongs),
            group=self.group or self.id or self.clean,
            spans=_spans(self.spans, self.clean),
            corrupt_spans=_spans(self.corrupt_spans, self.corrupt or ""),
            metadata=metadata,
        )


class DataParams(FamilyParams):
    """The parameters by which every family takes its prompts; exactly one source is given."""

    task: TaskName | None = Field(
        default=None, description="A task generator; it keeps the items that suit the model's tokenizer."
    )
    task_options: dict[str, Any] = Field(
        default_factory=dict, description="Options of the task, such as relation: capital."
    )
    n: int = Field(default=32, ge=1, le=100_000, description="Prompt pairs to draw from the task, at most.")
    split: Literal["train", "dev", "test"] = Field(
        default="test", description="Which templates and items of the task."
    )
    data_seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="Seed of the task's items; the run's own by default."
    )
    dataset_path: str | None = Field(
        default=None, min_length=1, description="A JSON-lines file of prompt pairs, one object per line."
    )
    dataset_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 that the file must have (hex)."
    )
    prompt_pairs: list[PairRecord] | None = Field(
        default=None, min_length=1, description="Prompt pairs written here."
    )
    prompts: list[str | PairRecord] | None = Field(
        default=None, min_length=1, description="Prompts, each a text or a mapping like a prompt pair."
    )

    @field_validator("prompts", mode="before")
    @classmethod
    def _whole_prompts(cls, data: Any) -> Any:
        return None if data is None or data == [] else data

    @model_validator(mode="after")
    def _one_source(self) -> DataParams:
        given = [name for name in ("task", "dataset_path", "prompt_pairs", "prompts") if getattr(self, name)]
        if len(given) != 1:
            what = f"the data are given as {' and as '.join(given)}" if given else "no data are given"
            raise ValueError(f"{what}; give one of task, dataset_path, prompt_pairs or prompts")
        if self.dataset_sha256 and not self.dataset_path:
            raise ValueError("dataset_sha256 is given without dataset_path")
        stray = [name for name in ("task_options", "n", "split", "data_seed") if self._set(name)]
        if stray and self.task is None:
            raise ValueError(f"{stray[0]} belongs to a task, and the data are given as {given[0]}")
        clash = sorted({"n", "seed", "split"} & set(self.task_options))
        if clash:
            other = "data_seed" if clash[0] == "seed" else clash[0]
            raise ValueError(f"{clash[0]} is no option of a task; write {other} beside it")
        return self

    def need(self) -> Need:
        """How much of each pair the family uses."""
        return "corrupt"

    def _set(self, name: str) -> bool:
        return bool(
            getattr(self, name) != type(self).model_fields[name].get_default(call_default_factory=True)
        )


def load_data(params: DataParams, tokenizer: Tokenizer, seed: int) -> TaskSet:
    """The prompt pairs that the parameters name, checked against the tokenizer.

    The same parameters, tokenizer and seed give the same pairs; `content_hash()` of the result is the
    data's part of the run key.

    Raises:
        InputError: for a file that cannot be read or has another hash, a task option that does not exist,
            answers of several tokens, or pairs that lack what the family needs.
    """
    if tokenizer is None:
        raise InputError("This model came without a tokenizer, so it cannot read prompts.", "Choose another.")
    if params.task is not None:
        return _from_task(params, params.task, tokenizer, seed)
    if params.dataset_path is not None:
        found = _from_file(Path(params.dataset_path).expanduser(), params.dataset_sha256)
        where = Path(params.dataset_path).name
    else:
        records = params.prompt_pairs or params.prompts or []
        pairs = [record.pair() if isinstance(record, PairRecord) else _plain(record) for record in records]
        found, where = TaskSet("prompts", tuple(pairs), source="spec"), "the spec"
    for number, pair in enumerate(found):
        reason = usable(tokenizer, pair, params.need())
        if reason:
            raise InputError(
                f"Prompt {number} of {where} ({pair.clean[:60]!r}): {reason}.",
                "Correct it, or leave it out.",
            )
    return found


def usable(tokenizer: Tokenizer, pair: PromptPair, needs: Need) -> str | None:
    """Why a pair cannot serve a family that needs so much, or None."""
    level = _ORDER.index(needs)
    for name, least in (("answer", 1), ("wrong", 2), ("corrupt", 3)):
        if level >= least and not getattr(pair, name):
            return f"it has no {'corrupt prompt' if name == 'corrupt' else name}"
    if level == 3:
        return pair_problem(tokenizer, pair)
    reason = prompt_problem(tokenizer, pair.clean)
    if reason or level == 0:
        return reason
    found = answer_ids(tokenizer, pair.clean, [pair.answer, pair.wrong][:level])
    bad = next((one for one in found if isinstance(one, str)), None)
    if bad is None and len(set(found)) < len(found):
        return f"the answer {pair.answer!r} and the wrong answer {pair.wrong!r} are the same token"
    return bad


def target_positions(pairs: Iterable[PromptPair]) -> list[int]:
    """Where the answer of each pair is read, -1 by default."""
    return [int(pair.metadata.get("target_position", -1)) for pair in pairs]


def _from_task(params: DataParams, name: str, tokenizer: Tokenizer, seed: int) -> TaskSet:
    drawn = seed if params.data_seed is None else params.data_seed
    try:
        return make_task(name, tokenizer, params.n, drawn, params.split, **params.task_options)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(
            f"The options {params.task_options} of the task {name!r} do not read: {error}.",
            "Correct task_options.",
        ) from error


def _from_file(path: Path, sha256: str | None) -> TaskSet:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"The dataset {str(path)!r} cannot be read: {error.strerror or error}.", "Check dataset_path."
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise InputError(
            f"The dataset {path.name} has SHA-256 {found}, and the spec expects {sha256}.",
            "Restore the file, or correct dataset_sha256.",
        )
    records = _records(path, data)
    if records is None:
        return load_pairs(path)
    pairs = []
    for number, record in records:
        try:
            pairs.append(PairRecord.model_validate(record).pair())
        except ValidationError as error:
            named = problem(error, PairRecord, record)
            raise InputError(f"Line {number} of {path.name}: {named.message}", named.hint) from None
        except InputError as error:
            raise InputError(f"Line {number} of {path.name}: {error.message}", error.hint) from None
    return TaskSet(path.stem, tuple(pairs), source=path.name)


def _records(path: Path, data: bytes) -> list[tuple[int, Any]] | None:
    """Numbered records; None for a file with the header that `TaskSet.save` writes."""
    try:
        lines = data.decode("utf-8-sig").splitlines()
        first = next((json.loads(line) for line in lines if line.strip()), None)
        if first is None or (isinstance(first, dict) and "task_set" in first):
            return None
        return [(i, json.loads(line)) for i, line in enumerate(lines, start=1) if line.strip()]
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(
            f"The dataset {path.name} is not JSON lines: {reason}.", "Write one JSON object per line."
        ) from None


def _plain(text: str) -> PromptPair:
    return PromptPair(clean=text, answer="", wrong="")


def _spans(given: Mapping[str, str | list[int]], text: str) -> dict[str, Span]:
    out: dict[str, Span] = {}
    for name, where in given.items():
        if isinstance(where, str):
            start = text.find(where)
            if start < 0 or not where:
                raise InputError(
                    f"The span {name!r} ({where!r}) is not in {text!r}.", "Write it as it stands."
                )
            out[name] = (start, start + len(where))
        elif len(where) == 2:
            out[name] = (where[0], where[1])
        else:
            raise InputError(f"The span {name!r} is {where}.", "Give the words, or [start, stop).")
    return out
