"""The commit that the running code was built from, so that a report can be repeated with the same code."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_ROOT = Path(__file__).parent.parent


@lru_cache(maxsize=1)
def source_commit() -> str | None:
    """The commit of the checkout, with ``-dirty`` where files were changed, or that pip installed from (PEP 610)."""
    if (_ROOT / ".git").exists():
        return _of_checkout(_ROOT)
    try:
        recorded = distribution("cdka").read_text("direct_url.json")
        return None if recorded is None else json.loads(recorded)["vcs_info"]["commit_id"]
    except (PackageNotFoundError, KeyError, ValueError):
        return None


def _of_checkout(root: Path) -> str | None:
    # "--exclude *" leaves out tags, so that the commit itself is named.
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() or None if ran.returncode == 0 else None
