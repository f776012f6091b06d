"""Instruction tuning of decoders on prompts with completions, or on conversations. The loss counts completions only."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from peft import TaskType
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq

from service.schemas.specs import StudySpec

from ..failures import Rejected, first_line
from ..inputs.base_models import WarmModel, load_warm
from ..inputs.splits import FAULT, SPLITS, Splits, usable
from ..inputs.token_cache import TokenisedCache, mapped
from .answers import extract
from .batches import batches, device_of, token_losses
from .task import Prepared, Scores
from .texts import (
    GREEDY,
    load_tokenizer,
    note_cut,
    reading_of,
    require_answers,
    require_end,
    text_of,
    tokenizer_parts,
)

INPUTS = ("input_ids", "attention_mask", "labels")
IGNORED = -100


class CausalLM:
    """See :class:`~workers.tasks.task.Task`.

    ``loss`` is the mean over all completion tokens of a split, ``perplexity`` its exponential; ``exact_match`` compares
    the answers extracted from the greedily generated completion and from the reference.
    """

    task_type: TaskType | None = TaskType.CAUSAL_LM
    heads: tuple[str, ...] = ()

    def prepare(self, study: StudySpec, model_path: str, splits: Splits, cache: TokenisedCache) -> Prepared:
        """Tokenise prompt and completion; leave out examples whose prompt has ``max_length`` tokens or more."""
        tokenizer = load_tokenizer(study, model_path)
        require_end(study, tokenizer)
        task, most = study.task, study.training.max_length
        shared = tokenizer_parts(study, model_path, tokenizer)

        generates = "exact_match" in study.metrics_wanted

        def tokenised(name: str, split: Any) -> tuple[dict[str, Any], Any]:
            roles, template = reading_of(task, splits, name)

            def encode(row: dict[str, Any]) -> dict[str, Any]:
                prompt, completion, reference, fault = _texts(row, roles, template, tokenizer)
                ids = prompt + completion
                labels = [IGNORED] * len(prompt) + completion
                if fault is None and generates and not prompt:
                    fault = "gives an empty prompt, from which nothing can be generated"
                if fault is None and (not completion or len(ids) < 2):
                    fault = "leaves no token to learn"
                return {
                    "input_ids": ids[:most],
                    "attention_mask": [1] * len(ids[:most]),
                    "labels": labels[:most],
                    "prompt_length": len(prompt),
                    "reference": reference,
                    "cut": len(ids) > most,
                    FAULT: fault,
                }

            parts = {
                **shared,
                "form": 2,
                "data": splits.parts[name].content(),
                "roles": roles,
                "template": template,
                "generates": generates,
            }
            return parts, cache.get(parts, lambda folder: mapped(split, encode, folder))

        encoded = {name: tokenised(name, getattr(splits, name)) for name in SPLITS}
        column = task.roles.get("messages") or task.roles["completion"]
        made = usable({name: data for name, (_, data) in encoded.items()}, splits, column)
        for name, data in made.items():
            places = [k for k, length in enumerate(data["prompt_length"]) if length < most]
            left_out = len(data) - len(places)
            if not places:
                raise Rejected(f"every prompt of the {name} split has {most} tokens (training.max_length) or more")
            if left_out:
                made[name] = data.select(places)
                splits.parts[name] = splits.parts[name].keep(places)
                splits.parts[name].notes.append(f"{left_out} left out (prompt of {most} tokens or more)")
            made[name] = note_cut(splits, name, made[name], most, "the end of the completion is not learned")
        if generates:
            require_answers(splits, made, task.generation)
        if study.training.packing:
            kept, pad = made["train"], tokenizer.pad_token_id
            parts = {**encoded["train"][0], "kept": splits.parts["train"].content(), "packed": True}
            made["train"] = cache.get(parts, lambda folder: _packed(kept, most, pad, folder))
        collator: Any = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
        return Prepared(
            **made,
            collator=_PackedCollator(collator) if study.training.packing else collator,
            tokenizer=tokenizer,
            origins=splits.told(),
        )

    def load_model(self, study: StudySpec, model_path: str, prepared: Prepared) -> WarmModel:
        """The decoder with its own language-modelling head."""
        warm = load_warm(AutoModelForCausalLM, model_path, study)
        if study.training.packing:
            # A key-value cache is useless in training and would hide the packed examples' boundaries.
            warm.model.config.use_cache = False
            _require_separation(warm.model)
        return warm

    def judge(self, study: StudySpec, model: Any, split: Any, prepared: Prepared, wanted: Collection[str]) -> Scores:
        """Loss and perplexity; exact match of generated answers if it is wanted."""
        sums = torch.zeros(len(split), dtype=torch.float64)
        counts = torch.zeros(len(split), dtype=torch.long)
        for chosen, batch in batches(study, model, split, prepared.collator, INPUTS, study.training.batch_size):
            labels = batch.pop("labels")
            logits = model(**batch).logits
            sums[chosen], counts[chosen] = token_losses(logits[:, :-1], labels[:, 1:])
        loss = float(sums.sum() / counts.sum())
        values = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        per_example: list[float] | None = None
        if "exact_match" in wanted:
            matches = self._exact_matches(study, model, split, prepared)
            values["exact_match"] = sum(matches) / len(matches)
            if study.objective.metric == "exact_match":
                per_example = matches
        return Scores(values, per_example)

    def _exact_matches(self, study: StudySpec, model: Any, split: Any, prepared: Prepared) -> list[float]:
        generation, tokenizer = study.task.generation, prepared.tokenizer
        device = device_of(model)
        prompts = [
            row["input_ids"][: row["prompt_length"]] for row in split.select_columns(["input_ids", "prompt_length"])
        ]
        order = sorted(range(len(prompts)), key=lambda k: (-len(prompts[k]), k))
        matches = [0.0] * len(prompts)
        enabled = study.training.precision == "bf16"
        for start in range(0, len(order), generation.batch_size):
            chosen = order[start : start + generation.batch_size]
            padded = tokenizer.pad(
                {"input_ids": [prompts[k] for k in chosen]}, padding_side="left", return_tensors="pt"
            )
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
                made = model.generate(
                    input_ids=padded["input_ids"].to(device),
                    attention_mask=padded["attention_mask"].to(device),
                    max_new_tokens=generation.max_new_tokens,
                    **GREEDY,
                    pad_token_id=tokenizer.pad_token_id,
                )
            texts = tokenizer.batch_decode(made[:, padded["input_ids"].shape[1] :], skip_special_tokens=True)
            for k, text in zip(chosen, texts, strict=True):
                expected = extract(split[k]["reference"], generation)
                matches[k] = float(expected is not None and extract(text, generation) == expected)
        return matches


def _texts(
    row: dict[str, Any], roles: dict[str, str], template: str | None, tokenizer: Any
) -> tuple[list[int], list[int], str, str | None]:
    """Tokens of prompt and completion, the completion's text, and what prevents them, if anything does."""
    if "messages" in roles:
        if tokenizer.chat_template is None:
            raise Rejected("the model's tokenizer has no chat template; give prompt and completion columns instead")
        # Keys that other rows have are null here.
        messages = _without_nulls(row[roles["messages"]])
        reference = str(messages[-1]["content"])
        try:
            before = tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
            whole = tokenizer.apply_chat_template(messages, tokenize=False)
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            return [], [], reference, f"is refused by the model's chat template: {first_line(error)}"
        if not whole.startswith(before):
            fault = "cannot be trained on: the chat template alters earlier messages when the last one is added"
            return [], [], reference, fault
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        completion = tokenizer(whole[len(before) :], add_special_tokens=False)["input_ids"]
        return prompt, completion, reference, None
    reference = str(row[roles["completion"]])
    prompt = tokenizer(text_of(row, roles.get("prompt", "prompt"), template))["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id != tokenizer.bos_token_id:
        prompt = prompt[:-1]
    completion = tokenizer(reference, add_special_tokens=False)["input_ids"]
    return prompt, [*completion, tokenizer.eos_token_id], reference, None


def _without_nulls(value: Any) -> Any:
    """A message without the keys that only other rows have, at any depth."""
    if isinstance(value, dict):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _packed(split: Any, most: int, pad: int, folder: Path) -> Any:
    """Pack whole examples into rows of ``most`` tokens, in order.

    Positions restart with each example, and attention separates examples by them. The rest of a row is padding, which
    counts as an example of its own.
    """

    def pack(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": []}
        ids: list[int] = []
        labels: list[int] = []
        positions: list[int] = []

        def close() -> None:
            nonlocal ids, labels, positions
            if ids:
                rest = most - len(ids)
                rows["input_ids"].append(ids + [pad] * rest)
                rows["labels"].append(labels + [IGNORED] * rest)
                rows["position_ids"].append(positions + list(range(rest)))
            ids, labels, positions = [], [], []

        for tokens, wanted in zip(batch["input_ids"], batch["labels"], strict=True):
            if len(ids) + len(tokens) > most:
                close()
            ids, positions = ids + tokens, positions + list(range(len(tokens)))
            # The first token of an example must not be predicted from the previous example.
            labels = [*labels, IGNORED, *wanted[1:]]
        close()
        return rows

    return mapped(split, pack, folder, "packed", batched=True, batch_size=1000)


def _require_separation(model: Any) -> None:
    """Check that packed examples do not attend to each other: not every model separates them by positions.

    Raises:
        Rejected: the second example's logits change when the first example does.
    """
    rows = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8], [4, 3, 2, 1, 5, 6, 7, 8]], device=device_of(model))
    positions = torch.arange(4, device=rows.device).repeat(2, 2)
    accepted = "position_ids" in inspect.signature(model.forward).parameters
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            # One row at a time and without a mask, as training packs them.
            seen = [
                model(input_ids=row[None], **({"position_ids": place[None]} if accepted else {})).logits[0, 4:]
                for row, place in zip(rows, positions, strict=True)
            ]
    finally:
        model.train(training)
    if not torch.allclose(seen[0].float(), seen[1].float(), rtol=1e-3, atol=1e-3):
        raise Rejected(
            f"training.packing: packed examples would see each other in {type(model).__name__}, which does not "
            "separate them by their positions; turn packing off"
        )


class _PackedCollator:
    """Packed rows are of one length and need no mask; other rows are padded."""

    def __init__(self, padding: Any) -> None:
        self._padding = padding

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        if "position_ids" not in rows[0]:
            return self._padding(rows)
        return {name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels", "position_ids")}
