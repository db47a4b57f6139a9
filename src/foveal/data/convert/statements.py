"""Statements about one picture or two that hold or not (NLVR, NLVR2, memes) -> drafts."""

from collections.abc import Iterable, Iterator
from typing import Any

from foveal.data.convert.columns import read_rows
from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options
from foveal.data.convert.sources.json_entry import read_lines
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.tables import Hub
from foveal.data.example import Turn
from foveal.errors import DataError

CHOICES = ("True", "False")
NO_PICTURE = "no picture of that name"


def convert_nlvr(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """NLVR: `nlvr/<split>/<split>.json`, one picture a statement, and pairs made of it.

    A statement becomes one example for each permutation of its picture that is there.
    `nlvr_pairs/<split>.json` beside it becomes the set `nlvr_pairs`, two pictures a statement.
    """
    singles = [file for file in source.match("*.json") if file.folders[-1:] == (file.stem,)]
    pairs = source.match("nlvr_pairs/*.json")
    if not pairs and not singles:
        raise DataError(f"{source.path}: no <split>/<split>.json and no nlvr_pairs/*.json in it")
    drafts = [draft for file in singles for draft in _permutations(source, file)]
    for file in pairs:
        for line in read_lines(file):
            images = [str(line.get("left_image")), str(line.get("right_image"))]
            drafts.append(_statement(source, file, line, images, "nlvr_pairs"))
    return drafts


def _permutations(source: Source, file: Entry) -> Iterator[Draft | LeftOutRow]:
    pictures: dict[str, list[Entry]] = {}
    for entry in source.match("*.png"):
        pictures.setdefault(entry.stem.rpartition("-")[0], []).append(entry)
    for line in read_lines(file):
        stem = f"{file.stem}-{line.get('identifier')}"
        if stem not in pictures:
            yield LeftOutRow(f"{file}, {line.get('identifier')}", NO_PICTURE)
        for picture in pictures.get(stem, ()):
            yield _statement(source, file, line, [picture.name])


def _statement(
    source: Source,
    file: Entry,
    line: dict[str, Any],
    images: list[str],
    set_name: str | None = None,
) -> Draft | LeftOutRow:
    name = f"{file}, {line.get('identifier')}"
    sentence, label = line.get("sentence"), str(line.get("label")).capitalize()
    if not isinstance(sentence, str) or label not in CHOICES:
        return LeftOutRow(name, "no sentence with a label")
    media = []
    for image in images:
        entry = source.find(image)
        if entry is None:
            return LeftOutRow(name, NO_PICTURE)
        # nlvr/dev/images/0/dev-1-0-2.png -> dev/0/dev-1-0-2.png
        split, folder = entry.stem.partition("-")[0], "".join(entry.folders[-1:])
        media.append(DraftImage(entry, f"{split}/{folder}/{entry.last_name}"))
    turn = Turn(
        images=tuple(picture.target for picture in media),
        user=ask_statement(sentence.strip()),
        assistant=label,
        choices=CHOICES,
    )
    return Draft(file.stem, (turn,), tuple(media), set_name)


def ask_statement(sentence: str) -> str:
    """Turn a statement into a question; what all questions share stands in front, to be shared."""
    return f"True or False?\n{sentence}"


def convert_nlvr2(source: Source | Hub, options: Options) -> Iterable[Draft | LeftOutRow]:
    """NLVR2: `<split>.json` with pictures called `...-img0.png` and `...-img1.png`, or columns."""
    if isinstance(source, Hub) or source.match("*.parquet"):
        return read_rows(source, "nlvr2", options)
    drafts = [draft for file in source.match("*.json") for draft in _photographs(source, file)]
    if not drafts:
        raise DataError(f"{source.path}: no <split>.json in it, no Parquet file")
    return drafts


def _photographs(source: Source, file: Entry) -> Iterator[Draft | LeftOutRow]:
    for line in read_lines(file):
        pair = str(line.get("identifier", "")).rpartition("-")[0]  # the last number is the sentence
        yield _statement(source, file, line, [f"{pair}-img0.png", f"{pair}-img1.png"])


def convert_hateful_memes(source: Source | Hub, options: Options) -> Iterable[Draft | LeftOutRow]:
    """Hateful Memes: `<split>.jsonl` with pictures in `img/`, or columns."""
    if isinstance(source, Hub) or source.match("*.parquet"):
        return read_rows(source, "hateful_memes", options)
    drafts = [
        _meme(source, file, line, options)
        for file in source.match("*.jsonl")
        for line in read_lines(file)
    ]
    if not drafts:
        raise DataError(f"{source.path}: no <split>.jsonl in it, no Parquet file")
    return drafts


def _meme(
    source: Source, file: Entry, line: dict[str, Any], options: Options
) -> Draft | LeftOutRow:
    name = f"{file}, {line.get('id')}"
    entry = source.find(str(line.get("img", "")))
    if line.get("label") not in (0, 1):
        return LeftOutRow(name, "no label (a hidden test set)")
    if entry is None:
        return LeftOutRow(name, NO_PICTURE)
    picture = DraftImage(entry, f"{file.stem}/{entry.last_name}")
    turn = Turn(
        images=(picture.target,),
        user=options.question or "Is this meme hateful? Answer Yes or No.",
        assistant="Yes" if line["label"] else "No",
        choices=("Yes", "No"),
    )
    return Draft(file.stem, (turn,), (picture,))
