"""``make test`` names missing programs, and how to install them, before it installs anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_missing_programs_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    make = shutil.which("make")
    assert make is not None
    for name in ("sh", "ls"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    done = subprocess.run(
        [make, "check-tools"], cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "The tests need: chromium" in done.stderr
    assert "apt-get install -y --no-install-recommends chromium" in done.stderr
    there = subprocess.run([make, "check-tools"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (there.returncode, there.stderr) == (0, "")


def test_required_programs_are_checked_before_anything_is_installed() -> None:
    done = subprocess.run(["make", "--dry-run", "--always-make", "test"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.index("The tests need:") < done.stdout.index("pip")
