"""Output of Python, native code and child processes is captured, and still reaches its original stream."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = r"""
import logging, os, subprocess, sys, warnings
from workers.runner.output import CapturedOutput
logging.basicConfig(level=logging.INFO, format="%(message)s")
print("before")
with CapturedOutput() as output:
    print("printed")
    logging.info("logged")
    warnings.warn("warned")
    os.write(1, "natively ä\r50%\r".encode())
    subprocess.run(["echo", "by a child"])
print("after")
start, text = output.waiting()
assert start == 0
for expected in ("printed\n", "logged\n", "warned", "natively ä\n50%\n", "by a child\n"):
    assert expected in text, (expected, text)
assert "before" not in text and "after" not in text
output.sent(len(text))
assert output.waiting() == (len(text), "")
"""


def test_output_is_captured_and_forwarded() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "before"
    assert done.stdout.splitlines()[-1] == "after"
    assert "printed" in done.stderr


FLOOD = r"""
import os
from workers.runner.output import MOST_WAITING, CapturedOutput
with CapturedOutput() as output:
    for k in range(30_000):
        os.write(1, b"x" * 99 + b"\n")
start, piece = output.waiting()
assert start == 3_000_000 - MOST_WAITING, start
assert len(piece) <= 100_000
"""


def test_captured_output_is_bounded() -> None:
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
