"""The command ``cdka``."""

from .program import main as main
