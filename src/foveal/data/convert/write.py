"""Drafts -> images and JSONL files on disk: in parallel, each file whole or not at all."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path

from foveal.data.convert.draft import TWIN, Clip, Draft, DraftImage, LeftOutRow
from foveal.data.convert.sources.source import Entry
from foveal.data.example import Example, write_examples
from foveal.data.images.clips import decode_frames
from foveal.data.images.media import load_image
from foveal.data.parallel import parallel
from foveal.errors import DataError
from foveal.storage import alone_in, write_bytes

LOCK = ".lock"
"""In OUT, while a process fills it."""

JPEG_QUALITY = 95
"""Of frames; other images are copied as they are."""

Progress = Callable[[int, int | None], None]
"""Called with how many drafts are done, and how many there are, where that is known."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote and what it left out."""

    files: tuple[Path, ...]
    """The JSONL files."""

    counts: Mapping[str, Counter[str]]
    """Name of the file without its ending -> label -> examples; open answers have the label ""."""

    left_out: Counter[str]
    """Reason -> how many; OUT/left_out.txt names each."""


def write_drafts(
    drafts: Iterable[Draft | LeftOutRow],
    out: Path,
    name: str,
    *,
    nothing: str = "nothing of its kind in it",
    left_out: Iterable[LeftOutRow] = (),
    workers: int = 1,
    progress: Progress | None = None,
) -> Converted:
    """Write images that are not there yet, then the JSONL files.

    Ids count through the splits in the order train, val, test, others, as in the published recipe.

    Args:
        drafts: the examples, or why something is none.
        out: folder to fill.
        name: first part of the files' names, and the examples' `source`.
        nothing: what is said where there are no drafts.
        left_out: what was left out before.
        workers: processes that decode; 1: none beside this one.
        progress: called as drafts are done.

    Raises:
        DataError: no example comes out of it.
    """
    total = len(drafts) if isinstance(drafts, Sized) else None
    kept: dict[tuple[str, str], list[Draft]] = {}
    left_out = list(left_out)
    write = partial(_write_media, out / "images")
    with closing(parallel(write, _without_clashes(drafts), workers, chunk=8)) as outcomes:
        for done, outcome in enumerate(outcomes, start=1):
            if isinstance(outcome, LeftOutRow):
                left_out.append(outcome)
            else:
                kept.setdefault((outcome.set_name or name, outcome.split), []).append(outcome)
            if progress:
                progress(done, total)
    if not kept:
        most = Counter(item.reason for item in left_out).most_common(1)
        why = "".join(f"left out: {count} x {reason}" for reason, count in most)
        raise DataError(f"no example came out of it; {why or nothing}")
    out.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    counts: dict[str, Counter[str]] = {}
    number: Counter[str] = Counter()
    for set_name, split in sorted(kept, key=_reading_order):
        examples = []
        for draft in kept[set_name, split]:
            identity = f"{split}-{number[set_name]:010d}"
            number[set_name] += 1
            examples.append(
                Example(
                    id=identity, source=set_name, system=draft.system, conversations=draft.turns
                )
            )
        files.append(out / f"{set_name}_{split}.jsonl")
        write_examples(files[-1], examples)
        counts[files[-1].stem] = Counter(draft.label for draft in kept[set_name, split])
    named = "".join(f"{item.name}\t{item.reason}\n" for item in left_out)
    write_bytes(out / "left_out.txt", named.encode())
    return Converted(tuple(files), counts, Counter(item.reason for item in left_out))


def _without_clashes(drafts: Iterable[Draft | LeftOutRow]) -> Iterator[Draft | LeftOutRow]:
    """Leave out what would be written over another image of the same name."""
    owners: dict[str, Entry] = {}
    for draft in drafts:
        clash = None
        for medium in draft.media if isinstance(draft, Draft) else ():
            name = medium.targets[0] if isinstance(medium, Clip) else medium.target
            entry = medium.source  # bytes are named by their content
            if isinstance(entry, Entry) and owners.setdefault(name, entry) != entry:
                clash = clash or LeftOutRow(str(entry), TWIN)
        yield clash or draft


def _reading_order(key: tuple[str, str]) -> tuple[str, int, str]:
    set_name, split = key
    usual = ("train", "val", "dev", "validation", "test")
    return set_name, usual.index(split) if split in usual else len(usual), split


def _write_media(images: Path, draft: Draft | LeftOutRow) -> Draft | LeftOutRow:
    """Write the images of one draft; runs in a process of its own. Gives up the bytes it had."""
    if isinstance(draft, LeftOutRow):
        return draft
    for medium in draft.media:
        name = medium.target if isinstance(medium.source, bytes) else str(medium.source)
        try:
            if isinstance(medium, Clip):
                _write_frames(images, medium)
            else:
                _write_image(images, medium)
        except DataError as error:
            return LeftOutRow(name, str(error).removeprefix(f"{name}: "))
    return replace(draft, media=())


def _write_image(images: Path, image: DraftImage) -> None:
    target = _inside(images, image.target)
    if target.exists():  # renamed into place, so it is whole
        return
    if isinstance(image.source, bytes):
        content, name = image.source, image.target
    else:
        content, name = image.source.read(), str(image.source)
    load_image(content, name)
    write_bytes(target, content)


def _write_frames(images: Path, clip: Clip) -> None:
    targets = [_inside(images, target) for target in clip.targets]
    if all(target.exists() for target in targets):
        return
    content, name = clip.source.read(), str(clip.source)
    if clip.stays_whole:
        decode_frames(BytesIO(content), name, 1)
        write_bytes(targets[0], content)
        return
    frames = decode_frames(BytesIO(content), name, len(targets))
    for target, frame in zip(targets, frames, strict=True):
        image = BytesIO()
        frame.save(image, "JPEG", quality=JPEG_QUALITY)
        write_bytes(target, image.getvalue())


def _inside(images: Path, target: str) -> Path:
    # Targets are made of names in the source, and a zip may name anything.
    if target.startswith("/") or ".." in target.split("/") or not target.isprintable():
        raise DataError(f"{target!r}: not a name for a file; rename it")
    return images / target


@contextmanager
def claimed(out: Path, **settings: str) -> Iterator[None]:
    """Have a folder for one conversion alone; only the same one goes on in it.

    Raises:
        DataError: the folder holds another conversion, or files of another origin.
        AtWorkError: another process fills it.
    """
    mark = out / "conversion.json"
    text = json.dumps(settings, indent=1, sort_keys=True) + "\n"
    with alone_in(out, out / LOCK):
        if mark.exists():
            if mark.read_text(encoding="utf-8") != text:
                raise DataError(
                    f"{out}: holds a conversion of other files or with other options; "
                    "give a new folder or delete this one"
                )
            _drop_cut_off(out)  # by a kill
        elif any(one.name != LOCK for one in out.iterdir()):
            raise DataError(f"{out}: not empty, and not from a conversion; give a new folder")
        else:
            write_bytes(mark, text.encode())
        try:
            yield
        except BaseException as error:
            _drop_cut_off(out)  # where processes were ended in the midst of an image
            left = {one.name for one in out.iterdir()}
            if isinstance(error, DataError) and left <= {mark.name, LOCK}:
                mark.unlink()  # so that a mended command may have the folder
            raise


def _drop_cut_off(out: Path) -> None:
    for part in out.rglob("*.part"):
        part.unlink()
