"""Every kind of task end to end on the real application: a tiny model of its architecture, real training."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from service.schemas.specs import GenerationSpec
from tests.conftest import Api, make_study, write_lines
from workers.inputs.labels import label_reader
from workers.inputs.values import check_values, label
from workers.runner.runner import Runner
from workers.tasks.answers import extract
from workers.tasks.image_classification import _decoded, _image
from workers.tasks.task import Scores

from ..helpers import DIGITS, WORDS, run_one, tokenizer

pytestmark = pytest.mark.usefixtures("zoo")


def test_pairs_of_texts_are_classified(api: Api, runner: Runner) -> None:
    task = {"kind": "sequence_classification", "columns": {"text": "prompt", "text_pair": "a", "label": "parity"}}
    trial = run_one(api, runner, "tiny-llama", task)
    assert trial["metrics"].keys() == {"loss", "accuracy", "f1", "f1_positive", "matthews_correlation"}
    assert trial["resources"]["data"]["test"] == "12 examples carved out of train (seed 0)"


def test_regression_learns_numbers(api: Api, runner: Runner) -> None:
    task = {"kind": "sequence_regression", "columns": {"text": "prompt", "label": "size"}, "metric": "spearman"}
    trial = run_one(api, runner, "tiny-bert", task)
    assert trial["metrics"].keys() == {"loss", "mse", "mae", "pearson", "spearman"}
    assert trial["metrics"]["mse"] == trial["metrics"]["loss"]


def test_a_decoder_learns_completions_and_its_answers_are_judged(api: Api, runner: Runner) -> None:
    task = {
        "kind": "causal_lm",
        "generation": {"extractor": "gsm8k", "max_new_tokens": 4},
        "metric": "exact_match",
    }
    trial = run_one(api, runner, "tiny-llama", task, training={"epochs": 12})
    reported = api.call("GET", f"/trials/{trial['id']}/metrics").json()["items"]
    losses = [m["value"] for m in reported if m["name"] == "loss"]
    assert losses[-1] < losses[0]
    assert trial["metrics"]["perplexity"] == pytest.approx(2.718281828 ** losses[-1], rel=1e-6)
    assert 0 <= trial["metrics"]["exact_match"] <= 1


def test_answers_are_generated_only_if_exact_match_is_wanted(api: Api, runner: Runner) -> None:
    trial = run_one(api, runner, "tiny-llama", {"kind": "causal_lm", "metric": "loss"})
    assert trial["metrics"].keys() == {"loss", "perplexity"}


def test_conversations_go_through_the_chat_template(api: Api, runner: Runner) -> None:
    task = {"kind": "causal_lm", "columns": {"messages": "messages"}}
    trial = run_one(api, runner, "tiny-llama", task)
    assert trial["metrics"].keys() == {"loss", "perplexity"}


def test_only_the_completion_is_learned(api: Api, runner: Runner) -> None:
    run_one(api, runner, "tiny-llama", {"kind": "causal_lm", "template": "{a} plus"})
    row = runner._warm.prepared.train[0]  # type: ignore[union-attr]
    assert row["prompt_length"] == 2
    assert row["labels"][:2] == [-100, -100]
    assert row["labels"][2:] == row["input_ids"][2:]
    assert row["labels"][-1] == 1  # the end of the text is learned too


def test_packed_rows_give_every_example_the_loss_it_has_alone(api: Api, runner: Runner) -> None:
    run_one(api, runner, "tiny-llama", {"kind": "causal_lm"}, training={"packing": True, "epochs": 1})
    prepared = runner._warm.prepared
    assert prepared is not None
    assert runner._warm.model is not None
    model = runner._warm.model.model.eval()
    packed = prepared.collator([prepared.train[0]])
    assert packed["input_ids"].shape == (1, 32)
    starts = (packed["position_ids"][0] == 0).nonzero().flatten().tolist()
    with torch.no_grad():
        together = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"]).logits[0]
        for start, end in pairwise(starts):
            alone = model(input_ids=packed["input_ids"][:, start:end]).logits[0]
            torch.testing.assert_close(together[start:end], alone, rtol=1e-4, atol=1e-4)


def test_text_to_text_scores_label_words(api: Api, runner: Runner) -> None:
    task = {
        "kind": "seq2seq_lm",
        "template": "{prompt} {a}",
        "columns": {"target": "parity"},
        "label_words": {"0": "even", "1": "odd"},
        "metric": "accuracy",
    }
    trial = run_one(api, runner, "tiny-t5", task)
    assert trial["metrics"].keys() == {"loss", "accuracy", "f1", "f1_positive", "matthews_correlation"}


def test_text_to_text_generates(api: Api, runner: Runner) -> None:
    task = {"kind": "seq2seq_lm", "columns": {"text": "prompt", "target": "completion"}}
    trial = run_one(api, runner, "tiny-t5", task)
    assert trial["metrics"].keys() == {"loss", "exact_match"}


def test_digits_are_classified_by_a_vision_transformer(api: Api, runner: Runner, zoo: Path) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = [
        {"image": (image * 255 / 16).round().tolist(), "label": int(label)}
        for image, label in zip(digits.images[:300], digits.target[:300], strict=True)
    ]
    write_lines(zoo / "digits.jsonl", rows)
    task = {
        "kind": "image_classification",
        "dataset": {"path": "json", "data_files": {"train": "digits.jsonl"}},
    }
    trial = run_one(api, runner, "tiny-vit", task, training={"epochs": 15})
    assert trial["metrics"]["accuracy"] > 0.3  # ten classes
    adapter = json.loads((Path(trial["artifact"]) / "adapter_config.json").read_text())
    assert adapter["modules_to_save"] == ["classifier"]


class Parity:
    """A custom task: sequence classification, judged by its error rate."""

    def __init__(self) -> None:
        from workers.tasks.sequence_classification import SequenceClassification

        self._inner = SequenceClassification()
        self.task_type, self.heads = self._inner.task_type, self._inner.heads
        self.prepare, self.load_model = self._inner.prepare, self._inner.load_model

    def judge(self, study: Any, model: Any, split: Any, prepared: Any, wanted: Any) -> Scores:
        scores = self._inner.judge(study, model, split, prepared, wanted)
        return Scores({"errors": 1 - scores.metrics["accuracy"]}, None)


CUSTOM = {
    "kind": "custom",
    "columns": {"text": "prompt", "label": "parity"},
    "custom": {"name": "parity", "architecture": "sequence_classification", "metrics": {"errors": "minimize"}},
}


def test_a_custom_task_is_found_by_name(api: Api, runner: Runner) -> None:
    runner.settings = runner.settings.model_copy(update={"tasks": {"parity": "tests.workers.tasks.test_tasks:Parity"}})
    trial = run_one(api, runner, "tiny-bert", CUSTOM)
    assert trial["metrics"].keys() == {"errors"}


def test_the_task_of_the_documentation_runs(
    api: Api, runner: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[3] / "docs/your-own-task.md").read_text()
    found = dict(re.findall(r"```(\w+)\n(.*?)```", page, re.DOTALL))
    (tmp_path / "our_tasks.py").write_text(found["python"])
    monkeypatch.syspath_prepend(str(tmp_path))
    (setting,) = re.findall(r"CDKA_TASKS='(.*)'", found["sh"])
    runner.settings = runner.settings.model_copy(update={"tasks": json.loads(setting)})
    named = yaml.safe_load(found["yaml"])
    task = {k: v for k, v in named.items() if k != "dataset"} | {"columns": {"text": "prompt", "label": "parity"}}
    trial = run_one(api, runner, "tiny-bert", task)
    (examples,) = re.findall(r"(\d+) examples", trial["resources"]["data"]["validation"])
    assert trial["metrics"]["errors"] == pytest.approx((1 - trial["metrics"]["accuracy"]) * int(examples))


def test_an_unknown_custom_task_fails_and_names_the_setting(api: Api, runner: Runner) -> None:
    with pytest.raises(AssertionError, match="CDKA_TASKS"):
        run_one(api, runner, "tiny-bert", CUSTOM)


@pytest.mark.parametrize(
    ("extractor", "text", "answer"),
    [
        ("gsm8k", "2+2 is 4\n#### 1,234.50", "1234.5"),
        ("gsm8k", "the answer is 4", None),
        ("last_number", "first 3, then $-12", "-12"),
        ("text", "  yes \n", "yes"),
    ],
)
def test_answers_are_extracted_from_texts(extractor: Any, text: str, answer: str | None) -> None:
    assert extract(text, GenerationSpec(extractor=extractor)) == answer


def test_the_regex_extractor_takes_the_last_match() -> None:
    assert extract("a=1; a=2;", GenerationSpec(extractor="regex", pattern=r"a=(\d)")) == "2"


def test_validation_and_test_may_come_from_another_source(api: Api, runner: Runner, zoo: Path) -> None:
    write_lines(zoo / "other.jsonl", [{"q": "one plus one is ?", "r": "#### 2"}] * 7)
    files = {"validation": "other.jsonl", "test": "other.jsonl"}
    task = {
        "kind": "causal_lm",
        "evaluation": {
            "dataset": {"path": "json", "data_files": files, "sample": {"validation": 3}},
            "columns": {"prompt": "q", "completion": "r"},
        },
    }
    trial = run_one(api, runner, "tiny-llama", task)
    assert trial["resources"]["data"] == {
        "train": "60 examples",
        "validation": "3 of 7 examples (seed 0)",
        "test": "7 examples",
    }


def test_a_stream_is_read_only_up_to_its_sample(api: Api, runner: Runner) -> None:
    data = {
        "path": "json",
        "data_files": {"train": "sums.jsonl"},
        "streaming": True,
        "sample": {"train": 25},
        "seed": 3,
    }
    trial = run_one(api, runner, "tiny-llama", {"kind": "causal_lm", "dataset": data})
    assert trial["resources"]["data"]["test"] == "5 examples carved out of train (seed 0)"


@pytest.mark.parametrize(
    "training",
    [
        {"max_steps": 5, "eval_steps": 2},
        {"gradient_accumulation": 2, "gradient_checkpointing": True},
        {"precision": "bf16", "tf32": True},
        {"optimizer": "adafactor"},
        {"optimizer": "adamw", "lora_plus_ratio": 16, "batching": "length"},
    ],
)
def test_training_options_give_the_expected_number_of_steps(api: Api, runner: Runner, training: dict[str, Any]) -> None:
    trial = run_one(api, runner, "tiny-llama", {"kind": "causal_lm"}, training=training)
    steps = {"max_steps": 5, "gradient_accumulation": 6}
    expected = next((v for k, v in steps.items() if k in training), 10)
    assert trial["resources"]["steps"] == expected
    if "eval_steps" in training:
        reported = api.call("GET", f"/trials/{trial['id']}/metrics").json()["items"]
        assert [m["step"] for m in reported if m["name"] == "loss"] == [2, 4, 5]


@pytest.mark.parametrize(
    ("task", "pointer", "said"),
    [
        ({"kind": "causal_lm", "template": "{a.__class__}"}, "#/task/template", "{column}"),
        ({"kind": "causal_lm", "template": "nothing"}, "#/task/template", "names no column"),
        ({"kind": "causal_lm", "columns": {"label": "a"}}, "#/task", "prompt, completion, messages"),
        ({"kind": "causal_lm", "metric": "accuracy"}, "#/task/metric", "exact_match"),
        ({"kind": "causal_lm", "template": "{nope}"}, "#/task/template", "has no column 'nope'"),
        ({"kind": "causal_lm", "generation": {"extractor": "regex"}}, "#/task/generation", "pattern"),
        ({"kind": "custom"}, "#/task", "custom section"),
        (
            {"kind": "causal_lm", "dataset": {"path": "c4", "streaming": True}},
            "#/task/dataset",
            "streaming needs sample",
        ),
    ],
)
def test_an_invalid_task_is_rejected_with_its_place(
    api: Api, zoo: Path, task: dict[str, Any], pointer: str, said: str
) -> None:
    from tests.conftest import make_study

    whole = {"dataset": {"path": "json", "data_files": {"train": "sums.jsonl"}}, **task}
    refused = api.call("POST", "/studies", json={**make_study(model={"path": "tiny-llama"}), "task": whole})
    assert refused.status_code == 422
    faults = {f["pointer"]: f["detail"] for f in refused.json()["errors"]}
    assert pointer in faults, faults
    assert said in faults[pointer]


def test_labels_are_matched_by_name_across_splits(zoo: Path) -> None:
    """Another source may number the classes in another order than the training data."""
    import datasets

    names = {"train": ["sport", "business"], "test": ["business", "sport"]}
    splits = {
        name: datasets.Dataset.from_dict({"label": [0, 1]}).cast_column("label", datasets.ClassLabel(names=given))
        for name, given in names.items()
    }
    read = {name: label_reader(split, "label") for name, split in splits.items()}
    assert [read["train"](v) for v in splits["train"]["label"]] == ["sport", "business"]
    assert [read["test"](v) for v in splits["test"]["label"]] == ["business", "sport"]
    unlabelled = datasets.Dataset.from_dict({"label": [0, -1]}).cast(splits["test"].features)
    (bad,) = check_values(unlabelled, [1, 2], {"label": label})
    assert (bad.number, bad.problem) == (2, "is a number without a name: the split is not labelled")


def test_labels_that_share_a_word_are_one_class(api: Api, runner: Runner) -> None:
    words = {str(k): ("even", "odd")[k % 2] for k in range(9)}
    task = {
        "kind": "seq2seq_lm",
        "metric": "accuracy",
        "columns": {"text": "prompt", "target": "sum"},
        "label_words": words,
    }
    rows = [{"prompt": f"{DIGITS[k % 5]} plus {DIGITS[k % 3]}", "sum": str(k % 5 + k % 3)} for k in range(60)]
    write_lines(runner.settings.data_dirs[0] / "words.jsonl", rows)
    task["dataset"] = {"path": "json", "data_files": {"train": "words.jsonl"}}
    trial = run_one(api, runner, "tiny-t5", task, training={"epochs": 6})
    assert trial["state"] == "completed", trial["failure"]
    assert trial["metrics"]["accuracy"] > 0
    assert "f1_positive" in trial["metrics"]  # two classes


@pytest.mark.parametrize(
    ("pattern", "text", "answer"),
    [("(yes)|no", "no", ""), ("(yes)|no", "yes", "yes"), ("y+", "a yy b", "yy"), ("y", "none", None)],
)
def test_patterns_find_the_answer_or_nothing(pattern: str, text: str, answer: str | None) -> None:
    assert extract(text, GenerationSpec(extractor="regex", pattern=pattern)) == answer


def test_an_invalid_pattern_is_rejected_at_submit() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        GenerationSpec(extractor="regex", pattern="(")


def test_packing_is_rejected_if_examples_would_attend_to_each_other(api: Api, runner: Runner, zoo: Path) -> None:
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    OPTForCausalLM(config).save_pretrained(zoo / "tiny-opt")
    tokenizer().save_pretrained(zoo / "tiny-opt")
    task = {"kind": "causal_lm", "metric": "loss", "columns": {"prompt": "prompt", "completion": "completion"}}
    with pytest.raises(AssertionError, match=r"'rejected'.*would see each other in OPTForCausalLM"):
        run_one(api, runner, "tiny-opt", task, training={"packing": True})
    assert run_one(api, runner, "tiny-opt", task)["state"] == "completed"


def test_an_objective_that_the_data_does_not_define_is_rejected(api: Api, runner: Runner) -> None:
    """f1_positive needs two classes, and the data has three. The study fails before training ends."""
    task = {"kind": "sequence_classification", "metric": "f1_positive", "columns": {"text": "text", "label": "label"}}
    rows = [{"text": "goal match", "label": f"c{k % 3}"} for k in range(60)]
    write_lines(runner.settings.data_dirs[0] / "three.jsonl", rows)
    task["dataset"] = {"path": "json", "data_files": {"train": "three.jsonl"}}
    with pytest.raises(AssertionError, match=r"'rejected'.*yields no metric 'f1_positive'"):
        run_one(api, runner, "tiny-bert", task, training={"epochs": 3})


def test_a_stream_with_a_sample_of_every_split_is_trained(api: Api, runner: Runner) -> None:
    task = {
        "kind": "sequence_classification",
        "metric": "accuracy",
        "dataset": {
            "path": "json",
            "data_files": {"train": "train.jsonl", "test": "test.jsonl"},
            "streaming": True,
            "sample": {"train": 30, "test": 5},
        },
    }
    assert run_one(api, runner, "tiny-bert", task)["state"] == "completed"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"path": "/etc/hostname", "bytes": None}, "neither an image file nor rows of numbers"),
        ("/etc/hostname", "neither an image file nor rows of numbers"),
        ([[1, 2], [3]], "neither an image file nor rows of numbers"),
        ([1, 2, 3], "not of shape"),
        ([[0, 256]], "values outside of 0 to 255"),
        ([[0, float("nan")]], "values outside of 0 to 255"),
    ],
)
def test_a_cell_that_is_not_an_image_is_a_bad_row_and_its_path_is_not_read(value: Any, said: str) -> None:
    assert said in _image(value)


def test_an_image_file_that_cannot_be_decoded_is_a_bad_row() -> None:
    assert _decoded({"bytes": b"GIF89a...", "path": None}, []) == "is no image that can be decoded"
    assert _decoded({"bytes": None, "path": None}, []) == "is an image without content"


# --- settings that would make every trial's score equal or meaningless


def refused(api: Api, runner: Runner, model: str, task: dict[str, Any], **changes: Any) -> str:
    body = study_on(model, task, **changes)
    study = api.call("POST", "/studies", json=body).json()
    lease = runner._next_lease()
    assert lease is not None, study
    runner.run_lease(lease)
    read = api.call("GET", f"/studies/{study['id']}").json()
    assert read["state"] == "failed"
    return str(read["reason"])


def study_on(model: str, task: dict[str, Any], **changes: Any) -> dict[str, Any]:
    dataset = {"path": "json", "data_files": {"train": "sums.jsonl"}}
    return make_study(model={"path": model}, task={"dataset": dataset, **task}, search={"trials": 1}, **changes)


def test_label_words_with_the_same_tokens_are_rejected(api: Api, runner: Runner) -> None:
    task = {
        "kind": "seq2seq_lm",
        "columns": {"text": "prompt", "target": "parity"},
        "label_words": {"0": "zebra", "1": "giraffe"},
        "metric": "accuracy",
    }
    reason = refused(api, runner, "tiny-t5", task)
    assert "makes the same tokens of 'zebra' and 'giraffe'; choose words that it knows" in reason


def test_references_without_an_answer_are_rejected(api: Api, runner: Runner) -> None:
    task = {
        "kind": "causal_lm",
        "columns": {"prompt": "prompt", "completion": "a"},
        "generation": {"extractor": "gsm8k", "max_new_tokens": 4},
        "metric": "exact_match",
    }
    assert "gsm8k finds no answer in any reference of the validation split" in refused(api, runner, "tiny-llama", task)


def test_truncated_completions_are_counted(api: Api, runner: Runner, zoo: Path) -> None:
    rows = [{"prompt": "one plus", "completion": "two " * (30 if k % 4 else 3)} for k in range(40)]
    write_lines(zoo / "long.jsonl", rows)
    dataset = {"path": "json", "data_files": {"train": "long.jsonl"}}
    trial = run_one(
        api,
        runner,
        "tiny-llama",
        {"kind": "causal_lm", "metric": "loss", "dataset": dataset},
        training={"max_length": 16, "epochs": 1},
    )
    said = trial["resources"]["data"]
    assert re.search(
        r"\d+ cut to 16 tokens \(the end of the completion is not learned; training.max_length\)", said["train"]
    )
    total = sum(int(re.findall(r"(\d+) cut to", said[name])[0]) for name in ("train", "validation", "test"))
    assert total == 30


def test_generation_is_greedy_even_if_the_checkpoint_configures_sampling(
    api: Api, runner: Runner, zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from transformers import GenerationMixin

    folder = zoo / f"beams-{tmp_path.name}"
    shutil.copytree(zoo / "tiny-llama", folder)
    asked = {"num_beams": 4, "repetition_penalty": 1.5, "do_sample": True, "no_repeat_ngram_size": 2}
    (folder / "generation_config.json").write_text(json.dumps({**asked, "eos_token_id": 1, "pad_token_id": 0}))
    used: list[Any] = []
    original = GenerationMixin._prepare_generation_config

    def spy(self: Any, *arguments: Any, **named: Any) -> Any:
        found = original(self, *arguments, **named)
        used.append(found[0])
        return found

    monkeypatch.setattr(GenerationMixin, "_prepare_generation_config", spy)
    task = {"kind": "causal_lm", "generation": {"extractor": "gsm8k", "max_new_tokens": 4}, "metric": "exact_match"}
    run_one(api, runner, folder.name, task, training={"epochs": 1})
    assert used
    for config in used:
        assert (config.num_beams, config.do_sample) == (1, False)
        assert config.repetition_penalty in (None, 1.0)
        assert not config.no_repeat_ngram_size


def test_null_keys_of_messages_are_removed() -> None:
    from workers.tasks.causal_lm import _without_nulls

    call = {"function": {"name": "f", "arguments": {"path": "y", "n": None, "city": None}}}
    assert _without_nulls([{"role": "assistant", "content": "", "tool_calls": [call], "name": None}]) == [
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"path": "y"}}}]}
    ]


def test_a_tokenizer_without_an_end_of_text_token_is_rejected(
    api: Api, runner: Runner, zoo: Path, tmp_path: Path
) -> None:
    import shutil

    folder = zoo / f"endless-{tmp_path.name}"
    shutil.copytree(zoo / "tiny-llama", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    reason = refused(api, runner, folder.name, {"kind": "causal_lm", "metric": "loss"})
    assert "has no end-of-text token, without which no completion ends" in reason
