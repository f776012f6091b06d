"""Classification of texts (and pairs of texts)."""

from __future__ import annotations

from typing import Any

import numpy as np
from peft import TaskType
from sklearn import metrics
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from service.schemas.specs import StudySpec

from ..data import Splits
from ..failures import Rejected
from ..models import WarmModel, load_warm
from .task import Prepared, Scores


class SequenceClassification:
    """See :class:`~workers.tasks.task.Task`. Classes are those of the training split, sorted by name."""

    task_type = TaskType.SEQ_CLS

    def prepare(self, study: StudySpec, model_path: str, splits: Splits) -> Prepared:
        """Tokenise to at most ``training.max_length`` tokens; padding is left to each batch."""
        columns = study.task.columns
        classes = _classes(splits.train, columns.label)
        index = {label: k for k, label in enumerate(classes)}
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                model_path, revision=study.model.revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise Rejected(f"no tokenizer in {model_path!r}: {str(error).splitlines()[0]}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            pair = [batch[columns.text_pair]] if columns.text_pair else []
            encoded = tokenizer(batch[columns.text], *pair, truncation=True, max_length=study.training.max_length)
            encoded["labels"] = [_index(index, label) for label in batch[columns.label]]
            return dict(encoded)

        def tokenised(split: Any) -> Any:
            return split.map(encode, batched=True, remove_columns=split.column_names)

        return Prepared(
            train=tokenised(splits.train),
            validation=tokenised(splits.validation),
            test=tokenised(splits.test),
            collator=DataCollatorWithPadding(tokenizer),
            tokenizer=tokenizer,
            origins=splits.origins,
            facts={"classes": [str(label) for label in classes]},
        )

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The encoder or decoder with a classification head of one logit a class."""
        classes = prepared.facts["classes"]
        warm = load_warm(
            AutoModelForSequenceClassification,
            model_path,
            study.model.revision,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={label: k for k, label in enumerate(classes)},
        )
        if warm.model.config.pad_token_id is None:
            warm.model.config.pad_token_id = prepared.tokenizer.pad_token_id
        return warm

    def score(self, predictions: np.ndarray, labels: np.ndarray, objective: str) -> Scores:
        """Accuracy, macro F1 and Matthews correlation; accuracy is a mean over examples."""
        chosen = predictions.argmax(axis=-1)
        values = {
            "accuracy": float(metrics.accuracy_score(labels, chosen)),
            "f1": float(metrics.f1_score(labels, chosen, average="macro")),
            "matthews_correlation": float(metrics.matthews_corrcoef(labels, chosen)),
        }
        hits = (chosen == labels).astype(float).tolist() if objective == "accuracy" else None
        return Scores(values, hits)


def _classes(train: Any, column: str) -> list[Any]:
    feature = train.features[column]
    if hasattr(feature, "names"):
        return list(range(len(feature.names)))
    classes = sorted(set(train[column]), key=str)
    if len(classes) < 2:
        raise Rejected(f"the training split's column {column!r} holds {len(classes)} class; it takes two or more")
    return classes


def _index(index: dict[Any, int], label: Any) -> int:
    if label not in index:
        raise Rejected(f"label {label!r} does not occur in the training split, which has: {', '.join(map(str, index))}")
    return index[label]
