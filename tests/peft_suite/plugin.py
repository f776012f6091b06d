"""A pytest plugin that runs PEFT's own tests with CDKA as the only method.

PEFT's modules list the methods to test (``ALL_CONFIGS``, ``TEST_CASES``) and pass these lists to ``parametrize``. The
plugin changes the lists in place as soon as a module is imported, and keeps only tests that are parametrised by CDKA.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from typing import Any

import pytest
import torch
from peft import PeftConfig

from cdka import CdkaConfig

NEEDS_ACCELERATOR = pytest.mark.skipif(
    not torch.accelerator.is_available(), reason="FullyShardedDataParallel refuses a machine without an accelerator"
)
SMALL = {"r": 2, "r1": 2, "r2": 4}
TASKS = {
    "test_decoder_models": "CAUSAL_LM",
    "test_encoder_decoder_models": "SEQ_2_SEQ_LM",
    "test_feature_extraction_models": "FEATURE_EXTRACTION",
    "test_seq_classifier": "SEQ_CLS",
}
FITTED = {"r": 2, "r1": 2, "r2": 2, "fit": "nearest"}  # the custom models are 10, 20 and 2 wide
LAYERS = [
    ("Vanilla MLP 1 CDKA", "MLP", {"target_modules": "lin0"}),
    ("Vanilla MLP 2 CDKA", "MLP", {"target_modules": ["lin0"]}),
    ("Vanilla MLP 3 CDKA", "MLP", {"target_modules": ["lin1"]}),
    ("Vanilla MLP 4 CDKA", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("Vanilla MLP 5 CDKA", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("Vanilla MLP 6 CDKA", "MLP", {"target_modules": ["lin0"], "r1": 1, "r2": 1, "r": 4, "alpha": 4}),
    ("Vanilla MLP 7 CDKA", "MLP", {"target_modules": ["lin0"], "dropout": 0.1}),
    ("Vanilla MLP 8 CDKA", "MLP", {"target_modules": ["lin0"], "scaling": "constant", "alpha": 2}),
    ("Vanilla MLP 9 CDKA", "MLP", {"target_modules": ["lin0"], "r1": 5, "r2": 5, "r": 1}),
    ("Embedding + transformers Conv1D CDKA", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("Conv2d 1 CDKA", "Conv2d", {"target_modules": ["conv2d"]}),
    ("Conv2d 2 CDKA", "Conv2d", {"target_modules": ["conv2d", "lin0"]}),
    ("Conv2d 1x1 CDKA", "Conv2d1x1", {"target_modules": ["conv2d"]}),
]


def _cases(module: str) -> dict[str, list[Any]]:
    if module == "test_custom_models":
        name = ["lin0"]
        same = FITTED | {"target_modules": name, "init_weights": False}
        other = same | {"target_modules": ["lin1"]}
        return {
            "TEST_CASES": [(title, model, CdkaConfig, FITTED | changes) for title, model, changes in LAYERS],
            "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": [
                ("CDKA Same", "cdka", CdkaConfig, same, same),
                ("CDKA Different", "cdka", CdkaConfig, same, other),
            ],
        }
    if module in TASKS:
        return {"ALL_CONFIGS": [(CdkaConfig, SMALL | {"task_type": TASKS[module], "target_modules": None})]}
    return {}


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makemodule(module_path: Any, parent: Any) -> Any:
    collector = yield
    for name, cases in _cases(module_path.stem).items():
        getattr(collector.obj, name)[:] = cases
        # PEFT's helper goes online at the first use of a model. All models are local here.
        helpers: Any = sys.modules[f"{collector.obj.__package__}.testing_utils"]
        helpers._HUB_MODEL_ACCESSES = _Known(int)
    return collector


class _Known(defaultdict[str, int]):
    """A counter of model uses that reports every model as already used."""

    def __contains__(self, model: object) -> bool:
        return True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only tests that are parametrised by CDKA and by no other method."""
    kept = [item for item in items if _methods(item) == {CdkaConfig}]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
    for item in items:
        if "Fsdp" in item.nodeid:
            item.add_marker(NEEDS_ACCELERATOR)


def _methods(item: pytest.Item) -> set[type]:
    callspec = getattr(item, "callspec", None)
    values = callspec.params.values() if callspec else []
    return {v for v in values if isinstance(v, type) and issubclass(v, PeftConfig)}
