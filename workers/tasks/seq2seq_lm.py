"""Text to text by an encoder and a decoder, as T5 does. Classes may be words, scored or generated."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from peft import TaskType
from transformers import AutoModelForSeq2SeqLM, DataCollatorForSeq2Seq

from service.schemas.specs import StudySpec

from ..failures import Rejected
from ..inputs.base_models import WarmModel, load_warm
from ..inputs.splits import FAULT, SPLITS, Splits, usable
from ..inputs.token_cache import TokenisedCache, mapped
from ..inputs.values import target_keys
from .answers import extract
from .batches import batches, token_losses
from .classification import classification_scores
from .task import Prepared, Scores
from .texts import GREEDY, load_tokenizer, note_cut, reading_of, require_answers, text_of, tokenizer_parts

INPUTS = ("input_ids", "attention_mask", "labels")
IGNORED = -100
_SCORED = frozenset({"accuracy", "f1", "f1_positive", "matthews_correlation"})


class Seq2SeqLM:
    """See :class:`~workers.tasks.task.Task`.

    With ``label_words`` the target column's values become words; the class whose word has the highest likelihood is
    the prediction. ``exact_match`` compares generated texts.
    """

    task_type: TaskType | None = TaskType.SEQ_2_SEQ_LM
    heads: tuple[str, ...] = ()

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """Tokenise source and target to at most ``training.max_length`` tokens each."""
        tokenizer = load_tokenizer(study, model_path)
        task = study.task
        words = task.label_words
        most = study.training.max_length
        shared = tokenizer_parts(study, model_path, tokenizer)
        if words:
            _require_distinct(words, tokenizer)
        if words is None and _SCORED & study.metrics_wanted:
            raise Rejected(f"{', '.join(sorted(_SCORED & study.metrics_wanted))} needs task.label_words")

        def tokenised(name: str, split: Any) -> Any:
            roles, template = reading_of(task, splits, name)

            def encode(row: dict[str, Any]) -> dict[str, Any]:
                target = _target(row[roles["target"]], words, split.features[roles["target"]])
                source = text_of(row, roles.get("text", "text"), template)
                encoded = tokenizer(source, truncation=True, max_length=most)
                labels = tokenizer(text_target=target, truncation=True, max_length=most)
                return {
                    "input_ids": encoded["input_ids"],
                    "attention_mask": encoded["attention_mask"],
                    "labels": labels["input_ids"],
                    "reference": target,
                    "cut": len(labels["input_ids"]) == most and len(tokenizer(text_target=target)["input_ids"]) > most,
                    FAULT: None if encoded["input_ids"] and labels["input_ids"] else "has no token",
                }

            parts = {
                **shared,
                "form": 2,
                "data": splits.parts[name].content(),
                "roles": roles,
                "template": template,
                "words": words,
            }
            return cache.get(parts, lambda folder: mapped(split, encode, folder))

        encoded = {name: tokenised(name, getattr(splits, name)) for name in SPLITS}
        made = usable(encoded, splits, task.roles["target"])
        for name, data in made.items():
            made[name] = note_cut(splits, name, data, most, "the end of the target is not learned")
        if "exact_match" in study.metrics_wanted:
            require_answers(splits, made, task.generation)
        return Prepared(
            **made,
            collator=DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED),
            tokenizer=tokenizer,
            origins=splits.told(),
            facts={"words": list(dict.fromkeys(words.values())) if words else None},
        )

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The encoder with its decoder."""
        return load_warm(AutoModelForSeq2SeqLM, model_path, study)

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Loss over target tokens; class metrics from scored words; exact match of generated texts if wanted."""
        words = prepared.facts["words"]
        generated = "exact_match" in wanted
        sums, counts = np.zeros(len(split)), np.zeros(len(split))
        scores = np.zeros((len(split), len(words or [])))
        matches = np.zeros(len(split))
        for chosen, batch in batches(study, model, split, prepared.collator, INPUTS):
            labels = batch.pop("labels")
            losses, tokens = token_losses(model(**batch, labels=labels).logits, labels)
            sums[chosen], counts[chosen] = losses.numpy(), tokens.numpy()
            if words:
                scores[chosen] = _word_scores(model, batch, words, prepared.tokenizer)
            if generated:
                made = model.generate(**batch, max_new_tokens=study.task.generation.max_new_tokens, **GREEDY)
                texts = prepared.tokenizer.batch_decode(made, skip_special_tokens=True)
                for k, text in zip(chosen, texts, strict=True):
                    expected = extract(split[k]["reference"], study.task.generation)
                    matches[k] = expected is not None and extract(text, study.task.generation) == expected
        objective = study.objective.metric
        values: dict[str, float] = {}
        per_example: list[float] | None = None
        if words:
            index = {word: k for k, word in enumerate(words)}
            truth = np.asarray([index[word] for word in split["reference"]])
            found = classification_scores(scores.argmax(-1), truth, len(words), [0.0], objective)
            values, per_example = dict(found.metrics), found.per_example if objective == "accuracy" else None
        values["loss"] = float(sums.sum() / counts.sum())
        if generated:
            values["exact_match"] = float(matches.mean())
            per_example = matches.tolist() if objective == "exact_match" else per_example
        return Scores(values, per_example)


def _require_distinct(words: dict[str, str], tokenizer: Any) -> None:
    """Check that the tokenizer tells the words of the classes apart.

    Raises:
        Rejected: two have the same tokens.
    """
    seen: dict[tuple[int, ...], str] = {}
    for word in dict.fromkeys(words.values()):
        other = seen.setdefault(tuple(tokenizer(text_target=word)["input_ids"]), word)
        if other != word:
            raise Rejected(
                f"task.label_words: the model's tokenizer makes the same tokens of {other!r} and {word!r}; choose "
                "words that it knows"
            )


def _target(value: Any, words: dict[str, str] | None, feature: Any) -> str:
    if words is None:
        return str(value)
    return next(words[key] for key in target_keys(value, getattr(feature, "names", None)) if key in words)


def _word_scores(model: Any, batch: dict[str, Any], words: list[str], tokenizer: Any) -> np.ndarray:
    """Log-likelihood of every word as the target of every row, ``(rows, words)``; the source is encoded once."""
    encoded = model.get_base_model().get_encoder()(**batch)
    rows = len(batch["input_ids"])
    found = np.zeros((rows, len(words)))
    for k, word in enumerate(words):
        ids = tokenizer(text_target=word, return_tensors="pt")["input_ids"].to(batch["input_ids"].device)
        labels = ids.expand(rows, -1).contiguous()
        outputs = model(encoder_outputs=encoded, attention_mask=batch["attention_mask"], labels=labels)
        found[:, k] = -token_losses(outputs.logits, labels)[0].numpy()
    return found
