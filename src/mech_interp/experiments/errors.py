"""What can go wrong between a family and the platform."""

from __future__ import annotations

from mech_interp.errors import MechError


class FamilyError(MechError):
    """A family breaks the contract that `Family` states; its author has to mend it."""

    exit_code = 5


class BudgetError(MechError):
    """A run reached a limit it was given; what it finished is kept."""

    exit_code = 6
