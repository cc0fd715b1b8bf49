"""The tables of the index, and the steps by which older indexes reach them. Imports the database library."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, ForeignKey, Index, Integer, MetaData, Table, Text

metadata = MetaData()

runs = Table(
    "runs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("number", Integer, nullable=False),
    Column("suffix", Text, nullable=False),
    Column("folder", Text, nullable=False),
    Column("key", Text),
    Column("status", Text, nullable=False),
    Column("name", Text),
    Column("family", Text),
    Column("description", Text),
    Column("backend", Text),
    Column("model", Text),
    Column("device", Text),
    Column("dtype", Text),
    Column("seed", Integer),
    Column("matrix", Text),
    Column("parent", Text),
    Column("created", Text),
    Column("finished", Text),
    Column("seconds", Float),
    Column("error", Text),
    Column("archived", Boolean, nullable=False),
    Column("result_sha256", Text),
    Index("runs_by_key", "key"),
    Index("runs_by_number", "number"),
)


def _child(name: str, *columns: Column[object]) -> Table:
    """A table whose rows belong to one run."""
    owner: Column[object] = Column(
        "run", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, index=True
    )
    return Table(name, metadata, owner, *columns)


metrics = _child(
    "metrics",
    Column("name", Text, nullable=False),
    Column("value", Float),
    Column("low", Float),
    Column("high", Float),
    Column("n", Integer),
    Column("unit", Text),
    Column("better", Text),
)
tags = _child("tags", Column("tag", Text, nullable=False))
files = _child(
    "files", Column("path", Text, nullable=False), Column("sha256", Text), Column("bytes", Integer)
)
sites = _child("sites", Column("site", Text, nullable=False), Column("layer", Integer))
datasets = _child("datasets", Column("name", Text, nullable=False), Column("sha256", Text))
parameters = _child(
    "parameters", Column("name", Text, nullable=False), Column("text", Text), Column("number", Float)
)

CHILDREN = (metrics, tags, files, sites, datasets, parameters)
