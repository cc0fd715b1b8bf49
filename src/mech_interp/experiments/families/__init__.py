"""The families that come with the package: one module each, named as the family, holding `FAMILY`."""

from __future__ import annotations
