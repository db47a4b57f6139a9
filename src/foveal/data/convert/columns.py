"""Rows of a hub data set, or of Parquet files with its columns -> drafts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from typing import Any

from foveal.data.convert.draft import Draft, LeftOut, Options, Picture
from foveal.data.convert.folders import SPLITS
from foveal.data.convert.source import Source
from foveal.data.example import Turn
from foveal.errors import DataError, UserError

VALIDATION_ROWS = 500
"""Most rows of an only split that become `val`: its first, as in the published recipe."""

_ENDINGS = {b"\x89PNG": "png", b"\xff\xd8": "jpg", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp"}


@dataclass(frozen=True)
class Hub:
    """A data set on the hub, by its name."""

    name: str
    links_out: tuple[str, ...] = ()

    def fingerprint(self) -> str:
        """Name it."""
        return self.name


def read_rows(source: Source | Hub, config: str, options: Options) -> Iterator[Draft | LeftOut]:
    """Draft each question of each row; a picture is named by its content, so it is stored once.

    Known columns: `images` and `texts` (the_cauldron), `image` with `query` or `question` and
    `answers` (DocVQA).

    Args:
        source: Parquet files, or a name on the hub.
        config: which of the hub data set's parts, where it has several.
        options: of them `validation_fraction` and `seed` matter.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched or have other columns.
    """
    splits = _open(source, config)
    for split, (rows, count) in splits.items():
        held_out = 0
        if len(splits) == 1 and split == "train":
            share = VALIDATION_ROWS if count is None else int(options.validation_fraction * count)
            held_out = min(VALIDATION_ROWS, share)
        for number, row in enumerate(rows):
            side = "val" if number < held_out else split
            closed = config != "docvqa"
            yield from drafts_of_row(row, side, f"{split} row {number}", options, closed)


def _open(source: Source | Hub, config: str) -> dict[str, tuple[Any, int | None]]:
    """Open each split as a stream of rows, with their number where it is known."""
    datasets = _import_datasets()
    try:
        if isinstance(source, Hub):
            configs = datasets.get_dataset_config_names(source.name)
            part = config if config in configs else None
            streams = datasets.load_dataset(source.name, part, streaming=True)
            known = streams[next(iter(streams))].info.splits or {}
            counts = {name: known[name].num_examples for name in known}
        else:
            files = _files_by_split(source)
            streams = datasets.load_dataset("parquet", data_files=files, streaming=True)
            counts = {split: _count(names) for split, names in files.items()}
    except DataError:
        raise
    except Exception as error:  # of the network, the hub, the cache or the file
        if isinstance(source, Hub):
            where = f"{source.name}: no such folder, and on the hub"
        else:
            where = str(source.path)
        raise DataError(f"{where}: {explain(error)}") from error
    return {
        SPLITS.get(split, split): (_rows(stream.decode(False)), counts.get(split))
        for split, stream in streams.items()
    }


def stream_rows(name: str, *where: str | None, **options: Any) -> Iterator[Mapping[str, Any]]:
    """Stream the rows of one split, pictures as bytes.

    Args:
        name: what messages call it.
        where: what `datasets.load_dataset` takes first.
        options: and what it takes by name.

    Raises:
        UserError: `datasets` is not installed.
        DataError: the rows cannot be fetched.
    """
    datasets = _import_datasets()
    try:
        stream = datasets.load_dataset(*where, streaming=True, **options)
    except Exception as error:  # of the network, the hub, the cache or the file
        raise DataError(f"{name}: {explain(error)}") from error
    return _rows(stream.decode(False))


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "this layout needs the package datasets: pip install foveal[data]"
        ) from error
    return datasets


def _rows(stream: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    try:
        yield from stream
    except Exception as error:  # of the network or the file, and long after it was opened
        raise DataError(f"rows broke off ({explain(error)}); convert again to go on") from error


def explain(error: Exception) -> str:
    """Say in one line what went wrong."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _files_by_split(source: Source) -> dict[str, list[str]]:
    """`data/train-00000-of-00002.parquet` -> train."""
    files: dict[str, list[str]] = {}
    for entry in source.match("*.parquet"):
        if entry.member is not None:
            raise DataError(f"{entry}: unpack Parquet files first")
        first = entry.stem.partition("-")[0].lower()
        split = next((word for word in (first, *entry.folders[::-1]) if word in SPLITS), "train")
        files.setdefault(SPLITS[split], []).append(str(entry.file))
    return files


def _count(names: Sequence[str]) -> int:
    from pyarrow import parquet

    return sum(parquet.read_metadata(name).num_rows for name in names)


def drafts_of_row(
    row: Mapping[str, Any], split: str, name: str, options: Options, closed: bool = True
) -> Iterator[Draft | LeftOut]:
    """Draft each question of a row of known columns.

    Args:
        row: with the bytes of its pictures.
        split: first folder of the pictures' names.
        name: what messages call the row.
        options: of them `seed` matters.
        closed: whether yes and no, or true and false, are all the answers there are.
    """
    images = row.get("images") or [row[key] for key in ("image",) if row.get(key)]
    contents = [image.get("bytes") for image in images]
    if not contents or not all(contents):
        yield LeftOut(name, "no picture in the row")
        return
    media = tuple(Picture(content, _target(split, content)) for content in contents)
    targets = tuple(picture.target for picture in media)
    if texts := row.get("texts"):
        for text in texts:
            turn = Turn(
                images=targets,
                user=text["user"],
                assistant=text["assistant"],
                choices=closed_set(text["assistant"]) if closed else (),
            )
            yield Draft(split, (turn,), media)
    elif (question := row.get("query") or row.get("question")) and row.get("answers"):
        asked = question["en"] if isinstance(question, Mapping) else question
        identity = row.get("id") or row.get("questionId") or name
        turn = Turn(
            images=targets,
            user=f"{asked}\nAnswer briefly.",  # the published recipe's words
            assistant=Random(f"{options.seed}/{identity}").choice(row["answers"]),
            answers=tuple(row["answers"]),
        )
        yield Draft(split, (turn,), media)
    else:
        yield LeftOut(name, "no question with an answer in the row")


def _target(split: str, content: bytes) -> str:
    return f"{split}/{sha256(content).hexdigest()[:20]}.{ending_of(content)}"


def ending_of(content: bytes) -> str:
    """Tell the ending that a picture's file should have from how it begins."""
    return next((end for start, end in _ENDINGS.items() if content.startswith(start)), "img")


def closed_set(answer: str) -> tuple[str, ...]:
    """Find the set that an answer is one of, yes or no, true or false, written in its way."""
    stop = "." if answer.endswith(".") else ""
    for pair in (("Yes", "No"), ("True", "False")):
        written = tuple(word + stop for word in pair)
        if answer in written:
            return written
    return ()
