"""The query language against an obvious evaluator, on runs of every sort."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mech_interp.storage import tables
from mech_interp.storage.summary import Summary

FAMILIES = ["logit_lens", "circuit_patching", "Caf\u00c9", None]
TAGS = ["paper", "draft", "two words", "and", "3"]
METRICS = ["final_rank", "recovery", "not"]
CREATED = [
    "2026-03-01T00:00:00.000Z",
    "2026-03-01T23:59:59.999Z",
    "2026-02-28T12:30:00.000Z",
    "2025-12-31T00:00:00.000Z",
]


def make_runs(count: int = 40) -> list[Summary]:
    """Runs of every sort, the same each time."""
    chance = random.Random(5)

    def some(values, most=2):
        return chance.sample(values, chance.randint(0, most))

    made = []
    for number in range(1, count + 1):
        run = {column.name: None for column in tables.runs.columns}
        run |= {
            "id": f"run-{number:06d}-{number:08x}",
            "number": number,
            "suffix": f"{number:08x}",
            "folder": f"run-{number:06d}-{number:08x}",
            "status": chance.choice(["complete", "failed"]),
            "family": chance.choice(FAMILIES),
            "seed": chance.choice([None, 0, 1, 3]),
            "seconds": chance.choice([None, 0.5, 3.0]),
            "created": chance.choice(CREATED),
            "archived": chance.random() < 0.3,
        }
        parameters = [
            {"name": "k", "text": text, "number": value}
            for text, value in some([("1", 1.0), ("2.50", 2.5), ("true", None), ("null", None), ("z", None)])
        ]
        made.append(
            Summary(
                run=run,
                metrics=[
                    {
                        "name": name,
                        "value": chance.choice([None, 1.0, 2.5, 3.0, -1.0]),
                        "low": None,
                        "high": None,
                    }
                    | {"n": None, "unit": None, "better": None}
                    for name in some(METRICS)
                ],
                tags=[{"tag": tag} for tag in some(TAGS)],
                files=[],
                sites=[
                    {"site": f"blocks.{layer}.hook_resid_pre", "layer": layer} for layer in some([0, 1, 3])
                ],
                datasets=[{"name": name, "sha256": "ab" + name} for name in some(["facts", "ioi"])],
                parameters=parameters,
            )
        )
    return made


RUNS = make_runs()


@pytest.fixture(scope="module")
def select(selector):
    """The ids that a query selects, through the database."""
    return selector(RUNS)


# An expression here is ("and" | "or", items), ("not", item), ("has", field) or (field, operator, value).


def values_of(run: Summary, field: str) -> list:
    """What a run has under a field: none, one or several values."""
    head, _, rest = field.partition(".")
    if head == "metric":
        found = [row["value"] for row in run.metrics if row["name"] == rest]
    elif head == "parameter":
        found = [(row["text"], row["number"]) for row in run.parameters if row["name"] == rest]
    elif field == "tag":
        found = [row["tag"] for row in run.tags]
    elif field in ("site", "layer"):
        found = [row[field] for row in run.sites]
    elif field == "dataset":
        found = [row[column] for row in run.datasets for column in ("name", "sha256")]
    else:
        found = [run.run[field]]
    return [value for value in found if value is not None]


def number_of(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        return None


def passes(field: str, operator: str, have, value: str, quoted: bool) -> bool:
    """Whether one value that a run has passes a comparison."""
    if field.startswith("parameter."):
        text, number = have
        wanted = None if quoted else number_of(value)
        if operator == "=":
            return text == value or (wanted is not None and number == wanted)
        if operator == "~":
            return value.casefold() in text.casefold()
        return number is not None and compare(operator, number, wanted)
    if operator == "~":
        return value.casefold() in have.casefold()
    if field == "archived":
        return have == (value == "true")
    if field == "created":
        inside = have.startswith(value)  # the values tried are beginnings of instants
        if operator == "=":
            return inside
        return {"<": have < value, "<=": have < value or inside, ">": have > value and not inside}.get(
            operator, have > value or inside
        )
    if isinstance(have, int | float):
        return compare(operator, have, float(value))
    return have == value


def compare(operator: str, left, right) -> bool:
    return {
        "=": left == right,
        "<": left < right,
        "<=": left <= right,
        ">": left > right,
        ">=": left >= right,
    }[operator]


def holds(run: Summary, expression) -> bool:
    if expression[0] == "and":
        return all(holds(run, item) for item in expression[1])
    if expression[0] == "or":
        return any(holds(run, item) for item in expression[1])
    if expression[0] == "not":
        return not holds(run, expression[1])
    if expression[0] == "has":
        return bool(values_of(run, expression[1]))
    field, operator, value, quoted = expression
    if operator == "!=":
        return not holds(run, (field, "=", value, quoted))
    return any(passes(field, operator, have, value, quoted) for have in values_of(run, field))


ORDERED = ["=", "!=", "<", "<=", ">", ">="]
NUMBERS = ["0", "1", "2.5", "3", "-1", "+2", ".5", "1e0", "30e-1"]


def comparison(fields, operators, values, quoted=(False, True)):
    return st.tuples(
        st.sampled_from(fields), st.sampled_from(operators), st.sampled_from(values), st.sampled_from(quoted)
    )


LEAVES = st.one_of(
    comparison(
        ["family", "status", "tag"],
        ["=", "!=", "~"],
        ["logit_lens", "LENS", "caf\u00e9", "failed", *TAGS, ""],
    ),
    comparison(
        ["metric.final_rank", "metric.recovery", "metric.not", "seed", "number"], ORDERED, NUMBERS, [False]
    ),
    comparison(["layer", "seconds", "metric.nowhere"], ORDERED, NUMBERS, [False]),
    comparison(["site"], ["=", "!=", "~"], ["blocks.1.hook_resid_pre", "blocks.3", "hook"]),
    comparison(["dataset"], ["=", "!=", "~"], ["facts", "abioi", "ab"]),
    comparison(["parameter.k"], ["=", "!=", "~"], ["1", "1.0", "2.5", "2.50", "true", "z", "null", "5"]),
    comparison(["parameter.k"], ["<", "<=", ">", ">="], NUMBERS, [False]),
    comparison(
        ["created"], [*ORDERED, "~"], ["2026", "2026-03", "2026-03-01", "2026-02-28T12:30", "2025-12-31"]
    ),
    comparison(["archived"], ["=", "!="], ["true", "false"]),
    st.tuples(
        st.just("has"), st.sampled_from(["family", "tag", "seed", "metric.recovery", "parameter.k", "layer"])
    ),
)
EXPRESSIONS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=4)),
        st.tuples(st.just("not"), inner),
    ),
    max_leaves=8,
)


def written(expression, inside: str = "or") -> str:
    """The text of an expression, with parentheses only where they are needed."""
    binding = {"or": 0, "and": 1, "not": 2}
    head = expression[0]
    if head in ("and", "or"):
        text = f" {head} ".join(written(item, "and" if head == "or" else "not") for item in expression[1])
        return f"({text})" if binding[inside] > binding[head] else text
    if head == "not":
        return f"not {written(expression[1], 'not')}"
    if head == "has":
        return f"has {expression[1]}"
    field, operator, value, quoted = expression
    bare = value and not set(value) & set(" \"'()=<>!~")
    return f"{field} {operator} {value if bare and not quoted else repr(value)}"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(EXPRESSIONS)
def test_queries_select_what_an_obvious_evaluator_selects(select, expression):
    text = written(expression)
    assert select(text) == {run.run["id"] for run in RUNS if holds(run, expression)}, text
    assert select(f"not ({text})") == {run.run["id"] for run in RUNS if not holds(run, expression)}


def test_the_naive_evaluator_is_not_vacuous(select):
    """Every kind of condition selects some runs and not others."""
    for text in (
        "family = logit_lens",
        "family ~ CAFÉ",
        "tag = 'two words'",
        "metric.final_rank < 3",
        "parameter.k = 2.5",
        "created = 2026-03-01",
        "site ~ blocks.3",
        "layer > 0",
        "has seed",
        "archived = true",
    ):
        assert 0 < len(select(text)) < len(RUNS), text


def test_an_empty_query_selects_everything(select):
    assert len(select("")) == len(select("  \n ")) == len(RUNS)
