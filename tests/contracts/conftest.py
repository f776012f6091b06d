"""Fixtures of the contract suites."""

from __future__ import annotations

from tests.workers.conftest import zoo

__all__ = ["zoo"]
