"""Shared by text tasks: the tokenizer, and the text of a row."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

import cdka
from service.schemas.specs import StudySpec, TaskSpec, template_fields

from ..failures import Rejected
from ..inputs.splits import Splits


def load_tokenizer(study: StudySpec, model_path: str) -> Any:
    """A model's tokenizer, with a padding token.

    Raises:
        Rejected: it has none.
    """
    where, file = cdka.model_source(model_path)
    form = {} if file is None else {"gguf_file": file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=study.model.revision, trust_remote_code=False, **form)
    except (OSError, ValueError) as error:
        raise Rejected(f"no tokenizer in {model_path!r}: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_parts(study: StudySpec, model_path: str, tokenizer: Any) -> dict[str, Any]:
    """The part of a cache key for the tokenizer: its whole definition, not its name."""
    whole = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else tokenizer.get_vocab()
    return {
        "model": [study.model_key, model_path],
        "tokenizer": whole,
        "chat_template": tokenizer.chat_template,
        "special": sorted((name, str(token)) for name, token in tokenizer.special_tokens_map.items()),
        "max_length": study.training.max_length,
        "kind": study.task.kind,
    }


def reading_of(task: TaskSpec, splits: Splits, name: str) -> tuple[dict[str, str], str | None]:
    """Roles and template of a split: its own source's, or the training data's if it was carved out."""
    if task.evaluation is None or name == "train" or name in splits.carved:
        return task.roles, task.template
    return task.evaluation_roles, task.evaluation.template or task.template


def text_of(row: dict[str, Any], column: str, template: str | None) -> str:
    """The text of a row: one column, or the filled template."""
    if template is None:
        return str(row[column])
    return template.format_map({name: row[name] for name in template_fields(template)})
