#!/usr/bin/env python3
"""Prints the dependencies of the package and of some of its extras: requirements.py FILE EXTRA..."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]


def of(extra: str) -> list[str]:
    """An extra's requirements; an extra that it names in its turn is replaced by its own."""
    found = []
    for requirement in project["optional-dependencies"][extra]:
        ours = re.fullmatch(rf"{project['name']}\[([\w,]+)\]", requirement)
        found += [r for name in ours[1].split(",") for r in of(name)] if ours else [requirement]
    return found


wanted = [*project["dependencies"], *(requirement for extra in sys.argv[2:] for requirement in of(extra))]
print(" ".join(sorted({requirement.replace(" ", "") for requirement in wanted})))
