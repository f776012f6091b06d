"""The study files in examples/ are valid."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from service.domain.study_spec import StudySpec

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.stem)
def test_an_example_is_a_valid_study(file: Path) -> None:
    study = StudySpec.model_validate(yaml.safe_load(file.read_text()))
    assert study.task.columns_read
    assert study.objective.metric == study.task.metric


def test_the_examples_include_the_papers_runs() -> None:
    studies = {f.stem: StudySpec.model_validate(yaml.safe_load(f.read_text())) for f in EXAMPLES}
    llama = studies["llama-metamath-gsm8k"]
    # Batches of 32, as in the reference.
    assert llama.training.batch_size * llama.training.gradient_accumulation == 32
    assert llama.task.evaluation_columns_read == ["answer", "question"]
    assert {name for name in studies if name.startswith("t5-base-glue-")} == {
        f"t5-base-glue-{task}" for task in ("mnli", "sst2", "cola", "qnli", "mrpc")
    }
