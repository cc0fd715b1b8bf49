"""Operations that methods need beyond the public ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mech_interp.interventions import EditContext, Operation
from mech_interp.operands import fit_value

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class SetFromTable(Operation):
    """Set the site to a captured tensor, looked up by prompt, position and head.

    `values` is what `forward(capture=...)` returned for the whole site and the same prompt numbering:
    [prompt, *axes of the kind]. Unlike a plain tensor value it does not depend on how rows are batched.
    """

    values: Tensor

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        prompts, positions = context.prompts, context.positions
        if context.heads is None:
            found = self.values[prompts, positions]
        elif context.site.spec.axes[0] == "head":
            found = self.values[prompts, context.heads, positions]
        else:
            found = self.values[prompts, positions, context.heads]
        return fit_value(found, live, context)


@dataclass(frozen=True, eq=False)
class AddFromTable(Operation):
    """Add a tensor [prompt, position, features], looked up by prompt and position."""

    values: Tensor

    def apply(self, live: Tensor, context: EditContext) -> Tensor:
        return live + self.values[context.prompts, context.positions].to(live)
