"""Classification of images by a vision transformer."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from peft import TaskType
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from service.schemas.specs import StudySpec

from ..failures import Rejected
from ..inputs.base_models import WarmModel, load_warm
from ..inputs.splits import Splits
from ..inputs.token_cache import TokenisedCache, mapped
from .classification import class_index, classes_of, label_reader
from .sequence_classification import judge_logits
from .task import Prepared, Scores
from .texts import reading_of

INPUTS = ("pixel_values", "labels")


class ImageClassification:
    """See :class:`~workers.tasks.task.Task`. An image is a file, or rows of grey or colour values from 0 to 255."""

    task_type: TaskType | None = None
    heads: tuple[str, ...] = ("classifier",)

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """Resize and normalise every image with the model's processor."""
        try:
            processor = AutoImageProcessor.from_pretrained(
                model_path, revision=study.model.revision, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, ImportError) as error:
            raise Rejected(f"no image processor in {model_path!r}: {str(error).splitlines()[0]}") from error
        classes = classes_of(splits.train, study.task.roles["label"])
        index = {label: k for k, label in enumerate(classes)}

        def made(name: str) -> Any:
            split = getattr(splits, name)
            roles, _ = reading_of(study.task, splits, name)
            read = label_reader(split, roles["label"])

            def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
                images = [_image(value) for value in batch[roles["image"]]]
                pixels = processor(images, return_tensors="np")["pixel_values"].astype(np.float32)
                labels = [class_index(index, read(label)) for label in batch[roles["label"]]]
                return {"pixel_values": list(pixels), "labels": labels}

            parts = {
                "data": split._fingerprint,
                "model": [study.model_key, model_path],
                "processor": processor.to_json_string(),
                "roles": roles,
                "classes": [str(c) for c in classes],
                "kind": study.task.kind,
            }
            return cache.get(parts, lambda folder: mapped(split, encode, folder, batched=True))

        return Prepared(
            train=made("train"),
            validation=made("validation"),
            test=made("test"),
            collator=_collate,
            tokenizer=None,
            origins=splits.origins,
            facts={"classes": [str(label) for label in classes]},
        )

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The vision model with a classification head of one logit per class."""
        classes = prepared.facts["classes"]
        return load_warm(
            AutoModelForImageClassification,
            model_path,
            study,
            num_labels=len(classes),
            id2label=dict(enumerate(classes)),
            label2id={label: k for k, label in enumerate(classes)},
        )

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Accuracy, F1, Matthews correlation, loss."""
        return judge_logits(study, model, split, prepared, INPUTS)


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pixels = torch.tensor(np.asarray([row["pixel_values"] for row in rows], dtype=np.float32))
    return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


def _image(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    try:
        pixels = np.asarray(value, dtype=np.float32)
        if pixels.ndim not in (2, 3) or pixels.min() < 0 or pixels.max() > 255:
            raise ValueError
        return Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB")
    except (TypeError, ValueError):
        raise Rejected("an image must be a file that datasets can decode, or rows of values from 0 to 255") from None
