"""Unusable rows are rejected before training, with split, row and column, or dropped and counted."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from workers.failures import Rejected
from workers.inputs.splits import Splits, load_splits

from .helpers import load, task_of

CLASSES = ("neg", "pos")


def rows_of(kind: str, count: int = 20) -> list[dict[str, Any]]:
    made: dict[str, Callable[[int], dict[str, Any]]] = {
        "sequence_classification": lambda k: {"text": f"text {k}", "label": CLASSES[k % 2]},
        "sequence_regression": lambda k: {"text": f"text {k}", "label": k / 2},
        "causal_lm": lambda k: {"prompt": f"say {k}", "completion": f"{k} it is"},
        "seq2seq_lm": lambda k: {"text": f"say {k}", "target": f"{k} it is"},
        "image_classification": lambda k: {"image": [[k, k], [k, k]], "label": k % 2},
        "messages": lambda k: {
            "messages": [{"role": "user", "content": f"say {k}"}, {"role": "assistant", "content": str(k)}]
        },
    }
    return [made[kind](k) for k in range(count)]


def write(folder: Path, **splits: list[Any]) -> dict[str, str]:
    """Write JSON Lines files. Returns their names by split."""
    for name, rows in splits.items():
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {name: f"{name}.jsonl" for name in splits}


def everything(splits: Splits, column: str) -> list[Any]:
    return [value for name in ("train", "validation", "test") for value in getattr(splits, name)[column]]


# Kind of task, column, its value in row 7, and the expected message.
BAD_CELLS: list[tuple[str, str, Any, str]] = [
    ("sequence_classification", "label", None, "is null"),
    ("sequence_classification", "label", "", "is empty"),
    ("sequence_classification", "label", ["pos", "neg"], "is a list"),
    ("sequence_classification", "label", {"name": "pos"}, "is an object"),
    ("sequence_classification", "text", None, "is null"),
    ("sequence_classification", "text", " \n", "is empty"),
    ("sequence_classification", "text", 7, "is a number"),
    ("sequence_classification", "text", ["a", "b"], "is a list"),
    ("sequence_classification", "text", True, "is true or false"),
    ("sequence_classification", "text", "\ud800", "is not valid Unicode"),
    ("sequence_regression", "label", None, "is null"),
    ("sequence_regression", "label", float("nan"), "is not a finite number"),
    ("sequence_regression", "label", float("inf"), "is not a finite number"),
    ("sequence_regression", "label", 1e300, "is not a finite number"),
    ("sequence_regression", "label", "good", "is text"),
    ("sequence_regression", "label", True, "is true or false"),
    ("sequence_regression", "text", None, "is null"),
    ("causal_lm", "prompt", None, "is null"),
    ("causal_lm", "prompt", ["a"], "is a list"),
    ("causal_lm", "completion", None, "is null"),
    ("causal_lm", "completion", "", "is empty"),
    ("seq2seq_lm", "text", None, "is null"),
    ("seq2seq_lm", "target", None, "is null"),
    ("seq2seq_lm", "target", " ", "is empty"),
    ("image_classification", "image", None, "is null"),
    ("image_classification", "label", None, "is null"),
    ("messages", "messages", None, "is null"),
    ("messages", "messages", [], "is an empty conversation"),
    ("messages", "messages", "user: hi", "is text"),
    (
        "messages",
        "messages",
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "does not end with the assistant's message",
    ),
    ("messages", "messages", [{"role": "assistant", "content": "b"}], "has no message before the assistant's"),
    (
        "messages",
        "messages",
        [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}],
        "has a message whose content is null",
    ),
    (
        "messages",
        "messages",
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
        "ends with an empty message",
    ),
    ("messages", "messages", [{"content": "a"}, {"role": "assistant", "content": "b"}], "has a message without a role"),
]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(("kind", "column", "value", "said"), BAD_CELLS)
def test_a_bad_cell_is_rejected_with_split_row_and_column(
    tmp_path: Path, kind: str, column: str, value: Any, said: str, split: str
) -> None:
    parts = {name: rows_of(kind) for name in ("train", "validation", "test")}
    parts[split][6][column] = value
    with pytest.raises(Rejected) as refused:
        load(tmp_path, kind, write(tmp_path, **parts))
    message = str(refused.value)
    assert message.startswith(f"{split} (1 of 20 rows cannot be used): column {column!r} {said}"), message
    assert "in 1 row (7)" in message
    assert "dataset.on_bad_row: drop" in message


@pytest.mark.parametrize(("kind", "column", "value", "said"), BAD_CELLS)
def test_a_bad_row_is_dropped_and_counted_with_on_bad_row_drop(
    tmp_path: Path, kind: str, column: str, value: Any, said: str
) -> None:
    parts = {name: rows_of(kind) for name in ("train", "validation", "test")}
    parts["validation"][6][column] = value
    splits = load(tmp_path, kind, write(tmp_path, **parts), on_bad_row="drop")
    assert [len(splits.train), len(splits.validation), len(splits.test)] == [20, 19, 20]
    part = splits.parts["validation"]
    assert (part.read, part.dropped) == (20, 1)
    assert part.numbers == [n for n in range(1, 21) if n != 7]
    assert "1 dropped: column" in splits.told()["validation"]
    assert said in splits.told()["validation"]


def test_every_problem_of_every_split_is_named_once(tmp_path: Path) -> None:
    train, test = rows_of("sequence_classification", 40), rows_of("sequence_classification")
    for k in (1, 3, 5, 7):
        train[k]["label"] = None
    train[10]["text"] = ""
    test[0]["text"] = None
    with pytest.raises(Rejected) as refused:
        load(tmp_path, "sequence_classification", write(tmp_path, train=train, test=test))
    assert str(refused.value) == (
        "train (5 of 40 rows cannot be used): column 'label' is null in 4 rows (2, 4, 6, ...); column 'text' is empty "
        "in 1 row (11) | test (1 of 20 rows cannot be used): column 'text' is null in 1 row (1). Correct the data, or "
        "set dataset.on_bad_row: drop to leave these rows out"
    )


def test_a_column_of_null_is_rejected(tmp_path: Path) -> None:
    rows = [{**row, "label": None} for row in rows_of("sequence_classification")]
    with pytest.raises(Rejected, match="column 'label' is null in 20 rows"):
        load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
    with pytest.raises(Rejected, match="no row of the train split can be used: column 'label' is null in 20 rows"):
        load(tmp_path, "sequence_classification", write(tmp_path, train=rows), on_bad_row="drop")


def test_columns_that_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = rows_of("sequence_classification")
    for k, row in enumerate(rows):
        row["meta"] = [k, "x", None, {"a": k}][k % 4]
    splits = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
    assert splits.train.column_names == ["text", "label"]


@pytest.mark.parametrize("label", ["NA", "null", "n/a", "None", "nan", "007", "1e5", "TRUE", " x"])
def test_csv_cells_are_read_literally(tmp_path: Path, label: str) -> None:
    lines = [f"text {k},{label if k % 2 else 'other'}" for k in range(20)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    splits = load(tmp_path, "sequence_classification", {"train": "a.csv"}, "csv")
    assert sorted(splits.classes or []) == sorted([label, "other"])
    assert set(everything(splits, "label")) == {label, "other"}


def test_csv_texts_that_look_like_numbers_and_dates_stay_text(tmp_path: Path) -> None:
    texts = ["007", "1.50", "2020-01-01", "NaN", "true", "1,000"] * 4
    lines = [f'"{text}",{"ab"[k % 2]}' for k, text in enumerate(texts)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    splits = load(tmp_path, "sequence_classification", {"train": "a.csv"}, "csv")
    assert set(everything(splits, "text")) == set(texts)


def test_an_empty_cell_among_integer_labels_is_a_bad_row(tmp_path: Path) -> None:
    lines = [f"text {k},{'' if k == 4 else k % 2}" for k in range(20)]
    (tmp_path / "a.csv").write_text("text,label\n" + "\n".join(lines) + "\n")
    with pytest.raises(Rejected, match=r"column 'label' is empty in 1 row \(5\)"):
        load(tmp_path, "sequence_classification", {"train": "a.csv"}, "csv")
    splits = load(tmp_path, "sequence_classification", {"train": "a.csv"}, "csv", on_bad_row="drop")
    assert splits.classes == ["0", "1"]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (range(11), [str(k) for k in range(11)]),
        ([0.0, 1.0, 2.0], ["0", "1", "2"]),
        ([-1, 0, 1], ["-1", "0", "1"]),
        ([0.5, 1.5, 10.5, 2.0], ["0.5", "1.5", "2", "10.5"]),
        (["class10", "class2", "class1"], ["class1", "class2", "class10"]),
        ([True, False], ["False", "True"]),
        (["b", "a", "C"], ["C", "a", "b"]),
        (["२", "1"], ["1", "२"]),
    ],
)
def test_classes_are_in_natural_order(tmp_path: Path, labels: Any, classes: list[str]) -> None:
    rows = [{"text": f"text {k}", "label": label} for k, label in enumerate(list(labels) * 10)]
    splits = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
    assert splits.classes == classes


def test_classes_that_differ_only_in_spaces_are_rejected(tmp_path: Path) -> None:
    rows = rows_of("sequence_classification")
    rows[1]["label"] = "pos "
    with pytest.raises(Rejected, match="'pos' and 'pos ' .* differ only in surrounding spaces"):
        load(tmp_path, "sequence_classification", write(tmp_path, train=rows))


class TestLabelsThatTrainLacks:
    """Labels of validation or test that train lacks."""

    def files(self, folder: Path) -> dict[str, str]:
        test = rows_of("sequence_classification", 60)
        for k in (3, 30, 31, 32):
            test[k]["label"] = "rare" if k == 3 else f"odd {k}"
        return write(folder, train=rows_of("sequence_classification", 40), test=test)

    def test_unknown_labels_are_rejected_once_with_count_and_names(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected) as refused:
            load(tmp_path, "sequence_classification", self.files(tmp_path))
        assert str(refused.value) == (
            "test (4 of 60 rows cannot be used): column 'label' has a label that train lacks in 4 rows (4, 31, 32, "
            "...): 'rare', 'odd 30', 'odd 31', 'odd 32'. Correct the data, or set dataset.on_bad_row: drop to leave "
            "these rows out. Declare all classes in task.labels, or keep such rows as errors with on_bad_row: "
            "count_as_wrong"
        )

    def test_at_most_ten_unknown_labels_are_named(self, tmp_path: Path) -> None:
        test = [{"text": f"text {k}", "label": f"new {k:02}"} for k in range(30)]
        files = write(tmp_path, train=rows_of("sequence_classification", 40), test=test)
        with pytest.raises(Rejected, match="'new 09' and 20 more"):
            load(tmp_path, "sequence_classification", files)

    def test_rows_with_unknown_labels_are_dropped(self, tmp_path: Path) -> None:
        splits = load(tmp_path, "sequence_classification", self.files(tmp_path), on_bad_row="drop")
        assert len(splits.test) == 56

    def test_rows_with_unknown_labels_count_as_wrong(self, tmp_path: Path) -> None:
        splits = load(tmp_path, "sequence_classification", self.files(tmp_path), on_bad_row="count_as_wrong")
        assert len(splits.test) == 60
        assert splits.classes == ["neg", "pos"]
        assert "4 of a class that train lacks, counted as wrong" in splits.told()["test"]

    def test_declared_labels_are_classes(self, tmp_path: Path) -> None:
        labels = ["pos", "neg", "rare", "odd 30", "odd 31", "odd 32"]
        splits = load(tmp_path, "sequence_classification", self.files(tmp_path), labels=labels)
        assert splits.classes == labels

    def test_a_label_that_task_labels_lacks_is_rejected(self, tmp_path: Path) -> None:
        labels = ["pos", "neg", "rare", "odd 30", "odd 31"]
        with pytest.raises(Rejected, match="has a label that task.labels does not name in 1 row .*'odd 32'"):
            load(tmp_path, "sequence_classification", self.files(tmp_path), labels=labels)

    def test_undeclared_labels_in_train_are_rejected_even_with_count_as_wrong(self, tmp_path: Path) -> None:
        rows = rows_of("sequence_classification")
        rows[2]["label"] = "odd"
        with pytest.raises(Rejected, match="train .* task.labels does not name in 1 row"):
            load(
                tmp_path,
                "sequence_classification",
                write(tmp_path, train=rows),
                labels=["pos", "neg"],
                on_bad_row="count_as_wrong",
            )


def test_a_target_without_a_label_word_is_rejected_with_its_rows(tmp_path: Path) -> None:
    rows = [{"text": f"text {k}", "target": k % 3} for k in range(20)]
    files = write(tmp_path, train=rows)
    with pytest.raises(Rejected, match=r"has no word in task.label_words in 6 rows \(3, 6, 9, ...\): '?2"):
        load(tmp_path, "seq2seq_lm", files, label_words={"0": "no", "1": "yes"}, metric="accuracy")


def test_carving_keeps_a_rare_class_in_train(tmp_path: Path) -> None:
    plain = load(tmp_path, "sequence_classification", write(tmp_path, train=rows_of("sequence_classification", 40)))
    taken = plain.parts["test"].numbers + plain.parts["validation"].numbers
    rows = rows_of("sequence_classification", 40)
    for place, number in enumerate(taken[:3]):
        rows[number - 1]["label"] = f"rare {place}"
    splits = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
    assert set(splits.train["label"]) == set(splits.classes or [])
    assert "3 examples of rare classes stay in train (rare 0, rare 1, rare 2)" in splits.told()["test"]
    assert sorted(n for part in splits.parts.values() for n in part.numbers) == list(range(1, 41))


def test_row_numbers_survive_sampling_and_carving(tmp_path: Path) -> None:
    rows = rows_of("sequence_classification", 200)
    files = write(tmp_path, train=rows)
    splits = load(tmp_path, "sequence_classification", files, sample={"train": 50}, seed=3)
    for name, part in splits.parts.items():
        assert getattr(splits, name)["text"][:] == [rows[n - 1]["text"] for n in part.numbers]
    bad = splits.parts["validation"].numbers[0]
    rows[bad - 1]["text"] = None
    unused = next(n for n in range(1, 201) if all(n not in p.numbers for p in splits.parts.values()))
    rows[unused - 1]["text"] = None
    with pytest.raises(Rejected, match=rf"1 of 50 rows .* in 1 row \({bad}\)"):
        load(tmp_path, "sequence_classification", write(tmp_path, train=rows), sample={"train": 50}, seed=3)


class TestFiles:
    """File formats: encodings, compression, CSV dialects, JSON, Parquet and Arrow."""

    TEXT = "text,label\n" + "".join(f"café {k},{CLASSES[k % 2]}\n" for k in range(20))

    def read(self, folder: Path, content: bytes, name: str = "a.csv", **options: Any) -> list[str]:
        (folder / name).write_bytes(content)
        return everything(load(folder, "sequence_classification", {"train": name}, "csv", **options), "text")

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
    def test_a_byte_order_mark_sets_the_encoding(self, tmp_path: Path, encoding: str) -> None:
        assert "café 3" in self.read(tmp_path, self.TEXT.encode(encoding))
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows_of("sequence_classification"))
        (tmp_path / "a.jsonl").write_bytes(rows.encode(encoding))
        assert len(load(tmp_path, "sequence_classification", {"train": "a.jsonl"}).train) == 12

    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
    @pytest.mark.parametrize("name", ["a.csv.gz", "a.csv"])
    def test_compression_is_detected_by_content(self, tmp_path: Path, compress: Any, name: str) -> None:
        assert "café 3" in self.read(tmp_path, compress(self.TEXT.encode()), name)

    def test_a_file_in_another_encoding_is_rejected_with_the_setting(self, tmp_path: Path) -> None:
        content = self.TEXT.encode("latin-1")
        with pytest.raises(Rejected, match=r"line 2 is not utf-8 \(byte 0xe9\); set dataset.format.encoding"):
            self.read(tmp_path, content)
        assert "café 3" in self.read(tmp_path, content, format={"encoding": "latin-1"})

    @pytest.mark.parametrize("delimiter", [";", "\t", "|"])
    def test_a_file_with_another_delimiter_is_rejected_with_the_setting(self, tmp_path: Path, delimiter: str) -> None:
        content = self.TEXT.replace(",", delimiter).encode()
        with pytest.raises(Rejected, match="separates its columns, set dataset.format.delimiter"):
            self.read(tmp_path, content)
        assert "café 3" in self.read(tmp_path, content, format={"delimiter": delimiter})

    def test_a_tsv_file_needs_no_delimiter(self, tmp_path: Path) -> None:
        assert "café 3" in self.read(tmp_path, self.TEXT.replace(",", "\t").encode(), "a.tsv")

    def test_a_file_without_a_header_needs_format_header(self, tmp_path: Path) -> None:
        content = self.TEXT.split("\n", 1)[1].encode()
        with pytest.raises(Rejected, match="no column 'text'"):
            self.read(tmp_path, content)
        assert len(self.read(tmp_path, content, format={"header": ["text", "label"]})) == 20
        columns = {"text": "column_1", "label": "column_2"}
        splits = load(
            tmp_path, "sequence_classification", {"train": "a.csv"}, "csv", format={"header": False}, columns=columns
        )
        assert len(everything(splits, "column_1")) == 20

    def test_quotation_marks_that_join_rows_are_rejected_with_both_counts(self, tmp_path: Path) -> None:
        lines = "".join(f'"He said {k}\tpos\n then told"\tneg\n' for k in range(100))
        content = f"text\tlabel\n{lines}".encode()
        with pytest.raises(Rejected, match="200 lines after the header, but quotation marks join them to 100 rows"):
            self.read(tmp_path, content, "a.tsv")
        assert len(self.read(tmp_path, content, "a.tsv", format={"quotechar": ""})) == 200

    def test_an_unclosed_quotation_mark_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected, match="opened and never closed; if quotation marks are part of the text"):
            self.read(tmp_path, b'text,label\na,pos\n"b,neg\n')

    def test_text_after_a_closing_quotation_mark_is_rejected(self, tmp_path: Path) -> None:
        with pytest.raises(Rejected, match="line 3: text follows a closing quotation mark"):
            self.read(tmp_path, b'text,label\na,pos\n"good" film,neg\n')

    def test_cells_may_span_lines(self, tmp_path: Path) -> None:
        lines = "".join(f'"first {k}\nsecond, ""third""",{CLASSES[k % 2]}\n' for k in range(20))
        assert 'first 3\nsecond, "third"' in self.read(tmp_path, f"text,label\n{lines}".encode())

    @pytest.mark.parametrize("line", ["a, b,pos", "a", "a,pos,"])
    def test_a_line_with_another_number_of_cells_is_rejected(self, tmp_path: Path, line: str) -> None:
        with pytest.raises(Rejected, match=r"a.csv cannot be read as csv: line 22 has \d cells, the header 2"):
            self.read(tmp_path, f"{self.TEXT}{line}\n".encode())

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b'{"text": "a", "label": 1}\n{"text": ', "line 2 is not a JSON object"),
            (b'["a"]', "entry 1 of the array is not a JSON object"),
            (b"[1, 2", "it begins like a JSON array"),
            (b'"a"\n', "line 1 is not a JSON object"),
            (b"", "the file is empty"),
            (b"PK\x03\x04...", "it is a zip archive"),
            (b"PAR1...", "it is Parquet"),
        ],
    )
    def test_an_invalid_json_file_is_rejected_with_the_place(self, tmp_path: Path, content: bytes, said: str) -> None:
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(Rejected) as refused:
            load(tmp_path, "sequence_classification", {"train": "a.jsonl"})
        assert str(refused.value).startswith(f"a.jsonl cannot be read as json: {said}")

    def test_a_json_array_is_read_like_json_lines(self, tmp_path: Path) -> None:
        rows = rows_of("sequence_classification")
        (tmp_path / "a.json").write_text(json.dumps(rows, indent=2))
        lines = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
        array = load(tmp_path, "sequence_classification", {"train": "a.json"})
        assert everything(array, "text") == everything(lines, "text")

    def test_dates_in_json_stay_text(self, tmp_path: Path) -> None:
        rows = [{"text": "2020-01-01", "label": f"2020-01-0{k % 2 + 1}"} for k in range(20)]
        splits = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
        assert splits.classes == ["2020-01-01", "2020-01-02"]
        assert set(everything(splits, "text")) == {"2020-01-01"}

    @pytest.mark.parametrize("path", ["parquet", "arrow"])
    def test_parquet_and_arrow_files_keep_their_features(self, tmp_path: Path, path: str) -> None:
        data = datasets.Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1] * 10, "other": [None] * 20})
        data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
        file = tmp_path / f"a.{path}"
        if path == "parquet":
            data.to_parquet(str(file))
        else:
            data.save_to_disk(str(tmp_path / "saved"))
            next((tmp_path / "saved").glob("*.arrow")).rename(file)
        splits = load(tmp_path, "sequence_classification", {"train": file.name}, path)
        assert splits.classes == ["no", "yes"]
        (file).write_bytes(b"not this")
        with pytest.raises(Rejected, match=f"a.{path} cannot be read as {path}: "):
            load(tmp_path, "sequence_classification", {"train": file.name}, path)

    def test_a_folder_that_save_to_disk_wrote_is_read(self, tmp_path: Path) -> None:
        data = datasets.Dataset.from_list(rows_of("sequence_classification"))
        datasets.DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path / "saved"))
        splits = load_splits(task_of("sequence_classification", {"path": "saved"}), [tmp_path], tmp_path / "scratch")
        assert len(splits.test) == 20


class TestIdentity:
    """Data is identified by its content, not by path or time."""

    @pytest.mark.parametrize("compress", [bytes, gzip.compress])
    def test_a_file_replaced_under_its_path_size_and_time_is_read_anew(self, tmp_path: Path, compress: Any) -> None:
        import os

        file = tmp_path / "a.jsonl"
        keys = []
        for word in ("old", "new"):
            rows = [{**row, "text": word} for row in rows_of("sequence_classification")]
            file.write_bytes(compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
            os.utime(file, (1_000_000, 1_000_000))
            splits = load(tmp_path, "sequence_classification", {"train": "a.jsonl"})
            assert set(everything(splits, "text")) == {word}
            keys.append(splits.parts["train"].content())
        assert keys[0] != keys[1]

    def test_a_replaced_file_in_a_dataset_folder_is_read_anew(self, tmp_path: Path) -> None:
        import os

        folder = tmp_path / "news"
        folder.mkdir()
        for word in ("old", "new"):
            rows = [{**row, "text": word} for row in rows_of("sequence_classification")]
            (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            os.utime(folder / "train.jsonl", (1_000_000, 1_000_000))
            task = task_of("sequence_classification", {"path": "news"})
            splits = load_splits(task, [tmp_path], tmp_path / "scratch")
            assert set(everything(splits, "text")) == {word}

    def test_the_same_content_under_another_name_is_the_same_data(self, tmp_path: Path) -> None:
        rows = rows_of("sequence_classification")
        first = load(tmp_path, "sequence_classification", write(tmp_path, train=rows))
        (tmp_path / "train.jsonl").rename(tmp_path / "other.jsonl")
        second = load(tmp_path, "sequence_classification", {"train": "other.jsonl"})
        assert first.parts["test"].content() == second.parts["test"].content()
