"""Statements about one picture or two that hold or not (NLVR, NLVR2, memes) -> drafts."""

from collections.abc import Iterator
from typing import Any

from foveal.data.convert.draft import Draft, DraftImage, LeftOutRow, Options, attempt
from foveal.data.convert.sources.source import Entry, Source
from foveal.data.convert.sources.values import UnfitError
from foveal.data.example import Turn

CHOICES = ("True", "False")


def convert_nlvr(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """NLVR's `<split>/<split>.json`, one picture a statement, and `nlvr_pairs/<split>.json`, two.

    A statement becomes one example for each permutation of its picture that is there; pairs become
    the set `nlvr_pairs`.
    """
    pictures: dict[str, list[str]] = {}
    for entry in source.match("*.png"):
        pictures.setdefault(entry.stem.rpartition("-")[0], []).append(entry.name)
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        if file.folders[-1:] == (file.stem,):
            for line in file.read_lines():
                stem = f"{file.stem}-{line.get('identifier')}"
                for picture in pictures.get(stem, [stem]):
                    drafts += _statement(source, file, line, [picture])
    for file in source.match("nlvr_pairs/*.json"):
        for line in file.read_lines():
            images = [str(line.get("left_image")), str(line.get("right_image"))]
            drafts += _statement(source, file, line, images, "nlvr_pairs")
    return drafts


def convert_nlvr2(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """NLVR2's `<split>.json` with pictures called `...-img0.png` and `...-img1.png`, or columns."""
    drafts: list[Draft | LeftOutRow] = []
    for file in source.match("*.json"):
        for line in file.read_lines():
            pair = str(line.get("identifier", "")).rpartition("-")[0]  # the last one: the sentence
            drafts += _statement(source, file, line, [f"{pair}-img0.png", f"{pair}-img1.png"])
    return drafts


def _statement(
    source: Source,
    file: Entry,
    line: dict[str, Any],
    images: list[str],
    set_name: str | None = None,
) -> Iterator[Draft | LeftOutRow]:
    def draft() -> Draft:
        sentence, label = line.get("sentence"), str(line.get("label")).capitalize()
        if not isinstance(sentence, str) or label not in CHOICES:
            raise UnfitError("no sentence with a label")
        media = []
        for entry in map(source.need, images):
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

    return attempt(f"{file}, {line.get('identifier')}", draft)


def ask_statement(sentence: str) -> str:
    """Turn a statement into a question; what all questions share stands in front, to be shared."""
    return f"True or False?\n{sentence}"


def convert_hateful_memes(source: Source, options: Options) -> list[Draft | LeftOutRow]:
    """Hateful Memes' `<split>.jsonl` with pictures in `img/`, or columns."""
    return [
        draft
        for file in source.match("*.jsonl")
        for line in file.read_lines()
        for draft in attempt(f"{file}, {line.get('id')}", _meme, source, file, line, options)
    ]


def _meme(source: Source, file: Entry, line: dict[str, Any], options: Options) -> Draft:
    if line.get("label") not in (0, 1):
        raise UnfitError("no label (a hidden test set)")
    entry = source.need(str(line.get("img", "")))
    picture = DraftImage(entry, f"{file.stem}/{entry.last_name}")
    turn = Turn(
        images=(picture.target,),
        user=options.question or "Is this meme hateful? Answer Yes or No.",
        assistant="Yes" if line["label"] else "No",
        choices=("Yes", "No"),
    )
    return Draft(file.stem, (turn,), (picture,))
