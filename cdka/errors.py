"""What can be wrong with a configuration, said with the numbers that would be right.

CdkaError (ValueError)
├── IndivisibleError   r1 or r2 does not divide a layer
├── BudgetError        nothing fits the parameter budget
├── TargetError        no module of the model is selected
└── AdapterError       an adapter cannot be used as asked
"""

from __future__ import annotations


class CdkaError(ValueError):
    """Base of every refusal of this package; a ``ValueError``, so generic handlers keep working."""


class IndivisibleError(CdkaError):
    """A component size does not divide the layer dimension it must divide."""


class BudgetError(CdkaError):
    """The budget admits no configuration; the message names the smallest feasible cost."""


class TargetError(CdkaError):
    """The target modules select nothing, or something that cannot carry an adapter."""


class AdapterError(CdkaError):
    """The adapter cannot do what was asked of it."""
