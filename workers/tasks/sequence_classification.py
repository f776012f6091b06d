"""Classification of texts and of pairs of texts, by an encoder or a decoder."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import numpy as np
import torch
from peft import TaskType
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from service.schemas.specs import StudySpec

from ..inputs.base_models import WarmModel
from ..inputs.labels import UNKNOWN, label_reader
from ..inputs.splits import Splits
from ..inputs.token_cache import TokenisedCache, mapped
from .batches import batches
from .classification import classification_scores, load_classifier, ordered_classes
from .task import Prepared, Scores
from .texts import load_tokenizer, reading_of, tokenizer_parts

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "labels")


def prepare_texts(
    study: StudySpec,
    model_path: str,
    splits: Splits,
    cache: TokenisedCache,
    reader_of: Callable[[Any, str], Callable[[Any], float]],
    facts: dict[str, Any],
) -> Prepared:
    """Tokenise texts or pairs of texts to at most ``training.max_length`` tokens; batches are padded later.

    ``reader_of`` makes a function that reads the labels of a split's column as the model's targets.
    """
    tokenizer = load_tokenizer(study, model_path)

    shared = tokenizer_parts(study, model_path, tokenizer)

    def tokenised(name: str) -> Any:
        split, (roles, _) = getattr(splits, name), reading_of(study.task, splits, name)
        read = reader_of(split, roles["label"])

        def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
            pair = [batch[roles["text_pair"]]] if "text_pair" in roles else []
            encoded = tokenizer(batch[roles["text"]], *pair, truncation=True, max_length=study.training.max_length)
            encoded["labels"] = [read(label) for label in batch[roles["label"]]]
            return dict(encoded)

        parts = {
            **shared,
            "data": splits.parts[name].content(),
            "roles": roles,
            "facts": facts,
        }
        return cache.get(parts, lambda folder: mapped(split, encode, folder, batched=True))

    return Prepared(
        train=tokenised("train"),
        validation=tokenised("validation"),
        test=tokenised("test"),
        collator=DataCollatorWithPadding(tokenizer),
        tokenizer=tokenizer,
        origins=splits.told(),
        facts=facts,
    )


class SequenceClassification:
    """See :class:`~workers.tasks.task.Task` and, for its classes, :mod:`~workers.tasks.classification`."""

    task_type: TaskType | None = TaskType.SEQ_CLS
    heads: tuple[str, ...] = ()

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """See :func:`prepare_texts`."""
        classes = ordered_classes(study, model_path, splits)
        index = {label: k for k, label in enumerate(classes)}

        def reader_of(split: Any, column: str) -> Callable[[Any], int]:
            name = label_reader(split, column)
            return lambda label: index.get(name(label), UNKNOWN)

        return prepare_texts(study, model_path, splits, cache, reader_of, {"classes": classes})

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The encoder or decoder with a classification head of one logit per class."""
        warm = load_classifier(AutoModelForSequenceClassification, study, model_path, prepared.facts["classes"])
        set_padding(warm.model, prepared.tokenizer)
        return warm

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Accuracy, F1, Matthews correlation, loss."""
        return judge_logits(study, model, split, prepared, INPUTS)


def set_padding(model: Any, tokenizer: Any) -> None:
    """Tell a model which token pads its batches: a decoder classifies by the last token that is none."""
    if tokenizer.pad_token_id is not None:
        model.config.pad_token_id = model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def judge_logits(study: StudySpec, model: Any, split: Any, prepared: Prepared, inputs: tuple[str, ...]) -> Scores:
    """Score the largest logit of every example."""
    logits = np.zeros((len(split), len(prepared.facts["classes"])))
    labels = np.asarray(split["labels"])
    for chosen, batch in batches(study, model, split, prepared.collator, inputs):
        logits[chosen] = model(**{k: v for k, v in batch.items() if k != "labels"}).logits.double().cpu().numpy()
    known = labels != UNKNOWN
    losses = torch.nn.functional.cross_entropy(
        torch.tensor(logits[known]), torch.tensor(labels[known]), reduction="none"
    ).tolist()
    return classification_scores(logits.argmax(-1), labels, logits.shape[1], losses, study.objective.metric)
