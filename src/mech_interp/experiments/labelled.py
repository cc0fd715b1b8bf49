"""Labelled texts for measuring what neurons respond to: the small world's documents, or a spec's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from mech_interp.config.problems import problem
from mech_interp.errors import InputError, nearest
from mech_interp.experiments.family import FamilyParams

FUNCTION_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "are",
        "as",
        "at",
        "be",
        "but",
        "by",
        "for",
        "from",
        "had",
        "has",
        "have",
        "he",
        "her",
        "his",
        "if",
        "in",
        "is",
        "it",
        "its",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "our",
        "she",
        "so",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "was",
        "we",
        "were",
        "when",
        "which",
        "who",
        "will",
        "with",
        "you",
        "your",
    ]
)


class LabelledText(FamilyParams):
    """A text and the class it belongs to."""

    text: str = Field(min_length=1, description="The text.")
    label: str = Field(default="", max_length=80, description="Its class; not needed for classes of tokens.")

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        if isinstance(data, str):
            return {"text": data}
        if isinstance(data, dict) and "prompt" in data and "text" not in data:
            return {("text" if key == "prompt" else key): value for key, value in data.items()}
        return data


class LabelledParams(FamilyParams):
    """Parameters by which a family takes labelled texts; by default the small world's documents."""

    corpus: Literal["small-world"] | None = Field(
        default=None,
        description="Documents written by the bundled corpus generator; their kind is the label.",
    )
    kinds: list[str] | None = Field(
        default=None, min_length=2, description="Kinds of small-world documents; all by default."
    )
    documents: int = Field(default=32, ge=4, le=10_000, description="Small-world documents per kind.")
    prompts: list[str | LabelledText] | None = Field(
        default=None, min_length=2, description="Texts, each a text or a mapping with text and label."
    )
    dataset_path: str | None = Field(
        default=None, min_length=1, description="A JSON-lines file of mappings with text and label."
    )
    dataset_sha256: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="SHA-256 that the file must have (hex)."
    )
    labels: Literal["document", "token"] = Field(
        default="document",
        description="Classes of documents (their labels), or of tokens (name, number, punctuation, function "
        "word, word, word piece).",
    )

    @model_validator(mode="after")
    def _one_source(self) -> LabelledParams:
        given = [name for name in ("corpus", "prompts", "dataset_path") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"the texts are given as {' and as '.join(given)}; give one of them")
        if self.dataset_sha256 and not self.dataset_path:
            raise ValueError("dataset_sha256 is given without dataset_path")
        if given and given[0] != "corpus" and self.kinds:
            raise ValueError(
                f"kinds belongs to the small-world corpus, and the texts are given as {given[0]}"
            )
        return self


def load_texts(params: LabelledParams, seed: int) -> list[LabelledText]:
    """The texts that the parameters name, each once; the same parameters and seed give the same ones.

    Raises:
        InputError: for an unknown kind, a file that cannot be read, or a text without a label where
            documents are compared.
    """
    if params.prompts is not None:
        found = [_as_text(item) for item in params.prompts]
    elif params.dataset_path is not None:
        found = _from_file(Path(params.dataset_path).expanduser(), params.dataset_sha256)
    else:
        found = _small_world(params.kinds, params.documents, seed)
    found = list({one.text: one for one in found}.values())
    bare = next((one for one in found if not one.label), None)
    if params.labels == "document" and bare is not None:
        raise InputError(
            f"The text {bare.text[:60]!r} has no label.", "Give every text a label, or set labels: token."
        )
    return found


def texts_hash(texts: Sequence[LabelledText]) -> str:
    """SHA-256 (hex) over texts and labels, order included."""
    content = json.dumps([[one.text, one.label] for one in texts], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def token_class(piece: str) -> str:
    """The class of a token by its text: number, punctuation, name, function word, word or word piece."""
    word = piece.strip()
    if not any(char.isalnum() for char in word):
        return "punctuation"
    if any(char.isdigit() for char in word):
        return "number"
    if word.lower() in FUNCTION_WORDS:
        return "function word"
    if word[:1].isupper():
        return "name"
    return "word" if piece[:1].isspace() else "word piece"


def _as_text(item: str | LabelledText) -> LabelledText:
    return item if isinstance(item, LabelledText) else LabelledText(text=item)


def _small_world(kinds: Sequence[str] | None, documents: int, seed: int) -> list[LabelledText]:
    from mech_interp.bundled.corpus import WRITERS
    from mech_interp.bundled.corpus import documents as corpus

    found = []
    for kind in kinds or WRITERS:
        if kind not in WRITERS:
            raise InputError(
                f"The small world has no documents of the kind {kind!r}.",
                nearest(kind, WRITERS) or f"Kinds: {', '.join(WRITERS)}.",
            )
        stream = islice(corpus(f"labelled:{seed}:{kind}", {kind: 1.0}), documents)
        found += [LabelledText(text=text, label=kind) for _, text in stream]
    return found


def _from_file(path: Path, sha256: str | None) -> list[LabelledText]:
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"The dataset {str(path)!r} cannot be read: {error}.", "Check dataset_path."
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256:
        raise InputError(
            f"The dataset {path.name} has SHA-256 {found}, and the spec expects {sha256}.",
            "Restore the file, or correct dataset_sha256.",
        )
    texts = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            texts.append(LabelledText.model_validate(record))
        except ValidationError as error:
            named = problem(error, LabelledText, record)
            raise InputError(f"Line {number} of {path.name}: {named.message}", named.hint) from None
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"Line {number} of {path.name} is not JSON: {error}.", "Write one object per line."
            ) from None
    return texts
