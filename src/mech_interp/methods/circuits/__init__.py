"""Circuits: attribution of nodes and edges, faithfulness of circuits, grades against a reference.

Import the module that is needed; torch takes time to load.
"""

from __future__ import annotations
