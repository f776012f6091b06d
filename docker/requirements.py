#!/usr/bin/env python3
"""Prints what the package and some of its extras depend on, a layer of their own: requirements.py FILE EXTRA..."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text())["project"]
wanted = [*project["dependencies"], *(r for extra in sys.argv[2:] for r in project["optional-dependencies"][extra])]
print(" ".join(sorted({r.replace(" ", "") for r in wanted})))
