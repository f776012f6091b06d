"""Functions that :mod:`tests.security.test_aside` calls in another process. Has only fast imports."""

from __future__ import annotations

import os
import time

from service.errors import Fault, InvalidStudy


def add(a: int, b: int) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def sleep(seconds: float) -> None:
    time.sleep(seconds)


def fill(count: int) -> int:
    return len(bytearray(count))


def fault() -> None:
    raise InvalidStudy("the study has 1 fault", [Fault("#/model/path", "there is none")])


def spin(count: int) -> None:
    print("what libraries print does not come between")
    while count:
        pass
