"""What tasks on text share: the tokenizer, and the text that a template makes of a row."""

from __future__ import annotations

from typing import Any

from transformers import AutoTokenizer

from service.paths import gguf_file
from service.schemas.specs import StudySpec, template_fields

from ..failures import Rejected


def load_tokenizer(study: StudySpec, model_path: str) -> Any:
    """A model's own tokenizer, with something to pad with.

    Raises:
        Rejected: it has none.
    """
    file = gguf_file(model_path)
    form = {} if file is None else {"gguf_file": file}
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_path, revision=study.model.revision, trust_remote_code=False, **form
        )
    except (OSError, ValueError) as error:
        raise Rejected(f"no tokenizer in {model_path!r}: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def text_of(row: dict[str, Any], column: str, template: str | None) -> str:
    """The text of a row: a column's, or what the template makes of several."""
    if template is None:
        return str(row[column])
    return template.format_map({name: row[name] for name in template_fields(template)})
