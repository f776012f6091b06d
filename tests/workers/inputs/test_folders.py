"""A file is read the same way in a dataset folder as by its name; a dataset names no files outside its folder."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.paths import DataRoots
from workers.failures import Rejected
from workers.inputs.splits import Splits, load_splits
from workers.tasks.image_classification import _decoded, _image

from .helpers import load, task_of

KIND = "sequence_classification"


def folder_of(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "data" / "news"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_bytes(content.encode())
    return folder


def from_folder(tmp_path: Path, **options: Any) -> Splits:
    source = {k: options.pop(k) for k in ("on_bad_row", "splits") if k in options}
    task = task_of(KIND, {"path": "news", **source}, **options)
    return load_splits(task, DataRoots([tmp_path / "data"]), tmp_path / "scratch")


def csv(rows: list[str], header: str = "text,label") -> str:
    return "\n".join([header, *rows]) + "\n"


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["NA", "EU", "AS"], ["AS", "EU", "NA"]),
        (["007", "7", "8"], ["007", "7", "8"]),
        (["true", "false"], ["false", "true"]),
        (["None", "null"], ["None", "null"]),
    ],
)
def test_cells_of_a_csv_in_a_folder_are_read_literally(tmp_path: Path, labels: list[str], classes: list[str]) -> None:
    folder_of(tmp_path, train__csv=csv([f"None {k},{labels[k % len(labels)]}" for k in range(30)]))
    splits = from_folder(tmp_path)
    assert splits.classes == classes
    assert all(text.startswith("None ") for text in splits.train["text"])


def test_a_row_with_more_cells_than_the_header_is_rejected(tmp_path: Path) -> None:
    folder_of(tmp_path, train__csv=csv([f"sport,goal {k},good," for k in range(30)], "label,text,note"))
    with pytest.raises(Rejected, match=r"train.csv of 'news' cannot be read as csv: line 2 has 4 cells, the header 3"):
        from_folder(tmp_path)


def test_a_faulty_file_in_a_folder_is_rejected_by_name(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, train__csv=csv([f"a {k},{k % 2}" for k in range(20)]))
    (folder / "test.csv").write_bytes("text,label\ncafé,1\n".encode("latin-1"))
    with pytest.raises(Rejected, match=r"test.csv of 'news' cannot be read as csv: "):
        from_folder(tmp_path)


def test_splits_of_a_folder_and_slices_of_them_are_found_by_name(tmp_path: Path) -> None:
    rows = [f"a {k},{k % 2}" for k in range(40)]
    folder_of(tmp_path, train__csv=csv(rows), test__csv=csv(rows[:10]))
    whole = from_folder(tmp_path)
    assert (len(whole.train) + len(whole.validation), len(whole.test)) == (40, 10)
    cut = from_folder(tmp_path, splits={"train": "train[10:30]", "validation": "train[:10]", "test": "test"})
    assert cut.train["text"][:2] == ["a 10", "a 11"]
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (20, 10, 10)


def test_json_lines_of_a_folder_keep_their_types(tmp_path: Path) -> None:
    dates = [json.dumps({"text": f"a {k}", "label": f"2020-01-0{1 + k % 2}"}) for k in range(20)]
    folder_of(tmp_path, train__jsonl="\n".join(dates))
    assert from_folder(tmp_path).classes == ["2020-01-01", "2020-01-02"]


def test_a_label_of_another_type_in_a_folder_is_a_bad_row(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"a {k}", "label": "x" if k == 6 else k % 2}) for k in range(20)]
    folder_of(tmp_path, train__jsonl="\n".join(rows))
    with pytest.raises(Rejected, match=r"in 1 row \(7\)"):
        from_folder(tmp_path)


def test_columns_that_are_not_read_may_differ_between_files(tmp_path: Path) -> None:
    rows = [json.dumps({"text": f"a {k}", "label": k % 2}) for k in range(20)]
    more = [json.dumps({"text": f"a {k}", "label": k % 2, "extra": k}) for k in range(20)]
    folder_of(tmp_path, train__jsonl="\n".join(rows), test__jsonl="\n".join(more))
    assert len(from_folder(tmp_path).test) == 20


def test_a_saved_dataset_that_names_files_outside_its_folder_is_rejected(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "b"] * 10, "label": [0, 1] * 10})
    data.save_to_disk(str(tmp_path / "data" / "news"))
    data.save_to_disk(str(tmp_path / "outside"))
    assert len(from_folder(tmp_path).train) > 0
    state = tmp_path / "data" / "news" / "state.json"
    for place in (str(next((tmp_path / "outside").glob("*.arrow"))), "../../outside/data-00000-of-00001.arrow"):
        state.write_text(json.dumps({**json.loads(state.read_text()), "_data_files": [{"filename": place}]}))
        with pytest.raises(Rejected, match=r"names files outside of its folder in state\.json"):
            from_folder(tmp_path)


# --- files


def test_a_repeated_header_within_a_file_is_rejected(tmp_path: Path) -> None:
    part = csv([f"a {k},{k % 2}" for k in range(20)])
    for content in (part + part, part + "\ufeff" + part):
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        with pytest.raises(Rejected, match="line 22 repeats the header; were files joined"):
            load(tmp_path, KIND, {"train": "a.csv"}, "csv")


@pytest.mark.parametrize(("a", "b"), [("café", "cafe\u0301"), ("sport", "sport\u200b"), ("sport", "\ufeffsport")])
def test_labels_that_look_the_same_are_rejected_in_escaped_form(tmp_path: Path, a: str, b: str) -> None:
    rows = [{"text": f"a {k}", "label": (a, b, "other")[k % 3]} for k in range(30)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(Rejected, match="look the same: they differ only in their Unicode form or in invisible") as told:
        load(tmp_path, KIND, {"train": "a.jsonl"})
    assert ascii(b) in str(told.value)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pa.table({"text": ["a"] * 20, "label": pa.array([b"x", b"y"] * 10)}), "is binary; store labels as text"),
        (pa.table([["a"] * 20, ["x"] * 20, ["y"] * 20], names=["text", "label", "label"]), "'label' more than once"),
        (
            pa.table(
                {
                    "text": pa.array([b"ok"] * 6 + [b"caf\xe9"] + [b"ok"] * 13).view(pa.string()),
                    "label": ["x", "y"] * 10,
                }
            ),
            "column 'text' of row 7 is not UTF-8",
        ),
        (
            pa.table({"text": ["a"] * 20, "label": ["x", "y"] * 10}).replace_schema_metadata({"huggingface": "{"}),
            r"a\.parquet cannot be read as parquet",
        ),
    ],
    ids=["binary labels", "a column twice", "not UTF-8", "broken metadata"],
)
def test_faulty_parquet_files_are_rejected_with_the_reason(tmp_path: Path, table: pa.Table, told: str) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(Rejected, match=told):
        load(tmp_path, KIND, {"train": "a.parquet"}, "parquet")


def test_no_split_is_carved_out_if_every_row_is_its_own_class(tmp_path: Path) -> None:
    rows = [{"text": f"a {k}", "label": f"class {k}"} for k in range(10)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(Rejected, match="split can be carved out of train: every example taken for it is the only one"):
        load(tmp_path, KIND, {"train": "a.jsonl"})


def test_a_split_without_any_class_of_train_is_rejected(tmp_path: Path) -> None:
    for name, labels in (("train", "ab"), ("validation", "xy"), ("test", "ab")):
        rows = [{"text": f"a {k}", "label": labels[k % 2]} for k in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {name: f"{name}.jsonl" for name in ("train", "validation", "test")}
    with pytest.raises(Rejected, match="no row of the validation split has a class of train"):
        load(tmp_path, KIND, files, on_bad_row="count_as_wrong")


def test_a_file_that_is_compressed_twice_is_rejected_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(gzip.compress(csv(["a,b"] * 20).encode())))
    with pytest.raises(Rejected, match=r"a\.csv\.gz cannot be read as csv") as told:
        load(tmp_path, KIND, {"train": "a.csv.gz"}, "csv")
    assert "compressed twice" in str(told.value)


# --- images


def png(values: Any, mode: str | None = None, **options: Any) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(np.asarray(values), mode=mode).save(stream, options.pop("format", "PNG"), **options)
    return {"bytes": stream.getvalue(), "path": None}


def pixels(found: Any) -> Any:
    assert isinstance(found, Image.Image), found
    return np.asarray(found)[..., 0]


def test_images_of_16_bits_keep_their_range() -> None:
    values = np.array([[0, 257 * 10], [257 * 100, 65535]], dtype=np.uint16)
    assert pixels(_decoded(png(values), [])).tolist() == [[0, 10], [100, 255]]


def test_images_with_values_between_0_and_1_are_rejected() -> None:
    tiff = png(np.array([[0.0, 0.5], [0.25, 1.0]], dtype=np.float32), format="TIFF")
    assert _decoded(tiff, []) == "has floating-point values other than 0 to 255"
    assert _image([[0.0, 0.5], [0.25, 1.0]]) == "has values between 0 and 1 where 0 to 255 are meant"
    assert pixels(_image([[0, 1], [1, 0]])).tolist() == [[0, 1], [1, 0]]


def test_an_image_is_rotated_by_its_exif_tag() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    turned = _decoded(png(np.array([[0, 100]], dtype=np.uint8), exif=exif), [])
    assert pixels(turned).tolist() == [[0], [100]]


def test_a_cell_that_names_a_file_outside_its_dataset_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    for place in (tmp_path / "own" / "in.png", tmp_path / "out.png"):
        place.write_bytes(png(np.array([[7]], dtype=np.uint8))["bytes"])
    (tmp_path / "own" / "link.png").symlink_to("../out.png")
    own = [tmp_path / "own"]
    assert pixels(_decoded({"bytes": None, "path": str(tmp_path / "own" / "in.png")}, own)).tolist() == [[7]]
    for name in (str(tmp_path / "out.png"), "own/in.png", str(tmp_path / "own/../out.png"), f"{tmp_path}/own/link.png"):
        assert _decoded({"bytes": None, "path": name}, own) == "names a file outside of the dataset"
