"""What people might type: every spelling is understood, every mistake is placed and explained."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mech_interp.errors import InputError
from mech_interp.storage import query
from mech_interp.storage.moments import span


@pytest.fixture(scope="module")
def select(selector):
    """Answer a query through the database; there are no runs."""
    return selector([])


def test_every_field_can_be_asked_for(select):
    for field, kind in query.FIELDS.items():
        value = {"number": "1", "time": "2026", "flag": "true"}.get(kind, "x")
        select(f"{field} = {value} or has {field}")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("FAMILY == logit_lens AND Tag = paper", "family = logit_lens and tag = paper"),
        ("family='logit_lens'and(tag=\"paper\")", "family = logit_lens and tag = paper"),
        ("site = resid_pre.3", "site = blocks.3.hook_resid_pre"),
        ("not not seed = 1", "seed = 1"),
        ("seed = 1 or seed = 3 and tag = paper", "seed = 1 or (seed = 3 and tag = paper)"),
        ("not seed = 1 and tag = paper", "(not seed = 1) and tag = paper"),
        ("family = 'a\\'b\\\\'", 'family = "a\'b\\\\"'),
        ('"metric.not" > 0', "metric.not > 0"),
    ],
)
def test_spellings(select, text, same):
    assert query.parse(text) == query.parse(same)
    select(text)


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("famly = x", "Column 1 of the query: 'famly' is no field.", "Did you mean family"),
        (
            "tag = a and metrics.rank < 3",
            "Column 13 of the query: 'metrics.rank' is no field.",
            "metric.rank",
        ),
        ("family", "Column 7 of the query: the query ends where an operator after 'family' is expected.", ""),
        ("family logit_lens", "Column 8 of the query: an operator is expected, not 'logit_lens'.", ""),
        ("family = ", "Column 10 of the query: the query ends where a value after '=' is expected.", ""),
        ("family = )", "Column 10 of the query: a value is expected, not ')'.", ""),
        ("family < x", "Column 8 of the query: 'family' is a text and takes no '<'.", "It takes = != ~."),
        ("metric.rank < high", "Column 15 of the query: 'high' is no number.", ""),
        ("metric.rank < '3'", "Column 15 of the query: '3' is no number.", ""),
        ("metric.rank < nan", "Column 15 of the query: 'nan' is no number.", ""),
        ("metric.rank < 1e999", "Column 15 of the query: '1e999' is no number.", ""),
        ("metric. < 3", "Column 1 of the query: 'metric.' is no field.", "metric.NAME"),
        ("created = yesterday", "Column 11 of the query: 'yesterday' is no date.", "2026-03-01"),
        ("created = 2026-02-30", "Column 11 of the query: '2026-02-30' is no date.", ""),
        ("archived = maybe", "Column 12 of the query: 'maybe' is neither true nor false.", ""),
        ("(seed = 1", "Column 10 of the query: the query ends where ')' is expected.", ""),
        ("seed = 1)", "Column 9 of the query: ')' is not expected here.", ""),
        ("seed = 1 tag = x", "Column 10 of the query: 'tag' is not expected here.", "and or or"),
        ("name = 'open", "Column 8 of the query: a quote is opened and not closed.", ""),
        ("seed ! 1", "Column 6 of the query: '!' stands alone.", "!="),
        ("and seed = 1", "Column 1 of the query: a field is expected, not 'and'.", ""),
        ("tag = a\x00b", "Column 8 of the query: '\\x00' cannot stand in a query.", ""),
        ("(" * 30 + "seed = 1", "Column 21 of the query: parentheses are nested deeper than 20.", ""),
        (" or ".join(["seed = 1"] * 101), "there are more than 100 conditions.", ""),
        ("x" * 5000, "The query is longer than 4000 characters.", ""),
    ],
)
def test_mistakes_are_placed_and_explained(text, message, hint):
    with pytest.raises(InputError) as caught:
        query.parse(text)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint.endswith((".", "?"))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 20 + "not seed = 1" + ")" * 20,
        "not (" * 20 + "tag = x" + ")" * 20,
        "(tag = x or (seed = 1 and " * 10 + "seed = 2" + "))" * 10,
        " or ".join(["not tag = x"] * 100),
        " and ".join(["parameter.k != 1"] * 100),
        "seed = 99999999999999999999999 or seed = 123456789012345678 or layer < -1e300",
    ],
)
def test_the_largest_queries_allowed_are_answered(select, text):
    select(text)


def mistake(select, text):
    """The `InputError` that a query ends in, or None."""
    try:
        select(text)
    except InputError as error:
        return error
    return None


def test_five_hundred_senseless_queries(select):
    """Whatever is typed, the answer is runs or an `InputError`."""
    chance = random.Random(11)
    words = [
        *query.FIELDS,
        "metric.a",
        "parameter.k",
        "and",
        "or",
        "not",
        "has",
        "=",
        "!=",
        "~",
        "<",
        ">=",
        "(",
        ")",
    ]
    words += [
        "'",
        '"',
        "\\",
        "1",
        "1e400",
        "-",
        ".",
        "2026-13",
        "\ud800",
        "\x00",
        "é",
        "%",
        "_",
        ";--",
        "[",
        "\n",
        "🙂",
    ]
    answered = 0
    for _ in range(500):
        text = chance.choice(["", " "]).join(chance.choice(words) for _ in range(chance.randint(1, 12)))
        answered += mistake(select, text) is None
    assert 0 < answered < 400


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.characters() | st.sampled_from(string.printable), max_size=40))
def test_any_text_at_all(select, text):
    for tried in (text, f"tag = {text}", f"{text} = 1", f"name ~ '{text}'"):
        error = mistake(select, tried)
        assert error is None or error.message.endswith(".")


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20))
def test_quoted_text_is_found_as_it_is(text):
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    try:
        node = query.parse(f"name = {quoted}")
    except InputError:
        assert not all(char.isprintable() or char.isspace() for char in text)
    else:
        assert isinstance(node, query.Comparison)
        assert node.text == text


def test_spans_of_dates():
    assert span("2024-02") == query.Span("2024-02-01T00:00:00.000Z", "2024-03-01T00:00:00.000Z")
    assert span("2025") == query.Span("2025-01-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z")
    assert span("2026-12-31") == query.Span("2026-12-31T00:00:00.000Z", "2027-01-01T00:00:00.000Z")
    assert span("2026-03-01 12:30Z") == query.Span("2026-03-01T12:30:00.000Z", "2026-03-01T12:31:00.000Z")
    assert span("2026-03-01t12:30:05.25") == query.Span(
        "2026-03-01T12:30:05.250Z", "2026-03-01T12:30:05.251Z"
    )
    for text in (
        "9999",
        "0000",
        "2026-00",
        "2026-01-00",
        "2026-1-1-1",
        "12:30",
        "2026-03-01T25:00",
        "",
        "20260301",
    ):
        assert span(text) is None, text
