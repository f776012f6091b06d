"""Read data files record by record: the server the first record, runners all of them."""

from .csv_files import CsvFile
from .json_files import first_json_keys, first_json_record, json_records
from .text_files import LONGEST_LINE, PACKAGED, SUFFIXES, UnreadableFile, has_suffix, names_shown, open_text

__all__ = [
    "LONGEST_LINE",
    "PACKAGED",
    "SUFFIXES",
    "CsvFile",
    "UnreadableFile",
    "first_json_keys",
    "first_json_record",
    "has_suffix",
    "json_records",
    "names_shown",
    "open_text",
]
