"""Broken custom tasks: one hangs, one kills its process."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Collection
from typing import Any

from service.schemas.specs import StudySpec
from workers.tasks.sequence_classification import SequenceClassification
from workers.tasks.task import Prepared, Scores


class Hanging(SequenceClassification):
    """Never finishes judging the first epoch."""

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        print("waiting for an answer that never comes", flush=True)
        threading.Event().wait()
        raise AssertionError("not reached")


class Deadly(SequenceClassification):
    """Kills its process, as a fault in native code would."""

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")
