"""Parquet, CSV, TSV, JSON and data sets on the hub -> their rows, split by split, each named."""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from typing import Any, NamedTuple

from foveal.data.convert.sources.source import SPLITS, Entry, Source
from foveal.errors import DataError, UserError, one_line

Row = Mapping[str, Any]

LONGEST_FIELD = 2**28
"""Characters of a CSV's field; an image in base64 is long."""


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, by its name."""

    path: str
    """`owner/name`."""

    links_out: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Name it."""
        return self.path

    def find(self, path: str) -> None:
        """Find no file: a data set on the hub holds its images itself."""


class NamedRow(NamedTuple):
    """A row of somebody else."""

    name: str
    """What messages call it."""

    row: Any
    split: str


def holds_columns(source: Source | Hub) -> bool:
    """Whether a source's rows are columns, of Parquet files or on the hub."""
    return isinstance(source, Hub) or bool(source.match("*.parquet"))


def all_rows(source: Source | Hub) -> Iterator[NamedRow]:
    """Read the rows of a source, whatever it is.

    Raises:
        UserError, DataError: as `open_splits`.
    """
    if isinstance(source, Source) and not holds_columns(source):
        yield from rows_of_files(source)
    else:
        for split in open_splits(source):
            yield from split.rows


def rows_of_files(source: Source, *endings: str) -> Iterator[NamedRow]:
    """Read the rows of a source's files of text, the files in the order of the endings."""
    for file in (file for ending in endings or READERS for file in source.match(f"*{ending}")):
        for number, row in enumerate(READERS[file.suffix](file), start=1):
            yield NamedRow(f"{file}, row {number}", row, file.split)


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


def _json_rows(file: Entry) -> list[Any]:
    """Read the rows of a list, or of an object; anything else is one row that is none."""
    tree = file.read_json()
    if not isinstance(tree, dict):
        return tree if isinstance(tree, list) else [None]
    if tree and all(isinstance(row, dict) for row in tree.values()):  # by their ids, as in GQA
        return [{"id": name} | row for name, row in tree.items()]
    lists = {key: one for key, one in tree.items() if one and isinstance(one, list)}
    if {"images", "annotations"} <= lists.keys():  # as COCO has captions
        images = rows_by("id", lists["images"])
        said = (one for one in lists["annotations"] if isinstance(one, dict))
        return [images.get(str(one.get("image_id")), {}) | one for one in said]
    return next(iter(lists.values())) if len(lists) == 1 else [None]  # as in TextVQA


def rows_by(key: str, rows: Iterable[Any]) -> dict[str, dict[str, Any]]:
    """Find rows by what they hold under a key, as text."""
    return {str(row[key]): row for row in rows if isinstance(row, dict) and key in row}


READERS = {".csv": _csv_rows, ".tsv": _csv_rows, ".json": _json_rows, ".jsonl": Entry.read_lines}
"""Ending of a file of text -> what reads its rows."""


class SplitOfColumns(NamedTuple):
    """A split of columns, as a stream."""

    name: str
    rows: Iterator[NamedRow]
    num_rows: int | None
    """Where it is known."""


def open_splits(source: Source | Hub, config: str | None = None) -> list[SplitOfColumns]:
    """Open each split of Parquet files, or on the hub.

    Args:
        source: what holds them.
        config: which of the hub data set's parts, where it has one of that name.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched.
    """
    datasets = _import_datasets()
    splits: list[SplitOfColumns] = []
    if isinstance(source, Hub):
        with _mendable(f"{source.path}: no such folder, and on the hub"):
            configs = datasets.get_dataset_config_names(source.path)
            part = config if config in configs else None
            streams = datasets.load_dataset(source.path, part, streaming=True)
            known = streams[next(iter(streams))].info.splits or {}
        for name, stream in streams.items():
            split, count = (
                SPLITS.get(name, name),
                known[name].num_examples if name in known else None,
            )
            splits.append(SplitOfColumns(split, _name_rows(split, _rows(stream)), count))
        return splits
    files: dict[str, list[str]] = {}
    for entry in source.match("*.parquet"):
        if entry.member is not None:
            raise DataError(f"{entry}: unpack Parquet files first")
        files.setdefault(entry.split, []).append(str(entry.file))
    counts = count_rows([file for names in files.values() for file in names])
    for split, names in files.items():
        if there := [name for name in names if name in counts]:
            rows = _name_rows(split, stream_parquet(str(source.path), there))
            splits.append(SplitOfColumns(split, rows, sum(counts[name] for name in there)))
    return splits


def _name_rows(split: str, rows: Iterator[Row]) -> Iterator[NamedRow]:
    for number, row in enumerate(rows):
        yield NamedRow(f"{split} row {number}", row, split)


def stream_parquet(name: str, files: Iterable[str]) -> Iterator[Row]:
    """Stream the rows of Parquet files, one file after the other, each by its very name.

    Raises:
        UserError, DataError: as `stream_rows`.
    """
    return stream_rows(
        name, "parquet", None, split="train", data_files=[escape(one) for one in files]
    )


def stream_rows(name: str, *where: str | None, split: str, **options: Any) -> Iterator[Row]:
    """Stream the rows of one split, or of a part of it as `datasets` writes it.

    Args:
        name: what messages call it.
        where: what `datasets.load_dataset` takes first.
        split: such as `train`; a slice, such as `train[:50]` or `train[10%:20%]`, is fetched first.
        options: and what it takes by name.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched.
    """
    datasets = _import_datasets()
    with _mendable(name):
        if split.isidentifier():
            return _rows(datasets.load_dataset(*where, split=split, streaming=True, **options))
        # A stream cannot be sliced.
        whole = datasets.load_dataset(*where, split=split, **options)
        return _rows(whole.to_iterable_dataset())


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "this layout needs the package datasets: pip install foveal[data]"
        ) from error
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails we say ourselves
    return datasets


def _rows(stream: Any) -> Iterator[Row]:
    features = stream.features or {}
    try:
        for row in stream.decode(False):  # images stay bytes
            yield {column: _plain(held, features.get(column)) for column, held in row.items()}
    except Exception as error:  # of the network or the file, and long after it was opened
        raise DataError(
            f"rows broke off ({one_line(error, 300)}); convert again to go on"
        ) from error


def _plain(value: Any, feature: Any) -> Any:
    """Name a label that is stored as its number, and read what is stored as a text of JSON."""
    kind = type(feature).__name__
    if value is None or kind == "Value":
        return value
    if kind == "ClassLabel":  # -1 is what hidden test sets hold
        return feature.names[value] if value >= 0 else None
    if kind == "Json":
        return json.loads(value)
    if kind in ("List", "LargeList"):
        return [_plain(one, feature.feature) for one in value]
    if isinstance(feature, dict):
        return {key: _plain(one, feature.get(key)) for key, one in value.items()}
    return value


@contextmanager
def _mendable(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of the network, the hub, the cache or the file
        raise DataError(f"{where}: {one_line(error, 300)}") from error


def count_rows(files: Sequence[str]) -> dict[str, int]:
    """Hold Parquet files against each other before they are read as one.

    Returns:
        Those that have rows, and how many.

    Raises:
        DataError: they have other columns, or none has a row, or one cannot be read.
    """
    from pyarrow import parquet

    columns: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for file in files:
        try:
            columns[file] = set(parquet.read_schema(file).names)
            counts[file] = parquet.read_metadata(file).num_rows
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: no Parquet file ({one_line(error, 300)}); replace it"
            ) from error
        if columns[file] != columns[files[0]]:
            raise DataError(
                f"{file}: has the columns {', '.join(sorted(columns[file]))}, and {files[0]} "
                f"{', '.join(sorted(columns[files[0]]))}; put them into folders of their own"
            )
    if not any(counts.values()):
        more = f" and {len(files) - 1} more" * (len(files) > 1)
        raise DataError(f"{files[0]}{more}: no row in it; give a file with rows")
    return {file: count for file, count in counts.items() if count}
