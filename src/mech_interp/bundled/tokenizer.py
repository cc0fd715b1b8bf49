"""The bundled tokenizer: byte-level BPE with the small world's words as whole tokens.

Text is cut into words (with their leading space), runs of at most two digits, and punctuation. A word
that is in the vocabulary is one token, whatever the merges say (`ignore_merges`); any other word falls
back on a few learned merges and in the end on single bytes, so that every text round-trips. A year such
as " 1834" is two tokens, " 18" and "34".
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mech_interp.bundled import chat, corpus
from mech_interp.datasets import lexicon, templates

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY = 1792
END_OF_TEXT = "<|endoftext|>"
SPECIAL_TOKENS = (END_OF_TEXT, chat.USER, chat.ASSISTANT, chat.END)

_SPLIT = r" ?\p{L}+| ?\p{N}{1,2}|\s+(?!\S)| ?[^\s\p{L}\p{N}]+|\s+"
_WORD = re.compile(r" ?[A-Za-z]+| ?[^\w\s]+|\s+")
_SAMPLE_DOCUMENTS = 40_000
_SAMPLE_DIALOGUES = 10_000
_MERGES = 266


def required_tokens() -> list[str]:
    """Words that must be single tokens, with their leading space where they have one."""
    words = [*lexicon.ALL_NAMES, *lexicon.CAPITALS, *lexicon.LANGUAGES, *lexicon.PLACES, *lexicon.OBJECTS]
    words += [country.name for country in lexicon.COUNTRIES]
    words += [word for continent in lexicon.CONTINENTS for word in continent.split()]
    words += [word for pair in (*lexicon.NOUNS, *lexicon.ATTRACTORS, *lexicon.VERBS) for word in pair]
    words += [*lexicon.POSITIVE_ADJECTIVES, *lexicon.NEGATIVE_ADJECTIVES, *lexicon.REVIEWED_THINGS]
    words += [answer for split in lexicon.SPLITS for t in templates.SENTIMENT[split] for answer in t[1:]]
    words += [event for split in lexicon.SPLITS for event in lexicon.EVENTS[split]]
    words += ["True", "False"]
    words += [f"{half:02d}" for half in range(100)] + [str(digit) for digit in range(10)]
    return [f" {word}" for word in dict.fromkeys(words)] + [f"{half:02d}" for half in range(100)]


def _held_out_words() -> list[str]:
    """The words of held-out templates: all of them occur in the corpus, some too rarely to be counted."""
    texts: list[str] = []
    for split in ("dev", "test"):
        texts += [*templates.IOI[split], *templates.GREATER_THAN[split], *templates.AGREEMENT[split]]
        texts += [text for relation in templates.FACTS.values() for text in relation[split]]
        texts += [template.text for template in templates.SENTIMENT[split]]
    return [
        word for text in texts for word in _WORD.findall(re.sub(r"\{\w+\}", "x", text)) if word.strip() != "x"
    ]


def _sample() -> list[str]:
    texts = [text for _, text in itertools.islice(corpus.documents("tokenizer"), _SAMPLE_DOCUMENTS)]
    dialogues = itertools.islice(chat.dialogues("tokenizer", varied=False), _SAMPLE_DIALOGUES)
    return texts + [re.sub(r"<\|\w+\|>", "\n", text) for text in dialogues]


def _byte_text(word: str, table: dict[int, str]) -> str:
    return "".join(table[byte] for byte in word.encode("utf-8"))


def _byte_table() -> dict[int, str]:
    """Byte -> printable character, the byte-level alphabet of GPT-2 (Radford et al. 2019)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in printable}
    spare = itertools.count(256)
    return {byte: table.get(byte) or chr(next(spare)) for byte in range(256)}


def build() -> Tokenizer:
    """The tokenizer, built anew from the lexicon and a seeded sample of the corpus (about 10 s)."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    def empty(model: models.BPE) -> Tokenizer:
        tokenizer = Tokenizer(model)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    sample = _sample()
    learner = empty(models.BPE())
    learner.train_from_iterator(
        sample,
        trainers.BpeTrainer(
            vocab_size=256 + _MERGES,
            initial_alphabet=sorted(_byte_table().values()),
            show_progress=False,
        ),
    )
    learned = json.loads(learner.to_str())["model"]
    merges = [tuple(merge) for merge in learned["merges"]]

    table = _byte_table()
    counts = Counter(word for text in sample for word in _WORD.findall(text))
    words = [*required_tokens(), *_held_out_words(), *(word for word, _ in counts.most_common())]
    entries = [*SPECIAL_TOKENS, *table.values(), *("".join(merge) for merge in merges)]
    entries = list(dict.fromkeys(entries + [_byte_text(word, table) for word in words]))[:VOCABULARY]
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    tokenizer = empty(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def save(tokenizer: Tokenizer, folder: Path, *, chat_template: str | None = None) -> None:
    """Write tokenizer.json and tokenizer_config.json, as `AutoTokenizer` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT if chat_template is None else chat.END,
        "pad_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "additional_special_tokens": [chat.USER, chat.ASSISTANT, chat.END],
        "model_max_length": 128,
        "clean_up_tokenization_spaces": False,
    }
    if chat_template is not None:
        config["chat_template"] = chat_template
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
