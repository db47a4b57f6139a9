"""Parquet files and data sets on the hub -> their rows, split by split, pictures as bytes."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foveal.data.convert.sources.source import Source
from foveal.data.convert.sources.splits import SPLITS, split_of
from foveal.errors import DataError, UserError

Row = Mapping[str, Any]


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
        """Find no file: a data set on the hub holds its pictures itself."""


def open_splits(
    source: Source | Hub, config: str | None
) -> dict[str, tuple[Iterator[Row], int | None]]:
    """Open each split as a stream of rows, with their number where it is known.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched.
    """
    datasets = _import_datasets()
    try:
        if isinstance(source, Hub):
            configs = datasets.get_dataset_config_names(source.path)
            part = config if config in configs else None
            streams = datasets.load_dataset(source.path, part, streaming=True)
            known = streams[next(iter(streams))].info.splits or {}
            counts = {name: known[name].num_examples for name in known}
        else:
            files = _files_by_split(source)
            whole = check_columns([file for names in files.values() for file in names])
            files = {split: [one for one in files[split] if one in whole] for split in files}
            files = {split: names for split, names in files.items() if names}
            streams = datasets.load_dataset("parquet", data_files=files, streaming=True)
            counts = {split: _count(names) for split, names in files.items()}
    except DataError:
        raise
    except Exception as error:  # of the network, the hub, the cache or the file
        if isinstance(source, Hub):
            where = f"{source.path}: no such folder, and on the hub"
        else:
            where = str(source.path)
        raise DataError(f"{where}: {explain_columns(error)}") from error
    return {
        SPLITS.get(split, split): (_rows(stream), counts.get(split))
        for split, stream in streams.items()
    }


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
    try:
        if split.isidentifier():
            stream = datasets.load_dataset(*where, split=split, streaming=True, **options)
        else:  # a stream cannot be sliced
            stream = datasets.load_dataset(*where, split=split, **options).to_iterable_dataset()
    except Exception as error:  # of the network, the hub, the cache or the file
        raise DataError(f"{name}: {explain_columns(error)}") from error
    return _rows(stream)


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
    labels = {
        column: feature.names
        for column, feature in (stream.features or {}).items()
        if type(feature).__name__ == "ClassLabel"
    }
    try:
        for row in stream.decode(False):
            yield row | {column: _named(row[column], names) for column, names in labels.items()}
    except Exception as error:  # of the network or the file, and long after it was opened
        raise DataError(
            f"rows broke off ({explain_columns(error)}); convert again to go on"
        ) from error


def _named(number: int | None, names: Sequence[str]) -> str | None:
    """Name a label that is stored as its number; -1 is what hidden test sets hold."""
    return None if number is None or number < 0 else names[number]


def explain_columns(error: Exception) -> str:
    """Say in one line what went wrong."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _files_by_split(source: Source) -> dict[str, list[str]]:
    files: dict[str, list[str]] = {}
    for entry in source.match("*.parquet"):
        if entry.member is not None:
            raise DataError(f"{entry}: unpack Parquet files first")
        split = split_of(entry.stem, entry.folders) or "train"
        files.setdefault(split, []).append(str(entry.file))
    return files


def check_columns(files: Sequence[str]) -> list[str]:
    """Hold Parquet files against each other before they are read as one; leave out empty ones.

    Raises:
        DataError: they have other columns, or none has a row, or one cannot be read.
    """
    from pyarrow import parquet

    first: set[str] | None = None
    with_rows = []
    for file in files:
        try:
            names = set(parquet.read_schema(file).names)
            with_rows += [file] * bool(parquet.read_metadata(file).num_rows)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{file}: no Parquet file ({explain_columns(error)}); replace it"
            ) from error
        first = names if first is None else first
        if names != first:
            raise DataError(
                f"{file}: has the columns {', '.join(sorted(names))}, and {files[0]} "
                f"{', '.join(sorted(first))}; put them into folders of their own"
            )
    if not with_rows:
        more = f" and {len(files) - 1} more" * (len(files) > 1)
        raise DataError(f"{files[0]}{more}: no row in it; give a file with rows")
    return with_rows


def _count(names: Iterable[str]) -> int:
    from pyarrow import parquet

    return sum(parquet.read_metadata(name).num_rows for name in names)
