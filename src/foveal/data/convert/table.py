"""Anybody's rows of pictures, questions and answers (Parquet, CSV, TSV, JSON) -> drafts."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from foveal.data.convert.columns import Reading, drafts_of_row, read_rows
from foveal.data.convert.draft import Draft, LeftOutRow, Options
from foveal.data.convert.label_studio import is_task, row_of_task
from foveal.data.convert.sources.json_entry import read_lines, read_rows_of_json
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.splits import split_of
from foveal.data.convert.sources.tables import Hub
from foveal.data.convert.sources.values import UnfitError
from foveal.errors import DataError

LONGEST_FIELD = 2**28
"""Characters of a CSV's field; a picture in base64 is long."""


def convert_table(source: Source | Hub, options: Options) -> Iterable[Draft | LeftOutRow]:
    """Rows of pictures with questions and answers, or with messages; columns by name."""
    if isinstance(source, Hub) or source.match("*.parquet"):
        return read_rows(source, None, options)
    return _drafts(source, named_rows(row_files(source)), options)


def row_files(source: Source) -> list[Entry]:
    """List a source's files of rows.

    Raises:
        DataError: there are none.
    """
    files = [file for ending in READERS for file in source.match(f"*{ending}")]
    if not files:
        raise DataError(f"{source.path}: no Parquet, CSV, TSV, JSON or JSONL file in it")
    return files


def named_rows(files: Iterable[Entry]) -> Iterator[tuple[str, Any, str]]:
    """Name every row of some files, and the split that it belongs to."""
    for file in files:
        split = split_of(file.stem, file.folders) or "train"
        for number, row in enumerate(READERS[file.suffix](file), start=1):
            yield f"{file}, row {number}", row, split


def _drafts(
    source: Source, rows: Iterable[tuple[str, Any, str]], options: Options
) -> Iterator[Draft | LeftOutRow]:
    reading = Reading(options.columns, question=options.question, seed=options.seed, closed=False)
    for name, row, split in rows:
        if not isinstance(row, dict):
            yield LeftOutRow(name, "not a row of named columns")
            continue
        try:
            held = row_of_task(row) if is_task(row) else row
        except UnfitError as error:
            yield LeftOutRow(name, str(error))
            continue
        yield from drafts_of_row(held, split, name, reading, source.find)


def _csv_rows(file: Entry) -> Iterator[Any]:
    text = file.read_text()
    header = text.partition("\n")[0]
    delimiter = max("\t" if file.suffix == ".tsv" else ",", ";", "\t", key=header.count)
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.DictReader(
        io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
    )
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        rows.fieldnames = names
        if twice := [name for name, count in Counter(names).items() if name and count > 1]:
            raise DataError(f"{file}: several columns are named {twice[0]}; rename all but one")
        for row in rows:
            yield None if None in row else row  # more fields than columns
    except csv.Error as error:
        raise DataError(f"{file}: not a table ({error}); export it again") from error


READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": read_rows_of_json, ".jsonl": read_lines}
"""Ending of a file -> what reads its rows."""
