"""The errors of this package. Where possible, the message gives values that would work.

CdkaError (ValueError)
├── IndivisibleError   r1 or r2 does not divide a layer
├── BudgetError        nothing fits the parameter budget
├── TargetError        no module that can be adapted is selected
├── CheckpointError    a base model's files are missing, truncated or not in their format
└── AdapterError       an adapter is missing or invalid, or cannot do this
"""

from __future__ import annotations


class CdkaError(ValueError):
    """Base of this package's errors; a ``ValueError``, so generic handlers catch it."""


class IndivisibleError(CdkaError):
    """A component size does not divide the layer dimension it must divide."""


class BudgetError(CdkaError):
    """The budget admits no configuration; the message names the smallest feasible cost."""


class TargetError(CdkaError):
    """The target modules match nothing, or match a module that cannot carry an adapter."""


class CheckpointError(CdkaError):
    """A base model's files are missing, truncated or not in their format; the message names the file."""


class AdapterError(CdkaError):
    """The adapter is missing or invalid, or does not support the operation."""
