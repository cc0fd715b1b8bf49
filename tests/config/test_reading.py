"""YAML as specs use it: words stay words, lines are known, tricks are refused."""

from __future__ import annotations

import time

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.config.dumping import dump
from mech_interp.config.reading import MAX_DEPTH, read_documents, read_file, read_value
from mech_interp.errors import InputError

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20)
WORDS = """
no yes on off y n null ~ true 1 01 0x1f 0o17 1e5 1e-05 .5 5. +1 .inf .nan 1:30 2024-01-01
= << - ? : # ! & * % @ ` | > ' " é 🗼
"""
ODD = ["", " ", "a: b", "a #b", "- a", " Paris", "x ", "a\n", "\n", "a\n\nb", "9" * 30]
TRICKY = st.sampled_from([*WORDS.split(), *ODD])
DATA = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT
    | TRICKY,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT | TRICKY, inner, max_size=4),
    max_leaves=15,
)


def typed(data: object) -> object:
    if isinstance(data, dict):
        return {key: typed(value) for key, value in data.items()}
    return [typed(item) for item in data] if isinstance(data, list) else (type(data), data)


@settings(deadline=None)
@given(DATA.map(lambda data: {"top": data}))
def test_what_is_written_reads_back_the_same(data):
    text = dump(data)
    assert typed(read_documents(text)[0].data) == typed(data)
    # YAML 1.1 readers see the same, numbers and words included.
    assert typed(yaml.safe_load(text)) == typed(data)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("1e-3", 0.001),
        ("007", 7),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        (".5", 0.5),
        ("true", True),
        ("~", None),
        ("", None),
        ("'3'", "3"),
        ("!!str 3", "3"),
        ("[z, 1]", ["z", 1]),
        ("{a: 1}", {"a": 1}),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_words_and_numbers(text, value):
    assert typed(read_value(text, "x")) == typed(value)


def test_several_documents_with_their_lines():
    one, two = read_documents("a: 1\nb:\n  - x\n  - c: 2\n---\n# nothing\n---\n\nd: 3\n", "f.yaml")
    assert one.data == {"a": 1, "b": ["x", {"c": 2}]}
    assert one.origin.at(("b", 1, "c")) == "f.yaml:4: "
    assert one.origin.at(("b", 0)) == "f.yaml:3: "
    assert one.origin.at(("b", 7, "deeper")) == "f.yaml:2: "
    assert two.origin.at(("d",)) == "f.yaml:9: "
    assert two.origin.at(("missing",)) == "f.yaml:9: "


def test_anchors_are_copied_in():
    (document,) = read_documents("base: &b {k: [1, 2]}\none: *b\ntwo: [*b, *b]")
    assert document.data["two"] == [{"k": [1, 2]}] * 2
    assert document.data["one"] == document.data["base"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "f.yaml:3: the key 'a' was given before, in line 1."),
        ("x: {k: 1, 'k': 2}", "f.yaml:1: the key 'k' was given before, in line 1."),
        ("a: !!python/object/apply:os.system [ls]", "f.yaml:1: the tag"),
        ("a: !!binary aGk=", "f.yaml:1: the tag"),
        ("? [a]\n: 1", "is not text"),
        ("1: x", "f.yaml:1: the key 1 is not text"),
        ("a: &x [*x]", "f.yaml:1: *x refers to no finished value"),
        ("a: *nowhere", "f.yaml:1: *nowhere refers to no finished value"),
        ("*a : 1", "is not text"),
        ("a: .inf", "is not a finite number"),
        ("a: 1e999", "is too large"),
        ("a: 9223372036854775808", "does not fit into 64 bits"),
        ("a: " + "9" * 10_000, "does not fit into 64 bits"),
        ("a: [1, 2", "f.yaml:"),
        ("a: b: c", "f.yaml:1: this is not YAML"),
        ("a:\n\t- b", "f.yaml:2: this is not YAML"),
        ("a: 'b", "this is not YAML"),
        ("a: \x00", "this is not YAML"),
        ("%YAML 9.9\n---\na", "this is not YAML"),
    ],
)
def test_what_is_refused_and_where(text, said):
    with pytest.raises(InputError) as caught:
        read_documents(text, "f.yaml")
    assert said in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "\n".join(
            f"{c}: &{c} [{','.join(['*' + p] * 9)}]" for p, c in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "[" * 100_000,
        "- " * 100_000,
        "{a: " * 50_000,
        "a: [" + "1," * 300_000 + "]",
        "&a " * 100_000,
        "? " * 100_000,
        "x" * 5_000_000,
    ],
    ids=["billion laughs", "brackets", "dashes", "braces", "long list", "anchors", "questions", "large"],
)
def test_bombs_are_refused_quickly(text):
    start = time.process_time()
    with pytest.raises(InputError):
        read_documents(text, "f.yaml")
    assert time.process_time() - start < 5


def test_aliases_add_to_the_depth():
    half = MAX_DEPTH // 2 + 1
    text = f"a: &a {'[' * half}1{']' * half}\nb: {'[' * half}*a{']' * half}"
    with pytest.raises(InputError, match="nested"):
        read_documents(text, "f.yaml")
    assert read_documents(text.replace("*a", "2"), "f.yaml")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "demo.yaml").write_text("a: 1")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: caf\xe9\n")
    for name, said in (
        ("demo.yml", "Did you mean demo.yaml"),
        (".", "is a folder"),
        ("latin.yaml", "latin.yaml:2: byte 11 is not UTF-8"),
        ("none/at.yaml", "There is no file"),
        ("nul\0.yaml", "cannot be read"),
    ):
        with pytest.raises(InputError) as caught:
            read_file(tmp_path / name)
        assert said in str(caught.value)


def test_a_byte_order_mark_is_no_character(tmp_path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_documents(read_file(tmp_path / "bom.yaml"))[0].data == {"a": 1}
