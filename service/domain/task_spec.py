"""The task: model kind, data and metric."""

from __future__ import annotations

import codecs
import re
import string
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, field_validator, model_validator

from .ranges import STRICT
from .vocabulary import Direction, Name, Text

Split = Literal["train", "validation", "test"]
# Templates take only column names: no attributes and no indices.
_PLAIN_FIELDS = "write {column} for the columns of the data, and {{ }} for braces"


class TaskKind(StrEnum):
    SEQUENCE_CLASSIFICATION = "sequence_classification"
    SEQUENCE_REGRESSION = "sequence_regression"
    CAUSAL_LM = "causal_lm"
    SEQ2SEQ_LM = "seq2seq_lm"
    IMAGE_CLASSIFICATION = "image_classification"
    CUSTOM = "custom"


def template_fields(template: str) -> list[str]:
    """The columns that a template names, each once.

    Raises:
        ValueError: it is not a template, or uses more than column names.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"not a template ({error}): {_PLAIN_FIELDS}") from None
    fields = []
    for _, field, form, conversion in parts:
        if field is None:
            continue
        if not field or form or conversion or any(c in field for c in ".[]!:"):
            raise ValueError(f"{{{field}}} is more than a column's name: {_PLAIN_FIELDS}")
        fields.append(field)
    return list(dict.fromkeys(fields))


def _is_template(value: str) -> str:
    if not template_fields(value):
        raise ValueError(f"the template names no column: {_PLAIN_FIELDS}")
    return value


Template = Annotated[str, Field(min_length=1, max_length=20_000), AfterValidator(_is_template)]


def _is_text_encoding(name: str) -> str:
    try:
        # Codecs such as "hex" turn bytes into bytes.
        if codecs.lookup(name)._is_text_encoding:
            return name
    except LookupError:
        pass
    raise ValueError(f"{name!r} is not a text encoding that Python knows; examples: utf-8, utf-16, cp1252, latin-1")


class FormatSpec(BaseModel):
    """How CSV and JSON files are written.

    ``delimiter`` is a tab for ``.tsv`` files and a comma for others, unless given. An empty ``quotechar`` reads
    quotation marks literally. ``encoding`` is UTF-8, or what a byte order mark says. ``header`` says whether a CSV
    file's first line names the columns (otherwise ``column_1``, ``column_2``, ...), or lists the names.
    """

    model_config = STRICT
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quotechar: Annotated[str, Field(max_length=1)] | None = None
    encoding: Annotated[str, Field(min_length=1, max_length=40), AfterValidator(_is_text_encoding)] | None = None
    header: bool | Annotated[list[Name], Field(min_length=1, max_length=1000)] = True

    @model_validator(mode="after")
    def _distinct(self) -> FormatSpec:
        for name in ("delimiter", "quotechar"):
            value = getattr(self, name)
            if value and (not value.isascii() or value in "\r\n\0"):
                raise ValueError(f"{name} is one ASCII character, but not the end of a line")
        if self.delimiter is not None and self.delimiter == self.quotechar:
            raise ValueError("delimiter and quotechar must differ")
        if isinstance(self.header, list) and len(set(self.header)) < len(self.header):
            raise ValueError("header names a column twice")
        return self


class BadRows(StrEnum):
    """What happens to rows that cannot be used: empty cells, wrong types, labels that train lacks."""

    REJECT = "reject"
    DROP = "drop"
    COUNT_AS_WRONG = "count_as_wrong"


class DataSource(BaseModel):
    """What ``datasets.load_dataset`` takes. Files are relative to ``CDKA_DATA_DIRS``.

    ``splits`` names each split in the dataset's notation (``train[:1000]``). ``sample`` keeps this many examples of a
    split, drawn by ``seed``. With ``streaming``, only the sample is downloaded.

    ``on_bad_row`` says what happens to rows that cannot be used: ``reject`` ends the study before its first trial and
    names the rows, ``drop`` leaves them out and counts them. ``count_as_wrong`` keeps rows of validation and test whose
    label train lacks: every prediction for them is wrong.
    """

    model_config = STRICT
    path: Text
    name: Text | None = None
    revision: Text | None = None
    data_files: dict[Split, Text] | None = None
    splits: dict[Split, Text] | None = None
    sample: dict[Split, Annotated[int, Field(ge=1)]] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    streaming: bool = False
    format: FormatSpec | None = None
    on_bad_row: BadRows = BadRows.REJECT

    @model_validator(mode="after")
    def _consistent(self) -> DataSource:
        if self.format is not None:
            if self.data_files is None or self.path not in ("csv", "json"):
                raise ValueError("format is for csv and json files, named in data_files")
            csv_only = self.format.model_fields_set & {"delimiter", "quotechar", "header"}
            if self.path == "json" and csv_only:
                raise ValueError(f"format.{min(csv_only)} is for csv files; json files take encoding alone")
        if self.splits is not None and self.data_files is not None:
            raise ValueError("give data_files or splits, not both: data_files already names the splits")
        if self.streaming:
            named = self.splits or self.data_files or {"train": "train"}
            unbounded = [split for split in named if split not in (self.sample or {})]
            if unbounded:
                raise ValueError(f"streaming needs sample to say how many examples of {', '.join(unbounded)} to take")
            if any("[" in source for source in (self.splits or {}).values()):
                raise ValueError("streaming takes whole splits; set sample, not splits, to limit what is read")
        return self


class DatasetSpec(DataSource):
    """The training data. Validation and test are carved out of it if it lacks them."""

    @field_validator("data_files", "splits")
    @classmethod
    def _has_train(cls, files: dict[str, str] | None) -> dict[str, str] | None:
        if files is not None and "train" not in files:
            raise ValueError("it needs a train split")
        return files


class Columns(BaseModel):
    """The columns of the data by role. Each kind of task has its own roles."""

    model_config = STRICT
    text: Name | None = None
    text_pair: Name | None = None
    label: Name | None = None
    prompt: Name | None = None
    completion: Name | None = None
    messages: Name | None = None
    target: Name | None = None
    image: Name | None = None


# Roles of each kind of task, in order. A required role defaults to the column of its name.
ROLES: dict[TaskKind, tuple[str, ...]] = {
    TaskKind.SEQUENCE_CLASSIFICATION: ("text", "text_pair", "label"),
    TaskKind.SEQUENCE_REGRESSION: ("text", "text_pair", "label"),
    TaskKind.CAUSAL_LM: ("prompt", "completion", "messages"),
    TaskKind.SEQ2SEQ_LM: ("text", "target"),
    TaskKind.IMAGE_CLASSIFICATION: ("image", "label"),
    TaskKind.CUSTOM: tuple(Columns.model_fields),
}
_OPTIONAL = frozenset({"text_pair", "messages"})
CLASSIFICATION = (TaskKind.SEQUENCE_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION)
# The role that a template fills.
TEMPLATED: dict[TaskKind, str] = {TaskKind.CAUSAL_LM: "prompt", TaskKind.SEQ2SEQ_LM: "text"}
DEFAULT_METRIC: dict[TaskKind, str] = {
    TaskKind.SEQUENCE_CLASSIFICATION: "accuracy",
    TaskKind.SEQUENCE_REGRESSION: "pearson",
    TaskKind.CAUSAL_LM: "loss",
    TaskKind.SEQ2SEQ_LM: "exact_match",
    TaskKind.IMAGE_CLASSIFICATION: "accuracy",
}


class GenerationSpec(BaseModel):
    """Greedy generation of answers, and the part of an answer that ``exact_match`` compares."""

    model_config = STRICT
    max_new_tokens: Annotated[int, Field(ge=1, le=8192)] = 128
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 16
    extractor: Literal["text", "gsm8k", "last_number", "regex"] = "text"
    pattern: Annotated[str, Field(min_length=1, max_length=500)] | None = None

    @model_validator(mode="after")
    def _pattern_for_regex(self) -> GenerationSpec:
        if (self.extractor == "regex") != (self.pattern is not None):
            raise ValueError("extractor: regex needs a pattern (its first group is the answer); others take none")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(f"pattern is not a regular expression: {error}") from None
        return self


class EvaluationSpec(BaseModel):
    """Another source for validation and test data."""

    model_config = STRICT
    dataset: DataSource
    columns: Columns = Columns()
    template: Template | None = None


class CustomSpec(BaseModel):
    """A custom task as the server sees it; ``CDKA_TASKS`` tells the runners where its code is."""

    model_config = STRICT
    name: Name
    architecture: Literal["sequence_classification", "causal_lm", "seq2seq_lm", "image_classification"]
    metrics: Annotated[dict[Name, Direction], Field(min_length=1, max_length=50)]
    options: dict[str, Any] = {}


class TaskSpec(BaseModel):
    """The task: model kind, data, metric.

    ``labels`` declares the classes of a classification, in the order of the model's outputs. By default they are those
    of the training data.
    """

    model_config = STRICT
    kind: TaskKind
    dataset: DatasetSpec
    columns: Columns = Columns()
    template: Template | None = None
    labels: Annotated[list[Text], Field(min_length=2, max_length=10_000)] | None = None
    label_words: Annotated[dict[Name, Text], Field(min_length=2, max_length=1000)] | None = None
    evaluation: EvaluationSpec | None = None
    generation: GenerationSpec = GenerationSpec()
    custom: CustomSpec | None = None
    metric: Name = ""

    @model_validator(mode="before")
    @classmethod
    def _default_metric(cls, data: Any) -> Any:
        if isinstance(data, dict) and "metric" not in data:
            custom = data.get("custom")
            named = custom.get("metrics") if isinstance(custom, dict) else None
            first = next(iter(named), None) if isinstance(named, dict) else None
            kind = data.get("kind")
            metric = next((m for k, m in DEFAULT_METRIC.items() if k == kind), first)
            if isinstance(metric, str):
                return {**data, "metric": metric}
        return data

    @model_validator(mode="after")
    def _fits_its_kind(self) -> TaskSpec:
        roles = ROLES[self.kind]
        for columns in (self.columns, *([self.evaluation.columns] if self.evaluation else [])):
            strange = [r for r, column in columns.model_dump().items() if column is not None and r not in roles]
            if strange:
                raise ValueError(f"{self.kind} has no column for {strange[0]!r}; it has: {', '.join(roles)}")
        if self.template is not None and self.kind not in TEMPLATED:
            raise ValueError(f"{self.kind} takes no template; {' and '.join(TEMPLATED)} do")
        if self.label_words is not None and self.kind is not TaskKind.SEQ2SEQ_LM:
            raise ValueError("label_words are for seq2seq_lm")
        if self.labels is not None:
            if self.kind not in CLASSIFICATION:
                raise ValueError(f"labels are for {' and '.join(CLASSIFICATION)}")
            if len(set(self.labels)) < len(self.labels):
                raise ValueError("labels names a class twice")
        for source in (self.dataset, *([self.evaluation.dataset] if self.evaluation else [])):
            if source.on_bad_row is BadRows.COUNT_AS_WRONG and self.kind not in CLASSIFICATION:
                raise ValueError(f"on_bad_row: count_as_wrong is for {' and '.join(CLASSIFICATION)}")
        if (self.kind is TaskKind.CUSTOM) != (self.custom is not None):
            raise ValueError("kind: custom needs a custom section; other kinds take none")
        return self

    @property
    def architecture(self) -> str:
        """The kind of model that is adapted."""
        if self.custom is not None:
            return self.custom.architecture
        return self.kind

    @property
    def roles(self) -> dict[str, str]:
        """The column of each role that this task reads from its training data."""
        return roles_of(self.kind, self.columns, self.template)

    @property
    def evaluation_roles(self) -> dict[str, str]:
        """The column of each role that this task reads from its validation and test data."""
        if self.evaluation is None:
            return self.roles
        return roles_of(self.kind, self.evaluation.columns, self.evaluation.template or self.template)

    @property
    def columns_read(self) -> list[str]:
        """Every column that the training data must have."""
        return _columns_read(self.kind, self.roles, self.template)

    @property
    def evaluation_columns_read(self) -> list[str]:
        """Every column that the validation and test data must have."""
        if self.evaluation is None:
            return self.columns_read
        template = self.evaluation.template or self.template
        return _columns_read(self.kind, self.evaluation_roles, template)


def roles_of(kind: TaskKind, columns: Columns, template: str | None) -> dict[str, str]:
    """Columns by role; by default the column with the role's name."""
    given = {role: column for role, column in columns.model_dump().items() if column is not None}
    if kind is TaskKind.CUSTOM:
        return given
    if kind is TaskKind.CAUSAL_LM and "messages" in given:
        return {"messages": given["messages"]}
    made = TEMPLATED.get(kind) if template is not None else None
    return {
        role: given.get(role, role) for role in ROLES[kind] if role != made and (role in given or role not in _OPTIONAL)
    }


def _columns_read(kind: TaskKind, roles: dict[str, str], template: str | None) -> list[str]:
    made = template_fields(template) if template is not None and "messages" not in roles else []
    return list(dict.fromkeys([*roles.values(), *made]))
