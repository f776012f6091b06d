"""Shared by text tasks: the tokenizer, and the text of a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import cdka
from service.schemas.specs import GenerationSpec, StudySpec, TaskSpec, template_fields

from ..failures import Rejected, first_line, is_of_host
from ..inputs.splits import Splits
from .answers import extract

# A checkpoint's own generation config may ask for beams and penalties.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}


def load_tokenizer(study: StudySpec, model_path: str) -> Any:
    """A model's tokenizer, with a padding token.

    Raises:
        Rejected: it has none, or its files cannot be read.
    """
    name = study.model.path
    where, file = cdka.model_source(model_path)
    form = {} if file is None else {"gguf_file": file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(where, revision=study.model.revision, trust_remote_code=False, **form)
    except Exception as error:  # tokenizers raise anything for the files of users
        if is_of_host(error):
            raise
        said = first_line(error).replace(where, name)
        raise Rejected(f"the tokenizer of {name!r} cannot be read: {said}") from error
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    if file is None and Path(where).is_dir() and tokenizer.vocab_files_names:
        there = {found.name for found in Path(where).iterdir()}
        if not files & there:
            # transformers would make one that knows no word.
            raise Rejected(f"there are no tokenizer files in {name!r}: it needs one of {', '.join(sorted(files))}")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise Rejected(f"the tokenizer of {name!r} has neither a padding nor an end-of-text token: name one in it")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_end(study: StudySpec, tokenizer: Any) -> None:
    """Check that a tokenizer can end a text.

    Raises:
        Rejected: it has no end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise Rejected(
            f"the tokenizer of {study.model.path!r} has no end-of-text token, without which no completion ends: name "
            "one in tokenizer_config.json (eos_token)"
        )


def note_cut(splits: Splits, name: str, data: Any, most: int, what: str) -> Any:
    """Count the examples of a split that were cut to ``most`` tokens, and drop the column that marks them."""
    cut = sum(data["cut"])
    if cut:
        splits.parts[name].notes.append(f"{cut} cut to {most} tokens ({what}; training.max_length)")
    return data.remove_columns("cut")


def require_answers(splits: Splits, made: dict[str, Any], generation: GenerationSpec) -> None:
    """Check that answers can be extracted from the references that generated texts are compared with.

    Raises:
        Rejected: a split's references have none.
    """
    for name in ("validation", "test"):
        references = made[name]["reference"]
        without = sum(extract(text, generation) is None for text in references)
        if without == len(references):
            raise Rejected(
                f"task.generation.extractor: {generation.extractor} finds no answer in any reference of the {name} "
                "split, so exact_match would be 0 in every trial"
            )
        if without:
            splits.parts[name].notes.append(f"{without} references without an answer, counted as wrong")


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
