"""Classification of images by a vision transformer."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from peft import TaskType
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModelForImageClassification

from service.schemas.specs import StudySpec

from ..failures import Rejected, first_line
from ..inputs.base_models import WarmModel
from ..inputs.labels import UNKNOWN, label_reader
from ..inputs.splits import FAULT, SPLITS, Splits, usable
from ..inputs.token_cache import TokenisedCache, mapped
from .classification import load_classifier, ordered_classes
from .sequence_classification import judge_logits
from .task import Prepared, Scores
from .texts import reading_of

INPUTS = ("pixel_values", "labels")


class ImageClassification:
    """See :class:`~workers.tasks.task.Task`. An image is a file, or rows of grey or colour values from 0 to 255."""

    task_type: TaskType | None = None
    heads: tuple[str, ...] = ()

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """Resize and normalise every image with the model's processor."""
        try:
            processor = AutoImageProcessor.from_pretrained(
                model_path, revision=study.model.revision, trust_remote_code=False, backend="pil"
            )
        except (OSError, ValueError, ImportError) as error:
            said = first_line(error).replace(model_path, study.model.path)
            raise Rejected(f"no image processor in {study.model.path!r}: {said}") from error
        classes = ordered_classes(study, model_path, splits)
        index = {label: k for k, label in enumerate(classes)}

        def made(name: str) -> Any:
            split = getattr(splits, name)
            roles, _ = reading_of(study.task, splits, name)
            label_name = label_reader(split, roles["label"])
            files = isinstance(split.features[roles["image"]], datasets.Image)
            # Where a cell may name a file: in the dataset's own folder, or what the hub's library downloaded.
            own = [path for path in splits.parts[name].paths if path.is_dir()]
            own.append(Path(datasets.config.HF_CACHE_HOME).resolve())
            if files:
                # One that cannot be decoded is a bad row, not the end of the whole column.
                split = split.cast_column(roles["image"], datasets.Image(decode=False))

            def encode(batch: dict[str, list[Any]]) -> dict[str, Any]:
                read = [_decoded(value, own) if files else _image(value) for value in batch[roles["image"]]]
                images = [found if isinstance(found, Image.Image) else _BLANK for found in read]
                try:
                    pixels = processor(images, return_tensors="np")["pixel_values"].astype(np.float32)
                except ValueError as error:
                    raise Rejected(
                        "the model's image processor makes images of different sizes; set do_resize in its "
                        f"preprocessor_config.json ({first_line(error)[:200]})"
                    ) from error
                return {
                    "pixel_values": list(pixels),
                    "labels": [index.get(label_name(label), UNKNOWN) for label in batch[roles["label"]]],
                    FAULT: [found if isinstance(found, str) else None for found in read],
                }

            parts = {
                "data": splits.parts[name].content(),
                "model": [study.model_key, model_path],
                "processor": processor.to_json_string(),
                "roles": roles,
                "classes": [str(c) for c in classes],
                "kind": study.task.kind,
                "form": 2,
            }
            return cache.get(parts, lambda folder: mapped(split, encode, folder, batched=True))

        encoded = usable({name: made(name) for name in SPLITS}, splits, study.task.roles["image"])
        return Prepared(
            **encoded,
            collator=_collate,
            tokenizer=None,
            image_processor=processor,
            origins=splits.told(),
            facts={"classes": classes},
        )

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The vision model with a classification head of one logit per class."""
        return load_classifier(AutoModelForImageClassification, study, model_path, prepared.facts["classes"])

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Accuracy, F1, Matthews correlation, loss."""
        return judge_logits(study, model, split, prepared, INPUTS)


def _collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    pixels = torch.tensor(np.asarray([row["pixel_values"] for row in rows], dtype=np.float32))
    return {"pixel_values": pixels, "labels": torch.tensor([row["labels"] for row in rows])}


# Stands in for an image that cannot be read, so that its batch can be encoded.
_BLANK = Image.new("RGB", (8, 8))


def _decoded(value: dict[str, Any], own: Sequence[Path]) -> Image.Image | str:
    """The image of a cell of an image column, or what is wrong with it."""
    source: Any = None if value.get("bytes") is None else io.BytesIO(value["bytes"])
    if source is None:
        if value.get("path") is None:
            return "is an image without content"
        source = Path(value["path"]).resolve()
        if not Path(value["path"]).is_absolute() or not any(source.is_relative_to(folder) for folder in own):
            return "names a file outside of the dataset"
    try:
        with Image.open(source) as found:
            return _upright(found)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return "is no image that can be decoded"


def _upright(found: Image.Image) -> Image.Image | str:
    """An image in 8-bit colour, turned as its EXIF tag says."""
    turned = ImageOps.exif_transpose(found)
    if turned.mode.startswith("I;16") or turned.mode == "I":
        values = np.asarray(turned, dtype=np.float64)
        # Of 16 bits; Pillow would cut at 255.
        turned = Image.fromarray(np.clip(values / (257 if values.max() > 255 else 1), 0, 255).round().astype(np.uint8))
    elif turned.mode == "F":
        values = np.asarray(turned, dtype=np.float64)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 255 or values.max() <= 1:
            return "has floating-point values other than 0 to 255"
    return turned.convert("RGB")


def _image(value: Any) -> Image.Image | str:
    """The image of rows of values, or what is wrong with them.

    A path in a cell of plain data is not followed: it could name any file of the runner.
    """
    try:
        pixels = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        return "is neither an image file nor rows of numbers"
    if pixels.ndim not in (2, 3) or 0 in pixels.shape or (pixels.ndim == 3 and pixels.shape[-1] not in (3, 4)):
        return "is not of shape (height, width) or (height, width, 3)"
    if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 255:
        return "has values outside of 0 to 255"
    if 0 < pixels.max() <= 1 and not np.array_equal(pixels, pixels.round()):
        return "has values between 0 and 1 where 0 to 255 are meant"
    return Image.fromarray(pixels.round().astype(np.uint8)).convert("RGB")
